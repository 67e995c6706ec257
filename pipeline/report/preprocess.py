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
from pipeline.report.parts import note, page, section, spread, text
from pipeline.report.pictures import pair_images
from pipeline.report.run import not_done_section, outcomes_section, run_section

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
    return page(
        title,
        [
            run_section(summary, outcomes),
            not_done_section(outcomes),
            section(
                "Faces and contexts",
                "<p>Left out by --no-thumbnails.</p>"
                if no_thumbnails
                else note(len(shown), len(examples), "of the examples read for this page"),
                _sheet(shown, paths, blur_faces=blur_faces) if shown else "",
            ),
            section(
                "Histograms",
                histogram(rates, title="Faces kept per sampled frame, mean of each clip", unit="faces a frame"),
                histogram(sides, title="Box size of the examples read for this page", unit="px, root of the area"),
            ),
            outcomes_section(outcomes),
        ],
    )


def _sheet(examples: Sequence[Example], paths: Mapping[str, str], *, blur_faces: bool) -> str:
    pairs = (_pair(example, paths.get(example.clip_id, example.clip_id), blur_faces=blur_faces) for example in examples)
    return f'<ul class="sheet">{"".join(pairs)}</ul>'


def _pair(example: Example, path: str, *, blur_faces: bool) -> str:
    label = f" · {example.label}" if example.label else ""
    where = f"{path}, {example.pts_seconds:.2f} s"
    return (
        "<li><figure>"
        + pair_images(example.face_jpeg, example.context_jpeg, where=where, blur_faces=blur_faces)
        + f"<figcaption>{text(path)}<br>{example.pts_seconds:.2f} s{text(label) if label else ''}</figcaption>"
        "</figure></li>"
    )
