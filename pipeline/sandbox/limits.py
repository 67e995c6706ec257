"""Limits of a child process, and the errors of those that pass them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from pipeline.storage.redaction import printable

# What a process says that asked for memory and got none; C++ then aborts.
OUT_OF_MEMORY = ("bad_alloc", "allocate memory", "out of memory", "MemoryError")


# Builds the work of the child, once per child. The work takes a task and a function to name the stage it is in, yields
# its items as they are ready, and returns a last value; both are plain values, as `messages` has them. That function's
# `ask` gives the bytes that whoever runs the task has for a plain value.
Work = Callable[[Any, Any], Generator[Any, None, Any]]


@dataclass(frozen=True, kw_only=True)
class SandboxLimits:
    """What a child may use before it is killed.

    timeout_seconds: longest time without a sign of progress. memory_bytes: resident memory of the child; by so much
    and 512 MiB may its address space grow once the work is built. start_seconds: longest time to import and build it.
    clip_seconds, clip_pixels: of one clip in all, for works that decode: wall time over all tries, pixels of one.
    """

    timeout_seconds: float = 120.0
    memory_bytes: int = 4 * 2**30
    start_seconds: float = 300.0
    clip_seconds: float = 6 * 3600.0
    clip_pixels: float = 4e12

    def __post_init__(self) -> None:
        for name in ("timeout_seconds", "memory_bytes", "start_seconds", "clip_seconds", "clip_pixels"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0")


class SandboxError(Exception):
    """A task that did not end well.

    reason: crash, killed (from outside), hang, over_budget, memory, bad_answer, exception, or the `reason` of the
    work's own error. detail: one line. stage: where it was. fatal: whether the child is gone.
    """

    def __init__(self, reason: str, detail: str, *, stage: str, fatal: bool) -> None:
        # Some of it comes from the child, and goes to terminals, pages and tables.
        detail = printable(detail)
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.stage = stage
        self.fatal = fatal


class SandboxStartError(RuntimeError):
    """The child could not even be built: a fault of the installation, not of a clip."""


def says_out_of_memory(text: str) -> bool:
    """Whether a library's message tells of a failed allocation."""
    return any(words in text for words in OUT_OF_MEMORY)
