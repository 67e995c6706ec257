"""Errors of the command line in one line, by the names of flags."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

MAX_MESSAGE_LETTERS = 600


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
    return text if len(text) <= MAX_MESSAGE_LETTERS else f"{text[:MAX_MESSAGE_LETTERS]}…"
