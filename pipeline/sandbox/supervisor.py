"""A supervised child process: in go tasks, out come results or a `SandboxError` that names what happened.

Decoders abort, spin with the GIL held and allocate gigabytes on hostile files. Inside the sandbox that costs one clip:
the supervisor sees no message for `timeout_seconds` or too much resident memory, kills the child, names the signal and
the stage, and starts a fresh child for the next task. The child has no credentials in its environment and gives up
sockets, programs, other processes, writing, and reading all but its libraries and the clips before it meets a task
(`confine`). What it answers is never unpickled but read as plain values (`messages`): a decoder that was taken over can
say something wrong of its clip and of those after it, and nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Mapping
from multiprocessing.connection import Connection
from typing import IO, Any

import psutil

from pipeline.sandbox.child import serve
from pipeline.sandbox.confinement import MAX_FILE_BYTES, folder_to_read, is_below, is_home_or_above
from pipeline.sandbox.limits import SandboxError, SandboxLimits, SandboxStartError, Work, says_out_of_memory
from pipeline.sandbox.messages import (
    Answer,
    Ask,
    Failed,
    Fault,
    Item,
    MessageError,
    Ready,
    Receiver,
    Result,
    Stage,
)
from pipeline.sandbox.starting import (
    find_this_package,
    fork_server_has_ended,
    nameless_file,
    wait_for_end_of_fork_server,
    without_interrupts,
    without_main_module,
)
from pipeline.storage.redaction import printable

POLL_SECONDS = 0.05


# A child that has used this share of the memory between what it began with and its limit is recycled.
RECYCLED_SHARE = 0.5


# A sandbox's own to give, and not a child's.
SANDBOX_REASONS = ("crash", "killed", "hang", "bad_answer")


# Of what a child says for people.
MAX_DETAIL_LETTERS = 200


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
        self.fault_of_build: str | None = None
        self.stage_seconds: defaultdict[str, float] = defaultdict(float)
        find_this_package()
        self._build = build
        self._arguments = dict(arguments)
        self._readable = None if readable is None else {os.path.abspath(path) for path in readable}
        self._added: set[str] = set()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([build.__module__, *preload])
        self._process: Any = None
        self._pipe: Connection | None = None
        self._answers: Receiver | None = None
        self._num_task_bytes = 0
        self._until: float | None = None
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
        self._added.add(folder)
        above = os.path.commonpath(self._added)
        if len(self._added) > MAX_FOLDERS and not is_home_or_above(above):
            self._readable.add(above)
        self._stop()

    def start(self) -> None:
        """Start the child if none runs, and wait until its work is built.

        A work that the limits of reading keep from being built, as its build says by a permission that it lacks, is
        built by one child without them; `fault_of_build` then says what failed. No foreign bytes have been met by then,
        and an installation may have its libraries anywhere. Raises SandboxStartError, and SandboxError with reason
        killed where somebody killed it meanwhile.
        """
        if self._process is not None and self._process.is_alive():
            return
        readable = None if self._readable is None else tuple(self._readable)
        try:
            self._start(readable)
        except _ForbiddenError as error:
            self.fault_of_build = str(error)
            if readable is None:
                raise
            self._start(None)

    def _start(self, readable: tuple[str, ...] | None) -> None:
        self._stop()
        self._log = nameless_file()
        ours, theirs = self._context.Pipe()
        log = Connection(os.dup(self._log.fileno()))  # What multiprocessing can hand to a child.
        options = {"limits": self.limits, "readable": readable}
        arguments = (theirs, log, self._build, self._arguments)
        process = self._context.Process(target=serve, args=arguments, kwargs=options, daemon=True)
        self._pipe, self._answers = ours, Receiver(ours.fileno())
        _limit_sending(ours, seconds=self.limits.timeout_seconds)
        try:
            with without_main_module(), without_interrupts():
                process.start()
        except (EOFError, ConnectionError):
            self._stop()
            wait_for_end_of_fork_server()
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
            error_class = _ForbiddenError if answer.is_forbidden else SandboxStartError
            raise error_class(f"the sandboxed worker did not start: {printable(answer.detail)}")
        self.confinement = answer.confinement
        self._built_bytes = self.memory_bytes()

    def run(
        self,
        task: Any,
        *,
        keep: Callable[[Any], Any] | None = None,
        answer: Callable[[Any], bytes] | None = None,
        seconds: float | None = None,
    ) -> tuple[list[Any], Any]:
        """Run one task: the items it yielded, or what `keep` makes of each, and its return value.

        Raises SandboxError, without `keep` also where the items have more than `memory_bytes` in all, and what `keep`
        raises; the sandbox stays usable. answer, seconds: as `stream` has them.
        """
        items, running = [], self.stream(task, answer=answer, seconds=seconds)
        try:
            while True:
                item = next(running)
                items.append(item if keep is None else keep(item))
                if keep is None:
                    self.require_room(self._num_task_bytes)
        except StopIteration as end:
            return items, end.value
        finally:
            running.close()

    def require_room(self, num_bytes: int) -> None:
        """Raise SandboxError where results of a task have more bytes in all than a child may have memory."""
        if num_bytes > self.limits.memory_bytes:
            limit = self.limits.memory_bytes / 2**20
            raise SandboxError("memory", f"its results have more than {limit:.0f} MiB", stage="send", fatal=True)

    def stream(
        self, task: Any, *, answer: Callable[[Any], bytes] | None = None, seconds: float | None = None
    ) -> Generator[Any, None, Any]:
        """Run one task, its items one by one as the caller takes them: a child that is ahead of its caller waits.

        answer: gives what the work asks for by `stage.ask`. seconds: the task is ended as over_budget after so long,
        the start of a child not counted. Returns the task's value. Raises SandboxError, and what `answer` raises; the
        sandbox stays usable, also where the caller stops half way.
        """
        if self._has_grown():
            self._stop()
            self.num_recycled += 1
        self.start()
        assert self._pipe is not None
        assert self._log is not None
        self._log.truncate(0)
        stage, is_whole, since = "start", False, time.monotonic()
        self._num_task_bytes, self._until = 0, None if seconds is None else since + seconds
        kinds = Stage | Item | Result | Fault if answer is None else Stage | Item | Result | Fault | Ask
        try:
            self._send(self._pipe.send, task, stage)
            while True:
                told = self._receive(kinds, stage=stage, timeout_seconds=self.limits.timeout_seconds)
                if isinstance(told, Stage):
                    now = time.monotonic()
                    self.stage_seconds[stage] += now - since
                    stage, since = told.name, now
                elif isinstance(told, Item):
                    yield told.value
                elif isinstance(told, Ask):
                    assert answer is not None
                    self._send(self._pipe.send_bytes, answer(told.value), stage)
                else:
                    is_whole = True
                    self.peak_memory_bytes = max(self.peak_memory_bytes, told.peak_bytes)
                    if isinstance(told, Result):
                        return told.value
                    raise SandboxError(told.reason, told.detail[:MAX_DETAIL_LETTERS], stage=stage, fatal=False)
        finally:
            self._until = None
            self.stage_seconds[stage] += time.monotonic() - since
            if not is_whole:
                self._stop()  # What it would still send belongs to this task, not to the next.

    def _send(self, send: Callable[[Any], None], value: Any, stage: str) -> None:
        try:
            send(value)
        except BlockingIOError:
            raise self._hang(stage, self.limits.timeout_seconds) from None
        except ConnectionError:  # killed since the task before
            raise self._crash(stage) from None

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
            if self._until is not None and time.monotonic() > self._until:
                self._stop()
                raise SandboxError("over_budget", f"its time was over in {stage}; killed", stage=stage, fatal=True)
            try:
                answer = self._answers.receive_answer(timeout_seconds=POLL_SECONDS)
                if answer is not None:
                    self._num_task_bytes += self._answers.num_last_bytes
                    return self._checked(answer, kinds=kinds)
            except (EOFError, ConnectionError):
                raise self._crash(stage) from None
            except MessageError as error:
                self._stop()
                detail = f"what the worker answered in {stage} cannot be read: {error}; killed"
                raise SandboxError("bad_answer", detail, stage=stage, fatal=True) from None
            if time.monotonic() > deadline:
                raise self._hang(stage, timeout_seconds)

    def _hang(self, stage: str, seconds: float) -> SandboxError:
        self._stop()
        return SandboxError("hang", f"no progress for {seconds:g} s in {stage}; killed", stage=stage, fatal=True)

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
        detail = f"the worker ended with {name} in {stage}" + "".join(
            f": {line.strip()[:MAX_DETAIL_LETTERS]}" for line in last_words
        )
        reason = "crash"
        if code == 255 and fork_server_has_ended():
            # What multiprocessing says of a child whose server was killed, and which went with it.
            reason = "killed"
        elif name == "SIGKILL":
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


class _ForbiddenError(SandboxStartError):
    """The work was not built for want of a permission."""


def _limit_sending(pipe: Connection, *, seconds: float) -> None:
    """Let a write to a child that does not read fail with BlockingIOError after so long."""
    with socket.socket(fileno=os.dup(pipe.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))
