"""The command line of every job: flags from a typed dataclass, one line for a wrong one, documented exit codes.

jsonargparse, because it reads the same fields from flags and from a YAML file (`--config`) and checks both against the
dataclass's types; the flags' texts are the fields' docstrings.
"""

from __future__ import annotations

import difflib
import re
import signal
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, get_type_hints

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # A clone runs without being installed.

from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser

from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import log_as_json, log_status

EXIT_CODES = (
    "exit codes: 0 every input is accounted for; 1 a bug; 2 wrong use, or a store or disk that fails (what was "
    "committed is kept: mend it and run the same command again); 3 finished, but more clips than "
    "--max-quarantined are quarantined or retryable, or the run was cut off; 130 interrupted"
)


def run_job(
    config_class: type,
    main: Callable[[Any], int],
    *,
    description: str,
    positional: tuple[str, ...] = (),
    resume: str = "run the same command again",
) -> NoReturn:
    """Parse the flags into `config_class`, run `main`, and end the process with a documented exit code.

    positional: fields given by their place instead of a flag; a tuple field takes what is left. resume: what an
    interrupted user should do.
    """
    name = Path(sys.argv[0]).name
    if "--json-logs" in sys.argv:
        log_as_json()  # A wrong flag beside it is told so too.
    sys.excepthook = _told  # A bug's traceback may hold a store's credentials.
    signal.signal(signal.SIGTERM, _interrupt)  # `ray job stop` and Kubernetes say it this way.
    try:
        _exit(main(parse(config_class, sys.argv[1:], description=description, positional=positional)))
    except UsageError as error:
        _end(f"{name}: error: {error}", 2)
    except KeyboardInterrupt:
        _end(f"{name}: interrupted; what was committed is kept. To resume, {resume}", 130)
    except OSError as error:
        _end(f"{name}: error: {error}; what was committed is kept. Mend it and run the same command again", 2)


def parse(config_class: type, arguments: list[str], *, description: str, positional: tuple[str, ...] = ()) -> Any:
    """The config of these arguments. Raises UsageError, in one line, for a wrong flag or value."""
    parser = ArgumentParser(
        prog=Path(sys.argv[0]).name, description=description, epilog=EXIT_CODES, exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="YAML file of these fields (with _ for -); flags go first")
    hints, texts = get_type_hints(config_class), _field_texts(config_class)
    for field in sorted(fields(config_class), key=_has_default):
        flag = f"--{field.name.replace('_', '-')}"
        options: dict[str, Any] = {"type": hints[field.name], "help": texts[field.name]}
        if field.name in positional:
            many = str(hints[field.name]).startswith("tuple")
            options |= {"type": str, "nargs": "*" if many else None}
            parser.add_argument(field.name, **options)
            continue
        if _has_default(field):
            options["default"] = field.default
        else:
            options["required"] = True
        if hints[field.name] is bool:
            options |= {"nargs": "?", "const": True}
        elif str(hints[field.name]).startswith("tuple"):
            options |= {"type": _CommaSeparated(hints[field.name]), "metavar": "A,B,..."}
            if Ellipsis in hints[field.name].__args__:
                # A shell's pattern gives them separately: --compare runs/*
                options |= {"nargs": "+", "default": list(options.get("default", ()))}
        parser.add_argument(flag, **options)
    try:
        found = parser.parse_args(arguments)
        values = {field.name: found[field.name] for field in fields(config_class)}
        return config_class(
            **{name: _flattened(value) if isinstance(value, list) else value for name, value in values.items()}
        )
    except (ArgumentError, ValueError, TypeError, OSError) as error:
        flags = [f"--{field.name.replace('_', '-')}" for field in fields(config_class)]
        raise UsageError(f"{_one_line(error)}{_did_you_mean(str(error), flags)} (see --help)") from None


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING


def _did_you_mean(text: str, flags: list[str]) -> str:
    unknown = re.search(r"unrecognized arguments: (--[\w-]+)", text)
    close = difflib.get_close_matches(unknown[1], flags, n=1) if unknown else []
    return f"; did you mean {close[0]}?" if close else ""


class _CommaSeparated:
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


def _flattened(values: list[Any]) -> tuple[Any, ...]:
    return tuple(part for value in values for part in (value if isinstance(value, tuple) else (value,)))


def _field_texts(config_class: type) -> dict[str, str]:
    texts: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        if is_dataclass(base):
            texts.update({param.arg_name: param.description or "" for param in parse_from_object(base).params})
    return texts


def _one_line(error: BaseException) -> str:
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__
    return re.sub(r'Parser key "(\w+)"', lambda found: f"--{found[1].replace('_', '-')}", text)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end(line: str, code: int) -> NoReturn:
    log_status(line, event="error")
    _exit(code)


def _exit(code: int) -> NoReturn:
    # Python takes a second to end, without handlers: a signal would now make a failure of a job that is done.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log_status("".join(traceback.format_exception(kind, error, trace)).rstrip(), event="bug")
