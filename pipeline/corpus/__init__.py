"""Any input in, a table of clips with ids, labels and splits out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "read": ["read_corpus", "require_input"],
        "types": ["CORPUS_SCHEMA", "Corpus", "CorpusError", "Ignored"],
        "table": ["split_of"],
    },
)
