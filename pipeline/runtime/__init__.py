"""Units of work through Ray actors into a ledger; progress, checks before the work, metrics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "job": ["ActorSpec", "Choice", "Job"],
        "run": ["Run"],
        "config": ["PoolConfig"],
        "cluster": ["start_ray", "stop_ray"],
        "console": ["log_as_json", "log_status", "log_event"],
    },
)
