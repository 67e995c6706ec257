"""What a job tells while it works, on stderr: lines for people, or with --json-logs one JSON object a line."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import textwrap
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

from pipeline.storage.redaction import redacted, terminal_text

SILENT_SECONDS = 2.5  # A person wonders at three.
_output = {"as_json": False, "has_told": False}


def log_as_json(wanted: bool = True) -> None:
    """From now on every line of this process's stderr is one JSON object with `event` and `time` (UTC).

    Python's warnings and the log records of libraries become events too.
    """
    _output["as_json"] = wanted
    logging.captureWarnings(wanted)
    if wanted:
        logging.basicConfig(handlers=[_JsonHandler()], level=logging.WARNING, force=True)


def is_json() -> bool:
    """Whether lines are printed as JSON."""
    return _output["as_json"]


def log_status(line: str, *, event: str = "message") -> None:
    """A line for the person who waits; without what it may hold of secrets."""
    _output["has_told"] = True
    if is_json():
        log_event(event, text=line)
    else:
        print(_for_width(terminal_text(line), sys.stderr), file=sys.stderr, flush=True)


@contextmanager
def told_while_silent(values: Iterable[Any], *, after_seconds: float = SILENT_SECONDS) -> Iterator[None]:
    """Tells which stores a job waits for where it has told nothing by then: one that does not answer is asked again
    for half a minute before there is an error to tell.

    values: of the job's config, URLs among them.
    """
    urls = [each for each in values if isinstance(each, str) and "://" in each]
    waiting = threading.Timer(after_seconds, _tell_waiting, args=(urls,))
    waiting.daemon = True
    if urls:
        waiting.start()
    try:
        yield
    finally:
        waiting.cancel()


def _tell_waiting(urls: list[str]) -> None:
    if not _output["has_told"]:
        log_status(f"waiting for an answer of {' and of '.join(urls)}")


def _for_width(line: str, stream: TextIO) -> str:
    """A line as a terminal of its width shows it whole: broken between words, what follows indented. What is longer
    than a line (a path) stays in one piece, to be copied."""
    if not stream.isatty():
        return line
    before = line[: len(line) - len(line.lstrip())]
    width = max(40, shutil.get_terminal_size().columns)
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "drop_whitespace": True}
    found = textwrap.wrap(line, width, subsequent_indent=f"{before}  ", replace_whitespace=False, **options)
    return "\n".join(found)


def log_traceback(text: str) -> None:
    """The traceback of a bug: the one text that keeps its lines."""
    if is_json():
        log_event("bug", text=text)
    else:
        print("\n".join(map(terminal_text, redacted(text).split("\n"))), file=sys.stderr, flush=True)


def print_line(line: str) -> None:
    """A line of a command's answer, on stdout, as `terminal_text` has it."""
    _output["has_told"] = True
    print(_for_width(terminal_text(line), sys.stdout))


def log_event(event: str, **values: Any) -> None:
    """One event for machines; nothing where people read."""
    if is_json():
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"event": event, "time": now, **_redacted(values)}, default=str)
        print(line, file=sys.stderr, flush=True)


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _redacted(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(each) for each in value]
    return redacted(value) if isinstance(value, str) else value


class _JsonHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log_event("log", level=record.levelname.lower(), logger=record.name, text=record.getMessage())
