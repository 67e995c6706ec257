"""The page of a preprocessing run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute

from pipeline.records.arrow import pc
from pipeline.records.faces import Example
from pipeline.report.charts import histogram
from pipeline.report.pictures import pair_of
from pipeline.report.run import run_parts
from pipeline.report.templates import render
from pipeline.report.values import spread

MAX_PAIRS = 60


def preprocess_page(
    summary: Mapping[str, Any],
    outcomes: pa.Table,
    examples: Sequence[Example],
    *,
    title: str,
    no_thumbnails: bool = False,
    blur_faces: bool = False,
) -> str:
    """What a preprocessing run made: states, what is not done and why, a contact sheet, histograms, all clips.

    summary: as in summary.json. outcomes: rows of OUTCOME_SCHEMA. examples: those to show; at most 60 are, spread over
    what is given.
    """
    shown = [] if no_thumbnails else spread(examples, MAX_PAIRS)
    named = outcomes.filter(pc.field("clip_id").isin(pa.array([example.clip_id for example in shown], pa.string())))
    paths = dict(zip(named["clip_id"].to_pylist(), named["path"].to_pylist(), strict=True))
    read = outcomes.filter(pc.field("num_frames") > 0)
    rates = pc.divide(read["num_examples"].cast(pa.float64()), read["num_frames"]).to_numpy()
    sides = [math.sqrt(example.box.area) for example in examples]
    pairs = [_pair(example, paths.get(example.clip_id, example.clip_id), blur_faces=blur_faces) for example in shown]
    return render(
        "preprocess.html",
        title=title,
        run=run_parts(summary, outcomes),
        no_thumbnails=no_thumbnails,
        num_examples=len(examples),
        pairs=pairs,
        histograms=[
            histogram(rates, title="Faces kept per sampled frame, mean of each clip", unit="faces a frame"),
            histogram(sides, title="Box size of the examples read for this page", unit="px, root of the area"),
        ],
    )


def _pair(example: Example, path: str, *, blur_faces: bool) -> dict[str, Any]:
    where = f"{path}, {example.pts_seconds:.2f} s"
    pictures = pair_of(example.face_jpeg, example.context_jpeg, where=where, blur_faces=blur_faces)
    return {"pictures": pictures, "path": path, "seconds": f"{example.pts_seconds:.2f} s", "label": example.label}
