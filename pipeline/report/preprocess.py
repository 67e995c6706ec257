"""The page of a preprocessing run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute

from pipeline.records.arrow import pc
from pipeline.records.faces import Example
from pipeline.records.vocabulary import SPLITS
from pipeline.report.charts import histogram
from pipeline.report.parts import Table
from pipeline.report.pictures import pair_of
from pipeline.report.run import Ended, ended_of, ended_sentence, run_parts
from pipeline.report.templates import render
from pipeline.report.values import spread

MAX_PAIRS = 60


def preprocess_page(
    summary: Mapping[str, Any],
    outcomes: pa.Table,
    examples: Sequence[Example],
    *,
    title: str,
    classes: Sequence[Mapping[str, Any]] = (),
    provenance: Mapping[str, Mapping[str, Any]] | None = None,
    no_thumbnails: bool = False,
    blur_faces: bool = False,
) -> str:
    """What a preprocessing run made: did every clip end, and is the data good?

    Args:
        summary: as in summary.json.
        outcomes: rows of OUTCOME_SCHEMA; where the summary counts all, those to list and those of the examples.
        examples: those to show; at most 60 are, spread over what is given.
        classes: of each split and label the numbers of `clips` and `examples`.
        provenance: facts by heading, for the end of the page.
    """
    shown = [] if no_thumbnails else spread(examples, MAX_PAIRS)
    named = outcomes.filter(pc.field("clip_id").isin(pa.array([example.clip_id for example in shown], pa.string())))
    paths = dict(zip(named["clip_id"].to_pylist(), named["path"].to_pylist(), strict=True))
    read = outcomes.filter(pc.field("num_frames") > 0)
    rates = pc.divide(read["num_examples"].cast(pa.float64()), read["num_frames"]).to_numpy()
    ended = ended_of(summary, outcomes)
    which = "" if outcomes.num_rows == ended.num_inputs else f" of {outcomes.num_rows:,} clips, first by path"
    sides = [math.sqrt(example.box.area) for example in examples]
    scores = [example.face_score for example in examples]
    sheets: dict[str, list[dict[str, Any]]] = {}
    for example in sorted(shown, key=lambda each: (each.label or "", each.face_score, each.clip_id)):
        pair = _pair(example, paths.get(example.clip_id, example.clip_id), blur_faces=blur_faces)
        sheets.setdefault(example.label or "without a label", []).append(pair)
    return render(
        "preprocess.html",
        title=title,
        lead=[ended_sentence(ended), *_data_sentences(ended, examples, classes)],
        warnings=[],
        run=run_parts(summary, outcomes),
        classes=_class_table(classes),
        no_thumbnails=no_thumbnails,
        num_shown=len(shown),
        num_examples=len(examples),
        sheets=sheets,
        histograms=[
            histogram(rates, title=f"Faces kept per sampled frame, mean of each clip{which}", unit="faces a frame"),
            histogram(sides, title="Box size of the examples read for this page", unit="px, root of the area"),
            *([histogram(scores, title="Score of their faces", unit="the detector's score")] if any(scores) else []),
        ],
        provenance=provenance or {},
    )


def _data_sentences(ended: Ended, examples: Sequence[Example], classes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether the data is good, in a sentence or two."""
    if not ended.num_examples:
        return ["No face was found, so there is nothing to train on."]
    sentence = f"{ended.num_examples:,} faces were cut out of {ended.num_frames:,} sampled frames"
    if examples:
        sides = sorted(math.sqrt(example.box.area) for example in examples)
        sentence += f"; half of those looked at for this page are larger than {sides[len(sides) // 2]:.0f} px"
    found = [f"{sentence}."]
    of_class = Counter({label: 0 for label in (row["label"] for row in classes) if label})
    for row in classes:
        if row["label"] and row["split"] == "train":
            of_class[row["label"]] += row["examples"]
    if len(of_class) > 1:
        (most, num_most), (least, num_least) = of_class.most_common()[0], of_class.most_common()[-1]
        if not num_least:
            found.append(f"In train, {least} has no example.")
        elif num_least == num_most:
            found.append(f"In train, each of the {len(of_class)} classes has {num_most:,} examples.")
        else:
            found.append(f"In train, {most} has most examples ({num_most:,}) and {least} least ({num_least:,}).")
    return found


def _class_table(classes: Sequence[Mapping[str, Any]]) -> Table | None:
    """Clips, and examples behind them, of each class and split; None where nothing has a label."""
    if not any(row["label"] for row in classes):
        return None
    splits = sorted({row["split"] or "no split" for row in classes}, key=lambda name: (*SPLITS, name).index(name))
    cells = {(row["label"] or "no label", row["split"] or "no split"): row for row in classes}
    rows = []
    for label in sorted({label for label, _ in cells}):
        own = [cells.get((label, split)) for split in splits]
        rows.append([label, *(f"{each['clips']:,} · {each['examples']:,}" if each else None for each in own)])
    return Table("Clips · examples of each class by split", ["class", *splits], rows)


def _pair(example: Example, path: str, *, blur_faces: bool) -> dict[str, Any]:
    where = f"{path}, {example.pts_seconds:.2f} s"
    pictures = pair_of(example.face_jpeg, example.context_jpeg, where=where, blur_faces=blur_faces)
    return {"pictures": pictures, "path": path, "seconds": f"{example.pts_seconds:.2f} s", "score": example.face_score}
