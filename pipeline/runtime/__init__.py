"""Units of work through Ray actors into a ledger; progress, checks before the work, metrics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "run": ["Run", "run_corpus"],
        "pool": ["PoolConfig"],
        "cluster": ["start_ray", "stop_ray"],
        "console": ["log_as_json", "log_status", "log_event"],
        "preflight": ["preflight"],
    },
)
