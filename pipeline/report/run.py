"""What the pages of runs share: how their inputs ended, what is not done and why, and the list of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.records import Outcome, State
from pipeline.report.parts import facts_list, listing, percent, section, short, table


def run_section(summary: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    counts = Counter(outcome.state for outcome in outcomes)
    return section(
        "Run",
        table(
            f"How the {len(outcomes):,} inputs ended",
            ["state", "clips", "share"],
            [
                [str(state), counts[state], f"{percent(counts[state] / len(outcomes) if outcomes else None)} %"]
                for state in State
            ],
        ),
        facts_list({name: value for name, value in summary.items() if isinstance(value, str | int | float)}),
    )


def not_done_section(outcomes: Sequence[Outcome], *, heading: str = "Not done") -> str:
    not_done = [outcome for outcome in outcomes if outcome.state is not State.DONE]
    if not not_done:
        return section(heading, "<p>Every clip is done.</p>")
    reasons = Counter((str(outcome.state), outcome.reason) for outcome in not_done)
    # What somebody may have to act on comes first.
    urgent = sorted(not_done, key=lambda outcome: (outcome.state is State.NO_FACE, outcome.reason or "", outcome.path))
    return section(
        heading,
        table(
            "Reasons",
            ["state", "reason", "clips"],
            [[state, reason, count] for (state, reason), count in sorted(reasons.items(), key=lambda item: -item[1])],
        ),
        listing(
            "Clips that are not done",
            ["path", "state", "reason", "stage", "tries", "detail"],
            [[o.path, str(o.state), o.reason, o.stage, o.attempts, o.detail] for o in urgent],
            choose="reason",
        ),
    )


def outcomes_section(outcomes: Sequence[Outcome]) -> str:
    return section(
        "All clips",
        listing(
            "One row a clip; all of them are in outcomes.jsonl",
            ["path", "state", "frames", "without a face", "faces", "clamped", "tries", "seconds", "decoder", "whole"],
            [
                [
                    *(o.path, str(o.state), o.num_frames, o.num_faceless_frames, o.num_examples, o.num_boxes_clamped),
                    *(o.attempts, round(o.seconds, 2), o.decoder, short(o.decode_integrity)),
                ]
                for o in outcomes
            ],
            choose="state",
        ),
    )
