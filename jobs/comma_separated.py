"""Flags that take several values: `a,b,c`, or a list in a config file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class CommaSeparated:
    """Parses `a,b,c`, or a list from YAML, into the tuple that a field's type asks for."""

    def __init__(self, hint: Any) -> None:
        self._kind = hint.__args__[0]
        self._length = None if Ellipsis in hint.__args__ else len(hint.__args__)

    def __repr__(self) -> str:
        return f"{self._length or 'some'} {self._kind.__name__}s, separated by commas"

    def __call__(self, value: Any) -> tuple[Any, ...]:
        parts = value.split(",") if isinstance(value, str) else list(value) if isinstance(value, Sequence) else [value]
        if self._length is not None and len(parts) != self._length:
            raise ValueError(f"{value!r} has {len(parts)} parts; give {self._length}, separated by commas")
        return tuple(self._kind(part) for part in parts)


def flattened(values: list[Any]) -> tuple[Any, ...]:
    """The parts of a flag that was given several values, each perhaps several itself."""
    return tuple(part for value in values for part in (value if isinstance(value, tuple) else (value,)))
