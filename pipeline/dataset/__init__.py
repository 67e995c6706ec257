"""Shards of examples in, batches of tensors out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dataset": ["Batch", "ExampleDataset", "Sample", "normalised"],
        "shards": ["Manifest", "read_manifest"],
        "batches": ["EvaluationBatches", "TrainingBatches", "load_batches"],
    },
)
