"""Labels looked at, played and corrected in a browser."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"config": ["ViewConfig"], "serve": ["view"]},
)
