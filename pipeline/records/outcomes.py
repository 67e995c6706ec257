"""How a clip ended: its state and outcome, and how the outcomes of segments add up to that of their clip."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import pyarrow as pa

from pipeline.records.clips import whole_id
from pipeline.records.columns import column, columns_of, schema_of

# Reasons of segments that exist only because a header claimed a longer clip than the file holds.
NOT_THERE = ("range_past_end", "no_frames")


class State(StrEnum):
    """Where an input ended: every input ends in exactly one state."""

    DONE = "done"
    NO_FACE = "no_face"
    QUARANTINED = "quarantined"
    RETRYABLE = "retryable"
    CHANGED = "changed"
    FORGOTTEN = "forgotten"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How one clip ended. `reason` is a short stable word for every state but done; `detail` is for people.

    Each field is declared once: the columns of outcomes.jsonl and of the ledger, what the sandboxed child reports, how
    segments add up and the counts of the summary (the sums of all `num_` columns) follow from it.
    """

    clip_id: str = column("stable id of the clip, 20 hexadecimal digits")
    path: str = column("path relative to the input root")
    state: State = column("done, no_face, quarantined, retryable, changed or forgotten")
    reason: str | None = column("short stable word, null when done", default=None)
    stage: str | None = column("where it ended, or null", default=None)
    detail: str | None = column("for people, or null", default=None, from_child=True)
    num_frames: int = column("sampled frames decoded", default=0, segments="sum", from_child=True)
    num_faceless_frames: int = column("frames without a face", default=0, segments="sum", from_child=True)
    num_examples: int = column("rows written", default=0, segments="sum", from_child=True)
    num_examples_dropped: int = column("examples made and then dropped with their clip", default=0, segments="sum")
    num_boxes_clamped: int = column("boxes that passed the frame's edge", default=0, segments="sum", from_child=True)
    attempts: int = column("tries of this clip", default=1, segments="max", arrow=pa.int32())
    seconds: float = column("wall time of the clip", default=0.0, segments="sum")
    decoder: str | None = column("what made the frames, or null", default=None, from_child=True)
    decoder_reason: str | None = column("why that one, or null", default=None, from_child=True)
    decode_integrity: float | None = column(
        "1 where every frame is sound, null if unknown", default=None, segments="mean", from_child=True
    )

    def __post_init__(self) -> None:
        if self.state is not State.DONE and not self.reason:
            raise ValueError(f"clip {self.path}: state {self.state} needs a reason")


OUTCOME_SCHEMA = schema_of(Outcome, "one row per clip: how it ended")
# The counts of a summary: the name there, and the column that is summed.
COUNTED = {each.name.removeprefix("num_"): each.name for each in columns_of(Outcome) if each.name.startswith("num_")}


def outcome_of(row: Mapping[str, Any]) -> Outcome:
    """The Outcome of a row of JSON, as in outcomes.jsonl and in ledger entries, also of older versions."""
    names = OUTCOME_SCHEMA.names
    return Outcome(**{name: row[name] for name in names if name in row and name != "state"}, state=State(row["state"]))


def joined(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """One outcome for each whole clip, in the order given, from those of its segments.

    retryable while any segment is; else done, if any gave examples: `detail` names what is missing of it.
    """
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(whole_id(outcome.clip_id), []).append(outcome)
    return [_join(clip_id, parts) for clip_id, parts in groups.items()]


def _join(clip_id: str, parts: Sequence[Outcome]) -> Outcome:
    if [part.clip_id for part in parts] == [clip_id]:
        return parts[0]
    real = [part for part in parts if part.reason not in NOT_THERE] or list(parts)
    by_state = {state: [part for part in real if part.state is state] for state in State}
    order = (State.RETRYABLE, State.DONE, State.QUARANTINED, State.NO_FACE)
    state = next(state for state in order if by_state[state])
    first = by_state[state][0]
    failed = by_state[State.QUARANTINED]
    detail = first.detail
    if failed:
        detail = (
            f"{len(failed)} of {len(real)} segments are quarantined, the first: {failed[0].reason}: {failed[0].detail}"
        )
    values = {
        each.name: _combine(each.name, each.metadata["segments"], parts, real)
        for each in columns_of(Outcome)
        if each.metadata["segments"] != "first"
    }
    return replace(first, clip_id=clip_id, detail=detail, **values)


def _combine(name: str, rule: str, parts: Sequence[Outcome], real: Sequence[Outcome]) -> Any:
    """One column of a clip from those of its segments, by the column's rule."""
    if rule == "max":
        return max(getattr(part, name) for part in real)
    if rule == "sum":
        total = sum(getattr(part, name) for part in parts)
        return round(total, 3) if isinstance(total, float) else total
    known = [(getattr(part, name), max(1, part.num_frames)) for part in real if getattr(part, name) is not None]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None
