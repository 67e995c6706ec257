"""A supervised child process: in go tasks, out come results or a `SandboxError` that names what happened.

Decoders abort, spin with the GIL held and allocate gigabytes on hostile files. Inside the sandbox that costs one clip:
the supervisor sees no message for `timeout_seconds` or too much resident memory, kills the child, names the signal and
the stage, and starts a fresh child for the next task. The child has no credentials in its environment and gives up
sockets, programs, other processes, writing, and reading all but its libraries and the clips before it meets a task
(`confine`). What it answers is never unpickled but read as plain values (`messages`): a decoder that was taken over can
say something wrong of its clip and of those after it, and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from typing import IO, Any

import psutil

from pipeline.sandbox.child import serve
from pipeline.sandbox.confinement import MAX_FILE_BYTES, folder_to_read, is_below, is_home_or_above
from pipeline.sandbox.limits import SandboxError, SandboxLimits, SandboxStartError, Work, says_out_of_memory
from pipeline.sandbox.messages import (
    Answer,
    Failed,
    Fault,
    Item,
    MessageError,
    Ready,
    Receiver,
    Result,
    Stage,
    answer_of,
)

POLL_SECONDS = 0.05


# A child that has used this share of the memory between what it began with and its limit is recycled.
RECYCLED_SHARE = 0.5


# A sandbox's own to give, and not a child's.
SANDBOX_REASONS = ("crash", "killed", "hang", "bad_answer")


MAX_STAGES = 40


MAX_FOLDERS = 8


class Sandbox:
    """One child process that runs `build(**arguments)` once and then its work, task by task.

    `build` must be importable by name. `preload` names modules that the fork server imports before any child starts,
    so that a fresh child costs a fork instead of an import of torch (0.3 s against 2 s). `readable`: files and folders
    that the child may read besides its libraries and what `let_read` adds; None: any.
    """

    def __init__(
        self,
        build: Callable[..., Work],
        arguments: Mapping[str, Any],
        *,
        limits: SandboxLimits | None = None,
        preload: tuple[str, ...] = (),
        readable: Collection[str] | None = None,
    ) -> None:
        self.limits = limits or SandboxLimits()
        self.num_starts = 0
        self.num_recycled = 0
        self.peak_memory_bytes = 0
        self.confinement: dict[str, str] = {}
        self.stage_seconds: defaultdict[str, float] = defaultdict(float)
        self._build = build
        self._arguments = dict(arguments)
        self._readable = None if readable is None else {os.path.abspath(path) for path in readable}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([build.__module__, *preload])
        self._process: Any = None
        self._pipe: Connection | None = None
        self._answers: Receiver | None = None
        self._num_task_bytes = 0
        self._next_look = 0.0
        self._built_bytes = 0
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child, None before the first task."""
        return self._process.pid if self._process is not None else None

    def let_read(self, path: str, *, name: str = "") -> None:
        """Let the child read the folder of `path`, or the one above it in which the file is called `name` (a/b.mp4).

        The home folder and those above it are never opened so, but the file alone. A child that may not yet is
        replaced by one that may, which costs a start: where clips come from ever other folders, the one above all.
        """
        if self._readable is None:
            return
        folder = folder_to_read(path, name=name)
        if any(folder == each or is_below(folder, each) for each in self._readable):
            return
        self._readable.add(folder)
        above = os.path.commonpath(self._readable)
        if len(self._readable) > MAX_FOLDERS and not is_home_or_above(above):
            self._readable.add(above)
        self._stop()

    def start(self) -> None:
        """Start the child if none runs, and wait until its work is built.

        A work that cannot be built where reading is limited is built where it is not: no foreign bytes have been met by
        then, and an installation may have its libraries anywhere. Raises SandboxStartError, and SandboxError with
        reason killed where somebody killed it meanwhile.
        """
        if self._process is not None and self._process.is_alive():
            return
        try:
            self._start()
        except SandboxStartError:
            if self._readable is None:
                raise
            self._readable = None
            self._start()

    def _start(self) -> None:
        self._stop()
        self._log = _nameless_file()
        ours, theirs = self._context.Pipe()
        log = Connection(os.dup(self._log.fileno()))  # What multiprocessing can hand to a child.
        readable = None if self._readable is None else tuple(self._readable)
        options = {"limits": self.limits, "readable": readable}
        arguments = (theirs, log, self._build, self._arguments)
        process = self._context.Process(target=serve, args=arguments, kwargs=options, daemon=True)
        self._pipe, self._answers = ours, Receiver(ours.fileno())
        try:
            with _without_main_module(), _without_interrupts():
                process.start()
        except (EOFError, ConnectionError):
            self._stop()
            _wait_for_end_of_fork_server()
            detail = "the fork server ended while it started the worker"
            raise SandboxError("killed", detail, stage="start", fatal=True) from None
        finally:
            theirs.close()
            log.close()
        self._process = process
        self.num_starts += 1
        try:
            answer = self._receive(Ready | Failed, stage="start", timeout_seconds=self.limits.start_seconds)
        except SandboxError as error:
            if error.reason == "killed":
                raise  # No fault of the installation: the next start may go well.
            raise SandboxStartError(f"the sandboxed worker did not start: {error.detail}") from error
        if not isinstance(answer, Ready):
            self._stop()
            raise SandboxStartError(f"the sandboxed worker did not start: {answer.detail}")
        self.confinement = answer.confinement
        self._built_bytes = self.memory_bytes()

    def run(self, task: Any) -> tuple[list[Any], Any]:
        """Run one task: the items it yielded and its return value. Raises SandboxError; the sandbox stays usable.

        Items of more than `memory_bytes` in all count as too much memory.
        """
        items, running = [], self.stream(task)
        try:
            while True:
                items.append(next(running))
                if self._num_task_bytes > self.limits.memory_bytes:
                    limit = self.limits.memory_bytes / 2**20
                    raise SandboxError(
                        "memory", f"its results have more than {limit:.0f} MiB", stage="send", fatal=True
                    )
        except StopIteration as end:
            return items, end.value
        finally:
            running.close()

    def stream(self, task: Any) -> Generator[Any, None, Any]:
        """Run one task, its items one by one as the caller takes them: a child that is ahead of its caller waits.

        Returns the task's value. Raises SandboxError; the sandbox stays usable, also where the caller stops half way.
        """
        if self._has_grown():
            self._stop()
            self.num_recycled += 1
        self.start()
        assert self._pipe is not None
        assert self._log is not None
        self._log.truncate(0)
        self._num_task_bytes = 0
        stage, is_whole, since = "start", False, time.monotonic()
        try:
            self._pipe.send(task)
        except ConnectionError:  # killed since the task before
            raise self._crash(stage) from None
        try:
            while True:
                answer = self._receive(
                    Stage | Item | Result | Fault, stage=stage, timeout_seconds=self.limits.timeout_seconds
                )
                if isinstance(answer, Stage):
                    now = time.monotonic()
                    self.stage_seconds[stage] += now - since
                    stage, since = answer.name, now
                elif isinstance(answer, Item):
                    yield answer.value
                else:
                    is_whole = True
                    self.peak_memory_bytes = max(self.peak_memory_bytes, answer.peak_bytes)
                    if isinstance(answer, Result):
                        return answer.value
                    raise SandboxError(answer.reason, answer.detail, stage=stage, fatal=False)
        finally:
            self.stage_seconds[stage] += time.monotonic() - since
            if not is_whole:
                self._stop()  # What it would still send belongs to this task, not to the next.

    def restart(self) -> None:
        """End the child, so that the next task meets a fresh one."""
        self._stop()

    def close(self) -> None:
        """End the child."""
        self._stop()

    def memory_bytes(self) -> int:
        """Resident memory of the child, bytes; 0 if none runs."""
        try:
            return psutil.Process(self.pid).memory_info().rss if self.pid else 0
        except psutil.Error:
            return 0

    def _has_grown(self) -> bool:
        """Whether the child kept so much memory of its tasks that the next one had better meet a fresh one."""
        room = self.limits.memory_bytes - self._built_bytes
        return self.memory_bytes() > self._built_bytes + RECYCLED_SHARE * max(room, 0)

    def _receive(self, kinds: Any, *, stage: str, timeout_seconds: float) -> Any:
        """The next answer of the child, one of `kinds`; watches its memory and its silence, and kills it at a limit."""
        assert self._answers is not None
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._watch_memory(stage)
            try:
                is_whole, message = self._answers.receive(timeout_seconds=POLL_SECONDS)
                if is_whole:
                    self._num_task_bytes += self._answers.num_last_bytes
                    return self._checked(answer_of(message), kinds=kinds)
            except (EOFError, ConnectionError):
                raise self._crash(stage) from None
            except MessageError as error:
                self._stop()
                detail = f"what the worker answered in {stage} cannot be read: {error}; killed"
                raise SandboxError("bad_answer", detail, stage=stage, fatal=True) from None
            if time.monotonic() > deadline:
                self._stop()
                raise SandboxError(
                    "hang", f"no progress for {timeout_seconds:g} s in {stage}; killed", stage=stage, fatal=True
                )

    def _checked(self, answer: Answer, *, kinds: Any) -> Answer:
        """An answer that is one of `kinds` and means something at this point. Raises MessageError."""
        match answer:
            case Stage(name=name):
                holds = name in self.stage_seconds or len(self.stage_seconds) < MAX_STAGES
            case Fault(reason=reason):
                holds = reason not in SANDBOX_REASONS
            case _:
                holds = True
        if not holds or not isinstance(answer, kinds):
            raise MessageError("it is not what was asked for")
        return answer

    def _watch_memory(self, stage: str) -> None:
        """Look at the child's memory, at most every POLL_SECONDS, also while it sends without a pause."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + POLL_SECONDS
        memory = self.memory_bytes()
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory)
        if memory > self.limits.memory_bytes:
            self._stop()
            limit = self.limits.memory_bytes / 2**20
            raise SandboxError(
                "memory", f"used more than {limit:.0f} MiB while in {stage}; killed", stage=stage, fatal=True
            )

    def _crash(self, stage: str) -> SandboxError:
        self._process.join(timeout=10)
        code = self._process.exitcode
        name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        assert self._log is not None
        said = os.pread(self._log.fileno(), MAX_FILE_BYTES, 0).decode(errors="replace")
        last_words = said.strip().splitlines()[-1:]
        self._stop()
        detail = f"the worker ended with {name} in {stage}" + "".join(f": {line.strip()[:300]}" for line in last_words)
        reason = "crash"
        if name == "SIGKILL":
            # No decoder kills itself so, and it was not us: a person, or the system when its memory ran out.
            reason = "killed"
        elif name == "SIGXCPU":
            reason, detail = "hang", f"no progress in {stage} for {2 * self.limits.timeout_seconds:g} s of CPU time"
        elif says_out_of_memory(said):
            reason = "memory"
            detail = f"asked for more than {self.limits.memory_bytes / 2**20:.0f} MiB; {detail}"
        return SandboxError(reason, detail, stage=stage, fatal=True)

    def _stop(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._log is not None:
            self._log.close()
        if self._process is not None:
            # SIGKILL, not SIGTERM: a decoder that spins with the GIL held never runs a Python signal handler.
            self._process.kill()
            self._process.join()
            self._process.close()
        self._process = self._pipe = self._answers = self._log = None


def _wait_for_end_of_fork_server(*, seconds: float = 10.0) -> None:
    """Wait until its end can be seen: its pipes close a moment earlier, and till then it is asked for a child again."""
    server = getattr(forkserver, "_forkserver")  # noqa: B009 - no public name for it
    deadline = time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):
        # Not taken note of for good: the next start does, and makes another.
        while server._forkserver_pid is not None and time.monotonic() < deadline:
            if os.waitid(os.P_PID, server._forkserver_pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
            time.sleep(0.01)


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Keep multiprocessing from running the parent's main script in the child: in a Ray worker that imports ray."""
    main = sys.modules["__main__"]
    kept = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    main.__spec__ = None
    if "__file__" in kept:
        del main.__file__
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Keep a Ctrl-C, which a terminal sends to all processes, from a fork server that starts: it would end by a
    traceback. This process's own waits for the end of the block."""
    resource_tracker.ensure_running()  # Started with the fork server, it would let them in again.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _nameless_file() -> IO[bytes]:
    """A file for appending that no folder holds, so that nobody who is killed can leave it behind."""
    if hasattr(os, "memfd_create"):
        file = os.fdopen(os.memfd_create("sandbox"), "rb+", buffering=0)
    else:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by _stop
    fcntl.fcntl(file, fcntl.F_SETFL, os.O_RDWR | os.O_APPEND)
    return file
