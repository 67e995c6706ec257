"""How a clip ended: states, outcomes, and the outcome of a clip that was cut, from those of its segments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from pipeline.records.clips import whole_id


class State(StrEnum):
    """Where an input ended: every input ends in exactly one state."""

    DONE = "done"
    NO_FACE = "no_face"
    QUARANTINED = "quarantined"
    RETRYABLE = "retryable"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one clip ended. `reason` is a short stable word for every state but done; `detail` is for people.

    num_frames: sampled frames decoded. num_examples: rows written. num_examples_dropped: rows made and not written,
    since the clip decoded too badly. attempts: tries of this clip, 1 or more.
    decode_integrity: 1.0 where every frame of the container was decoded, distinct and uncorrupted; None if unknown.
    """

    clip_id: str
    path: str
    state: State
    reason: str | None = None
    stage: str | None = None
    detail: str | None = None
    num_frames: int = 0
    num_faceless_frames: int = 0
    num_examples: int = 0
    num_examples_dropped: int = 0
    num_boxes_clamped: int = 0
    attempts: int = 1
    seconds: float = 0.0
    decoder: str | None = None
    decoder_reason: str | None = None
    decode_integrity: float | None = None

    def __post_init__(self) -> None:
        if self.state is not State.DONE and not self.reason:
            raise ValueError(f"clip {self.path}: state {self.state} needs a reason")


def outcome_of(row: Mapping[str, Any]) -> Outcome:
    """The Outcome of a row of JSON, as in outcomes.jsonl and in ledger entries."""
    return Outcome(**{**row, "state": State(row["state"])})


# Reasons of segments that a header which claims too much has made.
NOT_THERE = ("range_past_end", "no_frames")


def joined(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """One outcome for each whole clip, in the order given, out of those of its segments.

    retryable while any segment is; else done, if any gave examples: `detail` names what is missing of it.
    """
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(whole_id(outcome.clip_id), []).append(outcome)
    return [_joined(clip_id, parts) for clip_id, parts in groups.items()]


def _joined(clip_id: str, parts: Sequence[Outcome]) -> Outcome:
    if [part.clip_id for part in parts] == [clip_id]:
        return parts[0]
    real = [part for part in parts if part.reason not in NOT_THERE] or list(parts)
    by_state = {state: [part for part in real if part.state is state] for state in State}
    order = (State.RETRYABLE, State.DONE, State.QUARANTINED, State.NO_FACE)
    state = next(state for state in order if by_state[state])
    first = by_state[state][0]
    failed = by_state[State.QUARANTINED]
    told = first.detail
    if failed:
        told = (
            f"{len(failed)} of {len(real)} segments are quarantined, the first: {failed[0].reason}: {failed[0].detail}"
        )
    weights = [(part.decode_integrity, max(1, part.num_frames)) for part in real if part.decode_integrity is not None]
    return replace(
        first,
        clip_id=clip_id,
        detail=told,
        num_frames=sum(part.num_frames for part in real),
        num_faceless_frames=sum(part.num_faceless_frames for part in real),
        num_examples=sum(part.num_examples for part in parts),
        num_examples_dropped=sum(part.num_examples_dropped for part in real),
        num_boxes_clamped=sum(part.num_boxes_clamped for part in real),
        attempts=max(part.attempts for part in real),
        seconds=round(sum(part.seconds for part in parts), 3),
        decode_integrity=sum(a * b for a, b in weights) / sum(b for _, b in weights) if weights else None,
    )
