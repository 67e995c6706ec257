"""What the pages of runs share: how their inputs ended, what is not done and why, and the list of all.

Outcomes are tables of OUTCOME_SCHEMA: of all inputs, or, where the summary counts these, of those that a page lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute

from pipeline.records.arrow import pc
from pipeline.records.outcomes import State
from pipeline.report.cures import cure_of
from pipeline.report.parts import MAX_LISTED, Bar, Listing, Table, bar_of
from pipeline.report.values import percent, said, short

REPLACED = "replaced"
# The states in words, behind a count.
WORDS = {
    State.DONE: "done",
    State.NO_FACE: "without a face",
    State.QUARANTINED: "quarantined",
    State.RETRYABLE: "to be tried again",
    State.CHANGED: "changed since",
    State.FORGOTTEN: "forgotten on request",
}


@dataclass(frozen=True)
class Ended:
    """How many inputs ended in each state, and in each state for each reason; what was read and kept of them all."""

    counts: Mapping[str, int]
    reasons: Mapping[tuple[str, str], int]
    num_frames: int
    num_examples: int

    @property
    def num_inputs(self) -> int:
        """The sum of the states."""
        return sum(self.counts.values())

    @property
    def num_replaced(self) -> int:
        """Inputs at whose path other bytes lie now, which are an input of their own: history, and none of the clips."""
        return self.reasons.get((State.CHANGED.value, REPLACED), 0)

    @property
    def of_clips(self) -> dict[str, int]:
        """How many of the inputs that are there ended in each state."""
        return {state: num - self.num_replaced * (state == State.CHANGED) for state, num in self.counts.items()}

    @property
    def num_clips(self) -> int:
        """The inputs that are there."""
        return self.num_inputs - self.num_replaced

    @property
    def num_not_done(self) -> int:
        """Those of them that have nothing to show."""
        return self.num_clips - self.counts.get(State.DONE.value, 0)


@dataclass(frozen=True)
class RunParts:
    """How the inputs of a run ended. reasons, not_done: None where every clip is done."""

    audit: str | None
    bar: Bar
    states: Table
    facts: Mapping[str, Any]
    reasons: Table | None
    not_done: Listing | None
    clips: Listing


def ended_of(summary: Mapping[str, Any], outcomes: pa.Table) -> Ended:
    """How the inputs of a run ended, by its summary or, where that does not say it, by its outcomes."""
    if "reasons" in summary:
        counts = {state.value: summary.get(state.value, 0) for state in State}
        reasons = {tuple(name.split(": ", 1)): count for name, count in summary["reasons"].items()}
        return Ended(counts, reasons, summary["frames"], summary["examples"])
    rows = outcomes.filter(pc.is_valid(outcomes["reason"])).group_by(["state", "reason"]).aggregate([([], "count_all")])
    reasons = {(row["state"], row["reason"]): row["count_all"] for row in rows.to_pylist()}
    num_frames, num_examples = (pc.sum(outcomes[name]).as_py() or 0 for name in ("num_frames", "num_examples"))
    return Ended(counts_of(outcomes["state"]), reasons, num_frames, num_examples)


def run_parts(summary: Mapping[str, Any], outcomes: pa.Table) -> RunParts:
    """What a page says of a run. summary: as in summary.json."""
    ended = ended_of(summary, outcomes)
    counts, num_rows = ended.counts, ended.num_inputs
    num_not_done = ended.num_not_done
    states = [
        [str(state), counts.get(state.value, 0), f"{percent(counts.get(state.value, 0) / (num_rows or 1))} %"]
        for state in State
    ]
    facts = {name: each for name, each in summary.items() if isinstance(each, str | int | float) and name != "audit"}
    is_history = pc.fill_null(pc.equal(outcomes["reason"], REPLACED), fill_value=False)
    not_done = outcomes.filter(pc.invert(is_history)).filter(pc.field("state") != State.DONE.value)
    return RunParts(
        audit=summary.get("audit"),
        bar=bar_of(
            "How the clips ended", [(state.value, ended.of_clips.get(state.value, 0), WORDS[state]) for state in State]
        ),
        states=Table(f"How the {num_rows:,} inputs ended", ["state", "clips", "share"], states),
        facts=facts,
        reasons=_reasons(ended.reasons) if num_not_done else None,
        not_done=_not_done(not_done, num_rows=num_not_done) if num_not_done else None,
        clips=_clips(outcomes, num_rows=num_rows),
    )


def ended_sentence(ended: Ended) -> str:
    """How the inputs ended, in a sentence."""
    counts, num = ended.of_clips, ended.num_clips
    if not num:
        return "There was nothing to do: the input holds no clips."
    done = counts.get(State.DONE.value, 0)
    others = [
        f"{counts[state.value]:,} {WORDS[state]}" for state in State if counts.get(state.value) and state != "done"
    ]
    if done == num:
        return f"All {num:,} clips are done."
    return f"{done:,} of {num:,} clips ({said(done / num)}) are done; {', '.join(others)}."


def counts_of(column: pa.ChunkedArray) -> dict[Any, int]:
    """How often each value is in a column."""
    found = pc.value_counts(column)
    return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))


def _reasons(reasons: Mapping[tuple[str, str], int]) -> Table:
    rows = [
        [state, reason, count, cure_of(reason)]
        for (state, reason), count in sorted(reasons.items(), key=lambda each: (-each[1], each[0]))
        if reason != REPLACED
    ]
    return Table("Reasons", ["state", "reason", "clips", "what to do"], rows)


def _not_done(not_done: pa.Table, *, num_rows: int) -> Listing:
    # What somebody may have to act on comes first.
    not_done = not_done.append_column("is_last", pc.equal(not_done["state"], State.NO_FACE.value))
    urgent = not_done.sort_by([(name, "ascending") for name in ("is_last", "reason", "path")])
    fields = ("path", "state", "reason", "stage", "attempts", "detail")
    return Listing(
        "Clips that are not done",
        ["path", "state", "reason", "stage", "tries", "detail"],
        [[row[name] for name in fields] for row in urgent[:MAX_LISTED].to_pylist()],
        choose="reason",
        num_rows=num_rows,
    )


def _clips(outcomes: pa.Table, *, num_rows: int) -> Listing:
    rows = outcomes.sort_by([("path", "ascending"), ("clip_id", "ascending")])[:MAX_LISTED].to_pylist()
    return Listing(
        "One row a clip; all of them are in outcomes.jsonl",
        ["path", "state", "frames", "without a face", "faces", "clamped", "tries", "seconds", "decoder", "whole"],
        [
            [
                *(row["path"], row["state"], row["num_frames"], row["num_faceless_frames"], row["num_examples"]),
                *(row["num_boxes_clamped"], row["attempts"], round(row["seconds"], 2), row["decoder"]),
                short(row["decode_integrity"]),
            ]
            for row in rows
        ],
        choose="state",
        num_rows=num_rows,
    )
