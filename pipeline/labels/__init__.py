"""Labels read, exported, looked at and corrected."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "source": ["Labels", "open_labels"],
        "config": ["ExportConfig"],
        "export": ["export"],
    },
)
