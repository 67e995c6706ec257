"""The columns of a manifest by their names: taken for what they say, or refused where that is not plain."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

from pipeline.corpus.types import CorpusError

MANIFEST_COLUMNS = ("url", "label", "split", "start_seconds", "end_seconds", "group")
_KNOWN = f"the columns are {', '.join(MANIFEST_COLUMNS)}"
_PLACES = (
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "video",
    "video_path",
    "clip",
    "uri",
    "src",
)
_LABEL = re.compile(r"(.*[ _-])?(emotions?|expressions?|class|affect|labels?)([ _-](label|name|class|id|index))?")
_OF_WHAT = r"(?:(?:time|t|clip|segment|seg|frame|video|event|utterance|label)[ _-]*)?"
_AS_WHAT = (
    r"(?:[ _-]*(?:time|timestamp|at|pts|ts|frames?|m?secs?|seconds?|millis|milliseconds|[mun]?s|min|minutes|in))*"
)
_TIMES = {
    name: re.compile(rf"{_OF_WHAT}(?:{words}){_AS_WHAT}(?:[ _-]*[(\[][^)\]]*[)\]])?")
    for name, words in (
        ("start_seconds", "start|starts|starting|begin|begins|beginning|onset|from"),
        ("end_seconds", "end|ends|ending|stop|stops|finish|offset|to"),
    )
}
_IN_SECONDS = re.compile(r".*?([ _-](in[ _-])?(s|secs?|seconds?)|[ _-]*[(\[] *(in )?(s|secs?|seconds?) *[)\]])")
_WORD = re.compile(r"[a-z][a-z_ ]{0,24}|")


def columns_of(names: Sequence[str], *, shown: str) -> list[str]:
    """What each column of a manifest is: one of MANIFEST_COLUMNS, or the name of one that is not read.

    Raises CorpusError for columns of one name, and for names that surely mean a column of ours and are not its own.
    """
    given = [each.strip().lower() for each in names]
    # An index without a name, and separators that a spreadsheet left: no column, and no two of one name.
    columns = [_meant(name) or f"unnamed {number}" for number, name in enumerate(given)]
    for name in columns:
        _require_plain(name, columns, thing=f"manifest {shown}: column")
    if "url" not in columns:
        place = next((name for name in columns if name in _PLACES), None)
        cure = f"; if {place!r} has paths or URLs, call it 'url'" if place else ""
        raise CorpusError(f"manifest {shown}: no column 'url' among {_quoted(given)}; {_KNOWN}{cure}")
    return columns


def _meant(name: str) -> str:
    """The column that a name says, in words or in another writing; else the name."""
    if name == "emotion":
        return "label"
    if _near(name):
        return name  # Misspelt rather than said otherwise.
    for column, means in _TIMES.items():
        if means.fullmatch(name) and _IN_SECONDS.fullmatch(name) and "frame" not in name:
            return column
    return name


def _require_plain(name: str, columns: Sequence[str], *, thing: str) -> None:
    """Raise CorpusError where a column may be one of ours and would silently be lost."""
    if columns.count(name) > 1:
        raise CorpusError(f"{thing} {_quoted([name, ''])!r} is there twice; remove one")
    if name in MANIFEST_COLUMNS:
        return
    near = _near(name)
    if near and near not in columns:
        raise CorpusError(f"{thing} {name!r} is unknown; did you mean {near!r}? {_KNOWN}")
    for column, means in _TIMES.items():
        if column not in columns and means.fullmatch(name):
            raise CorpusError(
                f"{thing} {name!r} does not say its unit; call it {column!r} if it is in seconds "
                "from the clip's first frame, or remove it"
            )
    if "label" not in columns and _LABEL.fullmatch(name):
        raise CorpusError(f"{thing} {name!r} may be a label; call it 'label' if it is, or remove it")


def _near(name: str) -> str | None:
    """The column of ours that a name is a misspelling of, or None."""
    if name in MANIFEST_COLUMNS:
        return None
    return next(iter(get_close_matches(name, MANIFEST_COLUMNS, 1, 0.75)), None)


def _quoted(columns: Sequence[str]) -> str:
    """Names of columns for an error, or their number: the first line of a file that is no manifest may be a secret."""
    # One that holds separators of its own is a header with others than were looked for.
    words = re.split(r"[;,|\t]", columns[0]) if len(columns) == 1 else columns
    if len(words) == 1 or not all(map(_WORD.fullmatch, words)):
        return f"its {len(columns)}"
    return ", ".join(filter(None, columns)) or "none"
