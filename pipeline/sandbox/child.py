"""What runs in the child process."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from pipeline.sandbox.confinement import allow_cpu_seconds, confine, die_with_parent, keep_environment, limit_memory
from pipeline.sandbox.limits import SandboxLimits, Work, says_out_of_memory
from pipeline.sandbox.messages import Answer, Ask, Failed, Fault, Item, Ready, Result, Stage, send

KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


def serve(
    pipe: Connection,
    log: Connection,
    build: Callable[..., Work],
    arguments: dict[str, Any],
    *,
    limits: SandboxLimits,
    readable: tuple[str, ...] | None,
) -> None:
    """The child: give up what it does not need, build the work, then run tasks until the pipe closes."""
    die_with_parent()
    _let_go_of_others()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    log.close()
    keep_environment(KEPT_ENVIRONMENT)  # No credentials beside a decoder of foreign bytes.
    tempfile.gettempdir()  # Found once by writing into it, which libraries ask for as they are imported (dill does).
    confinement, asked = confine(readable), _Asked()
    try:
        work = build(**arguments)
        asked.forget()
        limit_memory(limits.memory_bytes)
    except Exception as error:  # noqa: BLE001 - told to the supervisor, which raises it
        send(pipe.fileno(), Failed(f"{type(error).__name__}: {error}", asked.were_refused(error)))
        return
    send(pipe.fileno(), Ready(confinement))
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        _run_one(pipe, work, task, limits)


def _let_go_of_others() -> None:
    """Close what multiprocessing hands to every child: the pipe that keeps the fork server alive, with which a child
    that hangs would outlive a killed supervisor for ever, and the one to the resource tracker, which removes what it is
    told to.
    """
    # None of these has a public name.
    tracker = getattr(resource_tracker, "_resource_tracker")  # noqa: B009
    for descriptor in (getattr(forkserver, "_forkserver")._forkserver_alive_fd, tracker._fd):  # noqa: B009
        if descriptor is not None:
            os.close(descriptor)
    tracker._fd = None


class _Asked:
    """What Python opens and lists while the work is built.

    A refusal does not always show: Python takes a folder that it may not list for one without modules or packages.
    """

    def __init__(self) -> None:
        self._paths: set[str] | None = set()
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_of_files = self._paths is not None and event in ("open", "os.listdir", "os.scandir", "ctypes.dlopen")
        if is_of_files and arguments and isinstance(arguments[0], str):
            assert self._paths is not None
            self._paths.add(arguments[0] or ".")

    def forget(self) -> None:
        """Take note of no more: a hook is for the life of the process."""
        self._paths = None

    def were_refused(self, error: BaseException | None) -> bool:
        """Whether the error, or one behind it, is of a permission, or something that was asked for may not be read."""
        while error is not None:
            if isinstance(error, PermissionError) or "ermission denied" in str(error):
                return True
            error = error.__cause__ or error.__context__
        paths, self._paths = self._paths or set(), None
        return any(map(_is_refused, paths))


def _is_refused(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


class _Line:
    """What the work has of its supervisor: called, it names the stage; `ask` waits for the bytes that it asks for."""

    def __init__(self, pipe: Connection, limits: SandboxLimits) -> None:
        self._pipe, self._limits = pipe, limits

    def __call__(self, stage: str) -> None:
        self.tell(Stage(stage))

    def ask(self, value: Any) -> bytes:
        self.tell(Ask(value))
        return self._pipe.recv_bytes()

    def tell(self, answer: Answer) -> None:
        # Where the supervisor does not look, as while its caller is busy, a child that spins ends by itself.
        allow_cpu_seconds(2 * self._limits.timeout_seconds)
        send(self._pipe.fileno(), answer)


def _run_one(pipe: Connection, work: Work, task: Any, limits: SandboxLimits) -> None:
    line = _Line(pipe, limits)
    tell = line.tell
    allow_cpu_seconds(2 * limits.timeout_seconds)
    try:
        items = work(task, line)
        while True:
            try:
                tell(Item(next(items)))
            except StopIteration as end:
                tell(Result(end.value, _peak_memory_bytes()))
                return
    except Exception as error:  # noqa: BLE001 - one clip's error, told with its kind
        reason = getattr(error, "reason", None) or "exception"
        text = str(error) if reason != "exception" else f"{type(error).__name__}: {error}"
        if reason == "exception" and _is_out_of_memory(error):
            reason, text = "memory", f"asked for more than {limits.memory_bytes / 2**20:.0f} MiB: {text}"
        tell(Fault(reason, text[:2000], _peak_memory_bytes()))


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed; in C++, as of torch, dlib and decord, that is a RuntimeError that says so."""
    is_of_c = isinstance(error, RuntimeError) and says_out_of_memory(str(error))
    return is_of_c or isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM


def _peak_memory_bytes() -> int:
    """The most resident memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
