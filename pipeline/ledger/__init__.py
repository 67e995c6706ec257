"""What was planned, what is committed, what is left, and whether the sum holds."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "ledger": ["Ledger"],
        "units": ["PendingUnits", "Unit"],
        "snapshot": ["Snapshot"],
        "audit": ["Audit"],
        "lock": ["LedgerError", "RunLock"],
        "retry": ["chosen", "quarantined", "verify"],
    },
)
