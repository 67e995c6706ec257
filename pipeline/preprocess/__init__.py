"""Clips in, shards of examples out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "job": ["preprocess"],
        "config": ["ExtractConfig", "PreprocessConfig"],
        "extractor": ["ClipExtractor"],
    },
)
