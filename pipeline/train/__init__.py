"""Shards of examples in, checkpoints out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "job": ["train"],
        "config": ["TrainConfig"],
        "worker": ["train_worker"],
    },
)
