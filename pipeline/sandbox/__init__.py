"""Runs tasks on untrusted files in a supervised child process with limits and without rights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "supervisor": ["Sandbox"],
        "limits": ["SandboxError", "SandboxLimits", "SandboxStartError"],
    },
)
