"""Values and errors of flags: lists separated by commas, and errors in one line by the names of flags."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_MESSAGE_LETTERS = 600


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


def did_you_mean(text: str, flags: list[str]) -> str:
    """The flag that an unknown one comes nearest to, as a question; empty where there is none."""
    unknown = re.search(r"nrecognized arguments: (--[\w-]+)", text)
    if not unknown:
        return ""
    begins = [flag for flag in flags if flag.startswith(unknown[1])]
    close = begins[:1] or difflib.get_close_matches(unknown[1], flags, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def one_line(error: BaseException, names: Mapping[str, str]) -> str:
    """The error in one line. names: of the fields, as they are typed."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
    if found := re.fullmatch(r"(the following arguments are required: )([\w, ]+)", text):
        return found[1] + ", ".join(names.get(name, name) for name in found[2].split(", "))
    text = re.sub(r'Parser key "(\w+)"', lambda found: names.get(found[1], found[1]), text)
    # Of a value or nothing.
    union = r": Does not validate against any of the Union subtypes .*?(Expected a <class '\w+'>).*Given value(: .*)"
    text = re.sub(union, r": \1. Got value\2", text)
    return text if len(text) <= MAX_MESSAGE_LETTERS else f"{text[:MAX_MESSAGE_LETTERS]}…"
