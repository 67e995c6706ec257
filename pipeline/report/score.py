"""The page of a scored collection: what people feel in it and how sure that is, clip by clip, night by night."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute

from pipeline.records.arrow import pc
from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.charts import MARK, Chart, colour_numbers, colours_of
from pipeline.report.parts import MAX_LISTED, Listing, Table
from pipeline.report.people import (
    BY_PATH,
    MAX_POINTS,
    MAX_POINTS_OF_PAGE,
    UNDECIDED,
    ShownClip,
    clip_view,
    view_command,
)
from pipeline.report.run import counts_of, ended_of, run_parts
from pipeline.report.templates import render
from pipeline.report.values import NONE, counted, interval, said, short


def labels_of(clips: pa.Table) -> pa.Table:
    """Rows of CLIP_LABEL_SCHEMA, of any classes, with `probability`, the highest of a clip's (null without a face), in
    place of the probabilities."""
    shares = clips["probabilities"]
    highest = pc.max_element_wise(*(pc.struct_field(shares, each.name) for each in shares.type))
    return clips.drop_columns("probabilities").append_column("probability", highest)


def score_page(
    summary: Mapping[str, Any],
    outcomes: pa.Table,
    labels: pa.Table,
    shown: Sequence[ShownClip],
    *,
    title: str,
    labels_url: str = "",
    no_thumbnails: bool = False,
    blur_faces: bool = False,
) -> str:
    """A night of a collection: states, totals, drift, labels, and some clips' people and their probabilities.

    outcomes: rows of OUTCOME_SCHEMA; where the summary counts all, those to list. labels: of `labels_of`. shown: of
    `shown_clips`, each by `shown_clip`. labels_url: where the labels lie, for the commands that show a clip's video.
    """
    num_charts = sum(len(clip.persons) for clip in shown)
    most_points = max(2, min(MAX_POINTS, MAX_POINTS_OF_PAGE // max(1, num_charts)))
    num_labelled = labels.num_rows - labels["probability"].null_count
    model: Mapping[str, Any] = summary["model"] if isinstance(summary.get("model"), Mapping) else {}
    classes = tuple(model.get("classes", EMOTIONS))
    drift = summary.get("drift") or {}
    return render(
        "score.html",
        title=title,
        lead=score_lead(summary, outcomes, labels),
        warnings=[*model.get("warnings", ()), *drift.get("warnings", ())],
        model_words=model.get("words", ()),
        run=run_parts(summary, outcomes),
        night=_night(summary),
        totals=_totals(labels, classes),
        legend=[{"kind": f"emotion-{number}", "name": name} for name, number in colour_numbers(classes).items()],
        labels=_listing(labels),
        num_labelled=num_labelled,
        no_thumbnails=no_thumbnails,
        clips=[
            clip_view(clip, most_points=most_points, blur_faces=blur_faces)
            | {"command": view_command(clip, labels_url) if labels_url else None}
            for clip in shown
        ],
        provenance={
            "The model": {name: short(each) for name, each in model.items() if not isinstance(each, list | dict)}
        },
    )


def score_lead(summary: Mapping[str, Any], outcomes: pa.Table, labels: pa.Table) -> list[str]:
    """The sentences that the page of a night begins with."""
    return _lead(ended_of(summary, outcomes).num_not_done, labels)


def _night(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The night's totals, and its figures beside those of the nights before; None where nothing was scored."""
    night, drift = summary.get("night"), summary.get("drift")
    if not night or drift is None:
        return None
    rows = []
    for name, figure in drift["figures"].items():
        is_vector = isinstance(figure["tonight"], Mapping)
        values = [NONE, NONE] if is_vector else [f"{figure['tonight']:.3f}", f"{figure['before']:.3f}"]
        jumped = "jumped" if figure["jumped"] else "steady"
        rows.append([name.replace("_", " "), *values, f"{figure['distance']:.3f}", f"{figure['limit']:.3f}", jumped])
        if is_vector:
            rows += [
                [f"share of {emotion}", f"{share:.3f}", f"{figure['before'][emotion]:.3f}"] + [NONE] * 3
                for emotion, share in figure["tonight"].items()
            ]
    caption = (
        f"This night beside the mean of {drift['nights']} before; the distance of the emotions is their total variation"
    )
    return {
        "warnings": drift["warnings"],
        "totals": {name: short(value) for name, value in night.items() if name != "emotions"},
        "num_before": drift["nights"],
        "compared": Table(caption, ["figure", "tonight", "before", "distance", "limit", "verdict"], rows)
        if rows
        else None,
    }


def _split_up(labels: pa.Table) -> tuple[dict[str, int], int]:
    """Of the clips with a face: how many have each emotion, the most first, and how many are undecided."""
    seen = labels.filter(pc.is_valid(labels["probability"]))
    counts = counts_of(seen["emotion"])
    num_undecided = counts.pop(None, 0)
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0]))), num_undecided


def _lead(num_not_done: int, labels: pa.Table) -> list[str]:
    """What people feel in the collection, and how sure that is."""
    counts, num_undecided = _split_up(labels)
    num_decided = sum(counts.values())
    num_seen = num_decided + num_undecided
    if not labels.num_rows:
        return ["Nothing was scored yet."]
    if not num_seen:
        return [f"No face was found in any of {counted(labels.num_rows, 'clip')}."]
    sure = f"the model is decided on {num_decided:,} of {counted(num_seen, 'clip')} with a face"
    if not counts:
        which = "the" if num_seen == 1 else "all"
        return [f"The model is undecided on {which} {counted(num_seen, 'clip')} with a face: take no label from it."]
    decided = f"{sure[0].upper()}{sure[1:]}"
    found = [
        _which_leads(counts),
        f"{decided}, and undecided on {num_undecided:,}." if num_undecided else f"{decided}.",
    ]
    if num_not_done:
        verb = "has" if num_not_done == 1 else "have"
        found.append(f"{counted(num_not_done, 'other clip')} {verb} no label: see below.")
    return found


def _which_leads(counts: Mapping[str, int]) -> str:
    """What most of the decided clips look, in a sentence. counts: of each emotion, the most first."""
    num_decided = sum(counts.values())
    (first, count), *others = counts.items()
    share, (low, high) = count / num_decided, interval(count / num_decided, num_decided)
    figures = f"{said(share)} of those it is decided on (95 %: {said(low)} to {said(high)})"
    leaders = [emotion for emotion, of_it in counts.items() if of_it == count]
    if len(leaders) > 1:
        return f"No emotion leads: {', '.join(leaders[:-1])} and {leaders[-1]} are {figures} each."
    then = f", then {others[0][0]} ({said(others[0][1] / num_decided)})" if others else ""
    return f"{f'Most clips look {first}' if share > 0.5 else f'{first} leads'}: {figures}{then}."


def _totals(labels: pa.Table, classes: Sequence[str]) -> Chart:
    """The share of each emotion among the decided clips with its interval, and the undecided beside them."""
    counts, num_undecided = _split_up(labels)
    num_decided = sum(counts.values())
    shares, lower, upper, rows = [], [], [], []
    for emotion in classes:
        count = counts.get(emotion, 0)
        share = count / num_decided if num_decided else 0.0
        low, high = interval(share, num_decided) if num_decided else (0.0, 0.0)
        shares.append(round(100 * share, 2))
        lower.append(round(100 * (share - low), 2))
        upper.append(round(100 * (high - share), 2))
        rows.append([emotion, count, said(share), f"{said(low)} to {said(high)}" if num_decided else None])
    rows.append([UNDECIDED, num_undecided, None, None])
    trace = {
        "type": "bar",
        "x": list(classes),
        "y": shares,
        "name": "percent",
        "marker": {"color": list(colours_of(classes).values())},
        "error_y": {"type": "data", "symmetric": False, "array": upper, "arrayminus": lower, "color": MARK},
    }
    title = f"Clips by label: percent of the {num_decided:,} decided ones, with 95 % intervals"
    numbers = Table(title, ["label", "clips", "of the decided", "95 %"], rows)
    return Chart([trace], title, "label", "percent of decided clips", numbers=numbers)


def _listing(labels: pa.Table) -> Listing:
    figures = ("num_faces", "num_tracks", "num_changes", "mean_entropy", "agreement")
    return Listing(
        "One row a clip: the mean over its faces",
        ["path", "emotion", "probability", "faces", "persons", "changes", "entropy", "agreement"],
        [
            [
                row["path"],
                row["emotion"] or _why(row["reason"]),
                row["probability"],
                *(row[name] if row[name] is None else round(row[name], 4) for name in figures),
            ]
            for row in labels.sort_by(BY_PATH)[:MAX_LISTED].to_pylist()
        ],
        choose="emotion",
        num_rows=labels.num_rows,
    )


def _why(reason: str | None) -> str | None:
    return UNDECIDED if reason == "abstained" else reason
