"""What one kind of job on clips is: which clips it plans, how an actor does a unit, what ends it.

`runtime.run.run` does all the rest, alike for every job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.ledger.forgotten import ForgottenRecord
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.snapshot import Snapshot
from pipeline.ledger.units import Unit
from pipeline.records.clips import Clip
from pipeline.records.outcomes import Outcome, forgotten_outcome, interrupted_outcome, replaced_outcome


class SystematicFault(Exception):
    """So many clips met a fault of our own code that going on makes no sense."""


def go_on(outcome: Outcome) -> bool:
    """Tell nobody that a clip has ended, and do the next."""
    del outcome
    return True


def unread(clip: Clip, unit: Unit, forgotten: ForgottenRecord, *, goes_on: bool) -> Outcome | None:
    """How a clip of a unit ends that an actor is not to read; None for one that it is to read.

    goes_on: whether the run has not been interrupted.
    """
    if clip.clip_id in unit.replaced:
        return replaced_outcome(clip)
    if not goes_on:
        return interrupted_outcome(clip)
    return forgotten_outcome(clip.clip_id, clip.path) if forgotten.holds(clip) else None


class Actor(Protocol):
    """Does one unit: commits it to the ledger and returns the entry that stands.

    clip_ended: called with the outcome of each clip once it has one; the pool puts a function of its own there. Where
    it returns False the run is being interrupted, and the clips that are left end as `interrupted_outcome`.
    close: ends what it has started; a Ray actor's goes with its process.
    """

    clip_ended: Callable[[Outcome], bool]

    def run(self, unit: Unit) -> dict[str, Any]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ActorSpec:
    """How the actors of a run are built.

    build: called once in each Ray actor, with `ledger_url` and what start_shared gave. num_gpus: share of a GPU that
    each needs. start_shared: called once Ray runs; gives handles of actors that all of them share.
    """

    build: Callable[..., Actor]
    num_gpus: float = 0.0
    start_shared: Callable[[], Mapping[str, Any]] = dict


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which of today's clips a job plans, once it has put them into the snapshot in their place.

    lines: what to tell of it. facts: what joins the summary. details: the job's own, for `Job.build_actor`.
    """

    lines: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    details: Any = None


def choose_all(ledger: Ledger, snapshot: Snapshot) -> Choice:
    """Plan every given clip as it is."""
    del ledger, snapshot
    return Choice()


def try_nothing() -> Sequence[str]:
    """Find the faults of our own code in the run itself."""
    return ()


def finish_nothing(ledger: Ledger, snapshot: Snapshot) -> Mapping[str, Any]:
    """Leave the output to the runner."""
    del ledger, snapshot
    return {}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One kind of job on clips.

    Attributes:
        kind: of its output, which other kinds refuse.
        plan_config: settings that decide the output; a run that resumes must have the same.
        plan_defaults: what counts for each of these in an output that is older than it.
        versions: of the packages that decide the output.
        choose: puts the clips to plan in place of the snapshot's given ones.
        build_actor: gives, for a choice, how actors are built.
        try_out: runs what an actor does once on made data, before anything is planned and in a thread of its own;
            gives lines to tell, which would be lost beside the start of Ray; raises what fails.
        trial: what it tries, in words.
        finish: commits the units that no actor gets, before the audit; what it returns joins the summary.
    """

    kind: str
    plan_config: Mapping[str, Any]
    plan_defaults: Mapping[str, Any]
    versions: Mapping[str, str]
    build_actor: Callable[[Choice], ActorSpec]
    choose: Callable[[Ledger, Snapshot], Choice] = choose_all
    try_out: Callable[[], Sequence[str]] = try_nothing
    trial: str = "nothing"
    finish: Callable[[Ledger, Snapshot], Mapping[str, Any]] = finish_nothing
