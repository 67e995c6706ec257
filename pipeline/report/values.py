"""How values are written on a page: numbers, shares, and text from outside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from markupsafe import Markup

# Of a text from outside in a list: an error of 2,000 characters in each of 13,201 rows would be 26 MB.
MAX_CHARACTERS = 240


NONE = "–"


Cell = str | int | float | None


T = TypeVar("T")


def shown(value: Any) -> Any:
    """What a template prints of a value: a dash for none, digits in groups, and no invisible character."""
    if isinstance(value, Markup):
        return value
    if value is None or value == "":
        return NONE
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = str(value)
    return text if text.isprintable() else visible(text)


def visible(value: str) -> str:
    """The text with characters that print nothing (controls, reversals of direction, broken UTF-8) as \\u codes."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in value)


def cut(cell: Cell) -> Cell:
    """A cell of a long list: finite, and of at most 240 characters."""
    if isinstance(cell, float) and not math.isfinite(cell):
        return None
    if isinstance(cell, str) and len(cell) > MAX_CHARACTERS:
        return cell[:MAX_CHARACTERS] + "…"
    return cell


def number(value: Any) -> Any:
    """A number out of text; None for one that is not finite; anything else as it is."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
        value = int(value) if value.is_integer() else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_numeric(cell: Any) -> bool:
    """Whether a cell is a number, or text that is one."""
    return isinstance(number(cell), int | float)


def short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.2f}"


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Mappings in mappings as one, their names joined."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        found |= flat(value, f"{prefix}{name} ") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spread and in their order."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]
