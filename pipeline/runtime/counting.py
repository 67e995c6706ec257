"""Clips are counted while their units are at work: actors tell of each that ended, the driver asks what is new.

What is told of a unit is all of it so far, so that a message that is lost or comes twice changes nothing. It is shown
and never believed: what counts is the unit's entry. By the same way actors hear that the run is being interrupted.
"""

from __future__ import annotations

import contextlib
import io
import signal
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any

from pipeline.runtime.console import log_status
from pipeline.runtime.progress import ProgressDisplay
from pipeline.runtime.unit_counter import CounterLostError, Counting, UnitTeller

ASK_SECONDS = 0.5
# How often an actor tells, at most: what the counter takes of all of them is some 1,000 messages a second.
TELL_SECONDS, TELLS_A_SECOND = 0.2, 1000
# An interrupted run waits so long for the clips that its actors are at; a second interrupt ends it at once.
GRACE_SECONDS = 10.0


class UnitsAtWork:
    """The driver's side: brings what actors tell to the display, and stops them where the run is interrupted.

    counter: between the two; default: a Ray actor.
    """

    def __init__(self, display: ProgressDisplay, *, actors: int, counter: Counting | None = None) -> None:
        if counter is None:
            from pipeline.runtime.remote_counter import RemoteCounter  # A run without Ray does not import it.

            counter = RemoteCounter()
        self._counter = counter
        self._every_seconds = max(TELL_SECONDS, actors / TELLS_A_SECOND)
        self._display = display
        self._waiting: Collection[str] = ()
        self._is_over = threading.Event()
        self._interrupts = 0
        self._quiet = contextlib.ExitStack()
        # Each is over before Ray is: a call of Ray after it would start another, or join one of somebody else's.
        self._threads = [threading.Thread(target=self._ask, daemon=True)]

    def teller(self) -> UnitTeller:
        """What each actor gets."""
        return UnitTeller(self._counter, every_seconds=self._every_seconds)

    def show_of(self, waiting: Collection[str]) -> None:
        """Show what is told of these units, and of no others: those that are committed are counted by their entries."""
        self._waiting = waiting

    def _ask(self) -> None:
        while not self._is_over.wait(ASK_SECONDS):
            with contextlib.suppress(CounterLostError):
                self._display.note(self._counter.take(), self._waiting)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Ask for as long as the block runs. An interrupt first lets actors end the clips that they are at."""
        self._threads[0].start()
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(signal.getsignal(number)):  # `nohup` ignores the one.
                    before[number] = signal.signal(number, self._interrupted)
        try:
            with self._quiet:
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._is_over.set()
            for thread in self._threads:
                thread.join()

    def _interrupted(self, *_: object) -> None:
        """Answers a signal. Raises KeyboardInterrupt once nothing is at work, or at the second one."""
        self._interrupts += 1
        self._quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))  # As `started_ray` does.
        if self._interrupts == 1:
            log_status(f"interrupted: up to {GRACE_SECONDS:.0f} s for the clips at work (again: none)")
            # Not in this thread: it may be within a call of Ray that holds its locks.
            stopping = threading.Thread(target=self.stop, daemon=True)
            self._threads.append(stopping)
            stopping.start()
            until = time.monotonic() + GRACE_SECONDS
            while stopping.is_alive() and time.monotonic() < until:
                stopping.join(0.1)  # The second signal is heard between two of these.
        raise KeyboardInterrupt

    def stop(self) -> None:
        """Let actors end the clips that they are at and no more, and wait for it."""
        with contextlib.suppress(CounterLostError):
            while self._counter.stop() and not self._is_over.wait(0.1):
                pass
