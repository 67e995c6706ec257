"""Networks, their checkpoints, and predictions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "build": ["MODELS", "build_model", "default_reads"],
        "cahfw": ["CAHFWNet"],
        "caer_net": ["CAERNetS", "CAHFWNetWithoutRecalibration", "SingleStream"],
        "backbones": ["BACKBONES", "Backbone"],
        "checkpoint": ["load_checkpoint", "save_checkpoint"],
        "checkpoint_info": ["read_checkpoint_info"],
        "predict": ["Predictor", "predict"],
    },
)
