"""What the pages of runs share: how their inputs ended, what is not done and why, and the list of all.

Outcomes are tables of OUTCOME_SCHEMA: of a million clips only the rows that a page lists become objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute

from pipeline.records.arrow import pc
from pipeline.records.outcomes import State
from pipeline.report.parts import MAX_LISTED, facts_list, listing, percent, section, short, table, text


def counts_of(column: pa.ChunkedArray) -> dict[Any, int]:
    """How often each value is in a column."""
    found = pc.value_counts(column)
    return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))


def run_section(summary: Mapping[str, Any], outcomes: pa.Table) -> str:
    counts, num_rows = counts_of(outcomes["state"]), outcomes.num_rows
    return section(
        "Run",
        table(
            f"How the {num_rows:,} inputs ended",
            ["state", "clips", "share"],
            [
                [str(state), counts.get(state.value, 0), f"{percent(counts.get(state.value, 0) / (num_rows or 1))} %"]
                for state in State
            ],
        ),
        f"<p>{text(summary['audit'])}</p>" if "audit" in summary else "",
        facts_list(
            {name: each for name, each in summary.items() if isinstance(each, str | int | float) and name != "audit"}
        ),
    )


def not_done_section(outcomes: pa.Table, *, heading: str = "Not done") -> str:
    not_done = outcomes.filter(pc.field("state") != State.DONE.value)
    if not not_done.num_rows:
        return section(heading, "<p>Every clip is done.</p>")
    reasons = not_done.group_by(["state", "reason"]).aggregate([([], "count_all")]).to_pylist()
    # What somebody may have to act on comes first.
    not_done = not_done.append_column("is_last", pc.equal(not_done["state"], State.NO_FACE.value))
    urgent = not_done.sort_by([(name, "ascending") for name in ("is_last", "reason", "path")])
    return section(
        heading,
        table(
            "Reasons",
            ["state", "reason", "clips"],
            [
                [row["state"], row["reason"], row["count_all"]]
                for row in sorted(reasons, key=lambda row: (-row["count_all"], row["state"], row["reason"]))
            ],
        ),
        listing(
            "Clips that are not done",
            ["path", "state", "reason", "stage", "tries", "detail"],
            [
                [row[name] for name in ("path", "state", "reason", "stage", "attempts", "detail")]
                for row in urgent[:MAX_LISTED].to_pylist()
            ],
            choose="reason",
            num_rows=urgent.num_rows,
        ),
    )


def outcomes_section(outcomes: pa.Table) -> str:
    shown = outcomes.sort_by([("path", "ascending"), ("clip_id", "ascending")])[:MAX_LISTED]
    return section(
        "All clips",
        listing(
            "One row a clip; all of them are in outcomes.jsonl",
            ["path", "state", "frames", "without a face", "faces", "clamped", "tries", "seconds", "decoder", "whole"],
            [
                [
                    *(row["path"], row["state"], row["num_frames"], row["num_faceless_frames"], row["num_examples"]),
                    *(row["num_boxes_clamped"], row["attempts"], round(row["seconds"], 2), row["decoder"]),
                    short(row["decode_integrity"]),
                ]
                for row in shown.to_pylist()
            ],
            choose="state",
            num_rows=outcomes.num_rows,
        ),
    )
