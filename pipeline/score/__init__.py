"""Clips and a checkpoint in, labels out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "job": ["score"],
        "config": ["ScoreConfig"],
    },
)
