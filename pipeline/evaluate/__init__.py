"""Checkpoints and examples in, tables of metrics out, beside the paper's."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["EvaluateConfig"],
        "job": ["write_evaluation"],
        "compare": ["write_comparison"],
        "metrics": ["confusion_matrix", "macro_f1", "metrics_of", "per_class_accuracy", "top1_accuracy"],
    },
)
