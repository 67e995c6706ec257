"""How a clip ended: its state and outcome, and how the outcomes of segments add up to that of their clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa

from pipeline.records.clips import Clip
from pipeline.records.columns import Share, column, columns_of, schema_of

# Reasons of segments that exist only because a header claimed a longer clip than the file holds.
NOT_THERE = ("range_past_end", "no_frames")
# Reason of clips on which our own code raised what nobody foresaw.
OWN_FAULT = "exception"
# Reason of clips whose files were still being written: longer than when they were listed, and the same so far.
GROWING = "growing"


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
    reason: str | None = column("short stable word, null when done in full", default=None)
    stage: str | None = column("where it ended, or null", default=None)
    detail: str | None = column("for people, or null", default=None, from_child=True)
    num_frames: int = column("sampled frames decoded", default=0, segments="sum", from_child=True)
    num_faceless_frames: int = column("frames without a face", default=0, segments="sum", from_child=True)
    num_examples: int = column("rows written", default=0, segments="sum", from_child=True)
    num_examples_dropped: int = column("examples made and then dropped with their clip", default=0, segments="sum")
    num_boxes_clamped: int = column("boxes that passed the frame's edge", default=0, segments="sum", from_child=True)
    num_faces_small: int = column("faces left out as too small", default=0, segments="sum", from_child=True)
    num_faces_blurred: int = column("faces left out as too blurred", default=0, segments="sum", from_child=True)
    num_faces_turned: int = column("faces left out as turned away", default=0, segments="sum", from_child=True)
    num_frames_over_budget: int = column(
        "sampled frames left out, as the clip's time or pixels were used up", default=0, segments="sum", from_child=True
    )
    attempts: int = column("tries of this clip", default=1, segments="max", arrow=pa.int32())
    seconds: float = column("wall time of the clip", default=0.0, segments="sum")
    decoder: str | None = column("what made the frames, or null", default=None, from_child=True)
    decoder_reason: str | None = column("why that one, or null", default=None, from_child=True)
    decode_integrity: Share | None = column(
        "1 where every frame is sound, null if unknown", default=None, segments="mean", from_child=True
    )
    frame_hash: str | None = column(
        "difference hash of the first example's context, 64 bits as hexadecimal digits, or null", default=None
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


def replaced_outcome(clip: Clip) -> Outcome:
    """The outcome of a planned clip whose path holds other bytes now, which are an input of their own."""
    return Outcome(
        clip_id=clip.clip_id, path=clip.path, state=State.CHANGED, reason="replaced", stage="plan", attempts=0
    )


def interrupted_outcome(clip: Clip) -> Outcome:
    """The outcome of a clip of a unit whose run was interrupted before the clip was read."""
    return Outcome(
        clip_id=clip.clip_id,
        path=clip.path,
        state=State.RETRYABLE,
        reason="interrupted",
        stage="plan",
        detail="the run was interrupted before it was read",
        attempts=0,
    )


def forgotten_outcome(clip_id: str, path: str) -> Outcome:
    """The outcome of a clip that was deleted on request."""
    return Outcome(
        clip_id=clip_id,
        path=path,
        state=State.FORGOTTEN,
        reason="forgotten",
        stage="forget",
        detail="deleted on request",
        attempts=0,
    )
