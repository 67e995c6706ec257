"""Bytes at any URL, whole or absent; retries; redaction; temporary folders."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "store": ["Storage"],
        "retry": ["StorageError", "StoreLostError", "call"],
        "remote": ["RangedFile", "absolute_url", "fetch", "local_path", "open_filesystem", "read_url"],
        "redaction": ["printable", "redacted", "redacted_values", "terminal_text", "without_secrets"],
        "scratch": ["ScratchFolder", "sweep"],
    },
)
