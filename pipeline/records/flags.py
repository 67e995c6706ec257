"""Values and errors of flags: lists separated by commas, and errors in one line by the names of flags."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

MAX_MESSAGE_LETTERS = 600
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


class CommaSeparated:
    """Parses `a,b,c`, or a list from YAML, into the tuple that a field's type asks for."""

    def __init__(self, hint: Any) -> None:
        self._kind = hint.__args__[0]
        self._length = None if Ellipsis in hint.__args__ else len(hint.__args__)

    def __repr__(self) -> str:
        kinds = {int: "integers", float: "numbers"}.get(self._kind, "names")
        return f"{self._length or 'some'} {kinds}, separated by commas"

    def __call__(self, value: Any) -> tuple[Any, ...]:
        parts = value.split(",") if isinstance(value, str) else list(value) if isinstance(value, Sequence) else [value]
        if self._length is not None and len(parts) != self._length:
            raise ValueError(f"{value!r} has {len(parts)} parts; give {self._length}, separated by commas")
        return tuple(self._kind(part) for part in parts)


def words_of(hint: Any) -> str:
    """What a field of this type takes, in words."""
    if get_origin(hint) is Literal:
        *others, last = map(str, get_args(hint))
        return f"{', '.join(others)} or {last}" if others else last
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(words_of(kind) for kind in get_args(hint) if kind is not NoneType)
    return _WORDS.get(hint) or repr(CommaSeparated(hint) if get_origin(hint) is tuple else hint)


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


def one_line(error: BaseException, names: Mapping[str, str], wanted: Mapping[str, str] | None = None) -> str:
    """The error in one line. names: of the fields, as they are typed. wanted: what such a name takes, in words."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
    if found := re.fullmatch(r"(the following arguments are required: )([\w, ]+)", text):
        return found[1] + ", ".join(names.get(name, name) for name in found[2].split(", "))
    text = re.sub(r'Parser key "(\w+)"', lambda found: names.get(found[1], found[1]), text)
    kinds = r"(?:Expected a |Does not validate against any of the Union subtypes ).*"
    if (found := re.fullmatch(rf"(\S+): {kinds}(?:Got|Given) value(?: type)?: (.*)", text)) and wanted:
        text = f"{found[1]}: give {wanted.get(found[1], 'another value')}, got {found[2]}"
    elif found := re.fullmatch(r"argument (--\S+): invalid (.*) value: (.*)", text):
        text = f"{found[1]}: give {found[2]}, got {found[3]}"
    return text if len(text) <= MAX_MESSAGE_LETTERS else f"{text[:MAX_MESSAGE_LETTERS]}…"
