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
    """Whether a cell is a number, or text that is one, in percent too."""
    return isinstance(number(cell.removesuffix(" %") if isinstance(cell, str) else cell), int | float)


def short(value: Any) -> Any:
    """A float with four digits; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else value


def percent(share: float | None) -> str:
    """A share as percent with two digits."""
    return NONE if share is None else f"{100 * share:.2f}"


def said(share: float | None) -> str:
    """A share in percent as a person would say it: 59.5 %, 80 %."""
    return NONE if share is None else f"{round(100 * share, 1):g} %"


def said_seconds(seconds: float) -> str:
    """A time as a person would say it: 20 s, 1 min 5 s."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (0 if hours else rest, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def interval(share: float, number: int) -> tuple[float, float]:
    """The 95 % interval of Wilson of a share of so many."""
    if not number:
        return 0.0, 1.0
    z2 = 1.96**2
    middle = (share + z2 / (2 * number)) / (1 + z2 / number)
    spread = 1.96 * math.sqrt(share * (1 - share) / number + z2 / (4 * number**2)) / (1 + z2 / number)
    return max(0.0, middle - spread), min(1.0, middle + spread)


def counted(number: int, what: str) -> str:
    """A number with what is counted, in the plural but for one."""
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
