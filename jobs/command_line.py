"""The command line of every job: flags from a typed dataclass, one line for a wrong one, documented exit codes.

jsonargparse reads the same fields from flags and from a YAML file (`--config`), checks both against the dataclass's
types, and prints shells' completions; the flags' texts are the fields' docstrings, their groups the fields' `Setting`s.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def _end_at_once(*_: object) -> NoReturn:
    """Answers an interrupt while the libraries of the command line are loaded, when nothing has begun."""
    os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted before it began\n".encode())
    os._exit(130)


# Before anything else is loaded: on a busy machine that takes a second.
signal.signal(signal.SIGINT, _end_at_once)

import re
import traceback
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, get_type_hints

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # A clone runs without being installed.

CURE = "use .venv/bin/python, which `make setup` makes, or install the package: pip install -e ."
if sys.version_info < (3, 11):  # noqa: UP036 - a user's Python may be older
    sys.exit(f"this is Python {sys.version.split()[0]} ({sys.executable}), and 3.11 or later is needed; {CURE}")
try:
    from docstring_parser import parse_from_object
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings
    from jsonargparse._actions import ActionConfigFile  # It has no public name.

    from pipeline.records.documents import mapping_of, parse_yaml, read_at_most, shown_value
    from pipeline.records.flags import CommaSeparated, did_you_mean, flattened, one_line, words_of
    from pipeline.records.settings import Setting
    from pipeline.records.vocabulary import UsageError
    from pipeline.runtime.console import log_as_json, log_status, log_traceback, told_while_silent
    from pipeline.storage.modes import close_to_others
except ModuleNotFoundError as missing:
    name = Path(sys.argv[0]).name
    print(f"{name}: error: {sys.executable} has no {missing.name}; {CURE}", file=sys.stderr)
    sys.exit(2)

DISTRIBUTION = "emotion-pipeline"
MAX_CONFIG_BYTES, MAX_OPENERS = 2**20, 1000
SHARED = "--shared-output"
_NO_FIELDS = {"help", "help_all", "shared_output", "config", "recipe", "print_config", "version"}
METAVARS = {int: "N", int | None: "N", float: "X", float | None: "X"}
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
    examples: tuple[str, ...] = (),
    resume: str = "run the same command again",
    recipes: Mapping[str, Path] | None = None,
) -> NoReturn:
    """Parse the flags into `config_class`, run `main`, and end the process with a documented exit code.

    Args:
        main: imports what takes long itself, so that --help and a wrong flag do not wait for it.
        positional: fields given by their place instead of a flag; a tuple field takes what is left.
        examples: commands, without the name of the program, for the end of the help.
        resume: what an interrupted user should do.
        recipes: YAML files of fields by the names that --recipe takes; flags and --config go first.
    """
    name = program()
    if "--json-logs" in sys.argv:
        log_as_json()  # A wrong flag beside it is told so too.
    sys.excepthook = _print_bug  # A bug's traceback may hold a store's credentials.
    sys.unraisablehook = _interrupt_again
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)  # `ray job stop` and Kubernetes say it this way.
    try:
        options: dict[str, Any] = {"description": description, "positional": positional, "examples": examples}
        config = parse(config_class, sys.argv[1:], recipes=recipes, **options)
        if SHARED not in sys.argv:
            close_to_others()
        with told_while_silent(vars(config).values()):
            code = main(config)
        _exit(code)
    except UsageError as error:
        _end(f"{name}: error: {error}", 2)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("pipeline", "benchmarks", "command_line"):
            raise
        _end(f"{name}: error: {sys.executable} has no {error.name}; {CURE}", 2)
    except KeyboardInterrupt:
        _end(f"{name}: interrupted; what was committed is kept. To resume, {resume}", 130)
    except BrokenPipeError:  # `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _exit(0)
    except OSError as error:
        _end(f"{name}: error: {error}; what was committed is kept. Mend it and run the same command again", 2)


def run_chosen(jobs: Mapping[str, partial[NoReturn]]) -> NoReturn:
    """Run the job that the first argument names. jobs: by name, `run_job` with its arguments."""
    name, chosen = program(), next(iter(sys.argv[1:]), "--help")
    if chosen in jobs:
        sys.argv = [f"{name} {chosen}", *sys.argv[2:]]
        jobs[chosen]()
    set_parsing_settings(add_print_completion_argument=True)
    parser = ArgumentParser(
        prog=name,
        description="Labels the emotions of people in large video corpora.",
        epilog=f"{name} JOB --help shows the flags of a job",
        allow_abbrev=False,
        exit_on_error=False,
        version=version(),
    )
    commands = parser.add_subcommands(metavar="JOB", title="jobs")
    for job, run in jobs.items():
        options = {key: value for key, value in run.keywords.items() if key != "resume"}
        flags = build_parser(run.args[0], **options, shows_all=True)  # Completions are of what help shows.
        commands.add_subcommand(job, flags, help=options["description"])
    try:
        parser.parse_args([chosen])
    except (ArgumentError, ValueError, TypeError) as error:
        _end(f"{name}: error: {one_line(error, {})} (see --help)", 2)
    _exit(0)


def sharing() -> list[str]:
    """The flag that a command of this one's needs to share what it writes as this one does."""
    return [SHARED] * (SHARED in sys.argv)


def program() -> str:
    """The program as the user typed it, for messages."""
    return Path(sys.argv[0]).name


def version() -> str:
    """The package's version; that of a clone which is not installed is not known."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "of a clone that is not installed"


def parse(
    config_class: type,
    arguments: list[str],
    *,
    description: str,
    positional: tuple[str, ...] = (),
    examples: tuple[str, ...] = (),
    recipes: Mapping[str, Path] | None = None,
) -> Any:
    """The config of these arguments. Raises UsageError, in one line, for a wrong flag or value."""
    for argument in arguments:
        # The YAML library's own reader, which reads flags, ends the process where they nest too deep.
        if sum(argument.count(opener) for opener in ("[", "{", "- ", "? ")) > MAX_OPENERS:
            raise UsageError(f"an argument of {len(argument)} letters nests too deep (it begins {argument[:20]!r})")
    try:
        parser = build_parser(
            config_class,
            description=description,
            positional=positional,
            examples=examples,
            recipes=recipes,
            shows_all=any(given.startswith(("--help-all", "--print_completion")) for given in arguments),
        )
        found = parser.parse_args(_with_recipe(arguments, recipes or {}))
        values = {field.name: found[field.name.rstrip("_")] for field in fields(config_class)}
        for field in fields(config_class):
            # As of a shell's variable that is not set: the folder that the user is in would be written to.
            if values[field.name] == "" and not _has_default(field) and field.name != "input":
                raise ValueError(f"{_flag(field)} is empty; give a path or URL")
        return config_class(
            **{name: flattened(value) if isinstance(value, list) else value for name, value in values.items()}
        )
    except BrokenPipeError:
        raise
    except (ArgumentError, ValueError, TypeError, OSError, RecursionError) as error:
        names = {field.name: field.name if field.name in positional else _flag(field) for field in fields(config_class)}
        hints = get_type_hints(config_class)
        told = one_line(error, names, {shown: words_of(hints[name]) for name, shown in names.items()})
        raise UsageError(f"{told}{did_you_mean(told, ['--help-all', *names.values()])} (see --help)") from None


def build_parser(
    config_class: type,
    *,
    description: str,
    positional: tuple[str, ...] = (),
    examples: tuple[str, ...] = (),
    recipes: Mapping[str, Path] | None = None,
    shows_all: bool = False,
) -> ArgumentParser:
    """A parser of the fields of `config_class`. shows_all: the help has every flag, else the most used ones."""
    set_parsing_settings(add_print_completion_argument=True)
    name, settings, texts = program(), _settings(config_class), _field_texts(config_class)
    required = [field for field in fields(config_class) if not _has_default(field)]
    parser = ArgumentParser(
        prog=name,
        usage=" ".join([name, *(_usage(field, positional) for field in required), "[options]"]),
        description=description,
        epilog="\n\n".join(_epilog(name, examples)),
        formatter_class=_Formatter if shows_all else _ShortFormatter,
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
        version=version(),
        print_config="--print_config",
    )
    parser.add_argument("-h", "--help", action="help", help="show the flags that most people need and exit")
    parser.add_argument("--help-all", action="help", help="show every flag and exit")
    text = "let others read what is written, as the umask says" if shows_all else SUPPRESS
    parser.add_argument(SHARED, action="store_true", help=text)
    parser.add_argument("--config", action=_Config, help="YAML file of these fields (with _ for -); flags go first")
    if recipes:
        text = "settings that go together; flags go first"
        parser.add_argument("--recipe", choices=list(recipes), help=text)
    groups: dict[str, Any] = {}
    for field in sorted(fields(config_class), key=lambda field: settings[field.name].place):
        setting, text = settings[field.name], texts[field.name]
        if not (shows_all or setting.common or field in required):
            text = SUPPRESS
        if setting.group not in groups:
            groups[setting.group] = parser.add_argument_group(setting.group)
        _add_field(groups[setting.group], field, config_class, is_positional=field.name in positional, text=text)
    # argparse puts its own group first.
    parser._action_groups = sorted(parser._action_groups, key=lambda group: group.title == "options")
    return parser


def _add_field(group: Any, field: Field[Any], config_class: type, *, is_positional: bool, text: str) -> None:
    hint = get_type_hints(config_class)[field.name]
    options: dict[str, Any] = {"type": hint, "help": text}
    if is_positional:
        many = {"nargs": "*", "default": []} if str(hint).startswith("tuple") else {}
        group.add_argument(field.name, **options | {"type": str} | many)
        return
    if _has_default(field):
        options["default"] = field.default
    else:
        options["required"] = True
    if hint is bool:
        options |= {"nargs": "?", "const": True}
    elif hint in METAVARS:
        options["metavar"] = METAVARS[hint]
    elif str(hint).startswith("tuple"):
        options |= {"type": CommaSeparated(hint), "metavar": "A,B,..."}
        if Ellipsis in hint.__args__:
            # A shell's pattern gives them separately: --compare runs/*
            options |= {"nargs": "+", "default": list(options.get("default", ()))}
    group.add_argument(_flag(field), **options)


def _with_recipe(arguments: list[str], recipes: Mapping[str, Path]) -> list[str]:
    """The arguments with the recipe's file before them, so that each of them goes first."""
    for place, argument in enumerate(arguments):
        flag, equals, name = argument.partition("=")
        if flag == "--recipe" and recipes:
            name = name if equals else next(iter(arguments[place + 1 :]), "")
            if name not in recipes:
                raise UsageError(f"--recipe {name!r}: give one of {', '.join(recipes)}")
            return ["--config", str(recipes[name]), *arguments]
    return arguments


def _flag(field: Field[Any]) -> str:
    """A field that Python keeps the name of for itself ends with _, as `import_`."""
    return f"--{field.name.rstrip('_').replace('_', '-')}"


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING


def _usage(field: Field[Any], positional: tuple[str, ...]) -> str:
    return field.name.upper() if field.name in positional else f"{_flag(field)} {field.name.upper()}"


def _epilog(name: str, examples: Iterable[str]) -> Iterable[str]:
    if examples:
        yield "examples:\n" + "\n".join(f"  {name} {example}" for example in examples)
    yield EXIT_CODES


def _settings(config_class: type) -> dict[str, Setting]:
    found = {}
    for name, hint in get_type_hints(config_class, include_extras=True).items():
        marks = [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Setting)]
        found[name] = marks[0] if marks else Setting()
    return found


class _Config(ActionConfigFile):
    """Reads --config by the package's own reader, in bounded memory, and quotes nothing of a file that is no config."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: Any) -> None:
        del dest
        what = f"--config {value}"
        with open(value, "rb") as file:
            read = parse_yaml(read_at_most(file, MAX_CONFIG_BYTES, what), what)
        known = {action.dest: action for action in parser._actions if action.dest not in _NO_FIELDS}
        for key, given in mapping_of(read, [*known, *(f"{name}_" for name in known)], what).items():
            name = key.rstrip("_")
            try:
                found = parser.parse_object({name: given}, defaults=False, _skip_required=True)
            except (ArgumentError, TypeError, ValueError, RecursionError):
                hint = getattr(known[name], "_typehint", None) or known[name].type
                raise UsageError(f"{what}: {key} is {shown_value(given)}; give {words_of(hint)}") from None
            cfg.update(found[name], name)


class _Formatter(DefaultHelpFormatter):
    """jsonargparse's, with examples as they are written, and no word more than a switch needs."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(part if "\n" in part else fill(part, width, indent) for part in text.split("\n\n"))

    def _format_args(self, action: Action, default_metavar: str) -> str:
        return "" if getattr(action, "_typehint", None) is bool else super()._format_args(action, default_metavar)

    def _format_action_invocation(self, action: Action) -> str:
        return super()._format_action_invocation(action).rstrip()


class _ShortFormatter(_Formatter):
    """The first sentence of each flag, and its default where there is one to tell."""

    def _get_help_string(self, action: Action) -> str:
        text = (action.help or "").split("\n\n")[0]
        text = re.split(r"(?<=[\w)])\. (?=[A-Z1-9-])", text)[0].rstrip(".")
        default = action.default
        if not action.option_strings or default is None or default is False or default in (SUPPRESS, [], ()):
            return text
        return f"{text} [{','.join(map(str, default)) if isinstance(default, list | tuple) else default}]"

    def add_argument(self, action: Action) -> None:
        if not {"--print_config", "--print_completion"} & set(action.option_strings):
            super().add_argument(action)


def _field_texts(config_class: type) -> dict[str, str]:
    texts: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        if is_dataclass(base):
            texts.update({param.arg_name: param.description or "" for param in parse_from_object(base).params})
    return texts


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _interrupt_again(ignored: sys.UnraisableHookArgs) -> None:
    """An interrupt that comes within a destructor or a callback of an import is not raised by Python, which tells of it
    and goes on: so it is sent again, to come a moment later."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(ignored)


def _end(line: str, code: int) -> NoReturn:
    log_status(line, event="error")
    _exit(code)


def _exit(code: int) -> NoReturn:
    # Python takes a second to end, without handlers: a signal would now make a failure of a job that is done.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _print_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log_traceback("".join(traceback.format_exception(kind, error, trace)).rstrip())
