"""The page of a scored collection: the night's totals and drift, labels, and people's emotions over time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute

from pipeline.records.arrow import pc
from pipeline.records.faces import Box, Thumbnail
from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.charts import COLOURS, DASHES, OURS, Chart, bars, line
from pipeline.report.parts import MAX_LISTED, Listing, Table
from pipeline.report.pictures import MAX_THUMBNAILS, PERSON_COLOURS, drawn_frame
from pipeline.report.run import counts_of, run_parts
from pipeline.report.templates import render
from pipeline.report.values import NONE, counted, percent, short, spread

MAX_TIMELINES = 40


MAX_TRACKS = 4


MAX_POINTS = 300


# Of all timelines together: each point is 250 bytes of chart and table.
MAX_POINTS_OF_PAGE = 16_000


_BY_PATH = [("path", "ascending"), ("clip_id", "ascending")]


Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownClip:
    """What the page shows of one clip, however long it is.

    label: its row of `labels_of`. persons: rows of TRACK_SCHEMA of those seen most, in order of appearance.
    num_persons: of all. faces: of each person rows of FRAME_SCHEMA in order of time, spread over all. boxes:
    (track_index, box) of the faces in each pictured frame.
    """

    label: Row
    persons: Sequence[Row]
    num_persons: int
    faces: Mapping[int, Sequence[Row]]
    pictures: Sequence[Thumbnail]
    boxes: Mapping[int, Sequence[tuple[int, Box]]]


def labels_of(clips: pa.Table) -> pa.Table:
    """Rows of CLIP_LABEL_SCHEMA with `probability`, the highest of a clip's seven (null without a face), in place of
    the probabilities."""
    seven = clips["probabilities"]
    highest = pc.max_element_wise(*(pc.struct_field(seven, name) for name in EMOTIONS))
    return clips.drop_columns("probabilities").append_column("probability", highest)


def shown_clips(labels: pa.Table, pictured: Collection[str]) -> list[Row]:
    """The rows of the at most 40 clips whose people the page shows: spread over all, of those with pictures first.

    labels: of `labels_of`. pictured: the clip_ids of which there are pictures.
    """
    labelled = labels.filter(pc.is_valid(labels["probability"])).sort_by(_BY_PATH)
    has_pictures = pc.is_in(labelled["clip_id"], value_set=pa.array(sorted(pictured), pa.string()))
    seen = _spread_rows(labelled.filter(has_pictures), MAX_TIMELINES)
    unseen = _spread_rows(labelled.filter(pc.invert(has_pictures)), MAX_TIMELINES - seen.num_rows)
    return pa.concat_tables([seen, unseen]).sort_by(_BY_PATH).to_pylist()


def shown_clip(label: Row, frames: pa.Table, tracks: pa.Table, pictures: Sequence[Thumbnail]) -> ShownClip:
    """What the page shows of one clip. frames, tracks: its rows of FRAME_SCHEMA and TRACK_SCHEMA. pictures: all that
    there are of it."""
    pictures = spread(sorted(pictures, key=lambda picture: picture.pts_seconds), MAX_THUMBNAILS)
    most = tracks.sort_by([("num_faces", "descending"), ("track_index", "ascending")])[:MAX_TRACKS].to_pylist()
    faces = {}
    for person in most:
        own = frames.filter(pc.field("track_index") == person["track_index"]).sort_by("pts_seconds")
        faces[person["track_index"]] = _spread_rows(own, MAX_POINTS).to_pylist()
    boxes: defaultdict[int, list[tuple[int, Box]]] = defaultdict(list)
    pictured = pa.array([picture.frame_index for picture in pictures], pa.int64())
    for row in frames.filter(pc.field("frame_index").isin(pictured)).to_pylist():
        boxes[row["frame_index"]].append((row["track_index"], Box(**row["box"])))
    return ShownClip(
        label=label,
        persons=sorted(most, key=lambda row: row["track_index"]),
        num_persons=tracks.num_rows,
        faces=faces,
        pictures=pictures,
        boxes=boxes,
    )


def _spread_rows(rows: pa.Table, most: int) -> pa.Table:
    return rows.take(spread(range(rows.num_rows), most)) if rows.num_rows > most else rows


def score_page(
    summary: Mapping[str, Any],
    outcomes: pa.Table,
    labels: pa.Table,
    shown: Sequence[ShownClip],
    *,
    title: str,
    no_thumbnails: bool = False,
    blur_faces: bool = False,
) -> str:
    """A night of a collection: states, totals, drift, labels, and some clips' people and their probabilities.

    outcomes: rows of OUTCOME_SCHEMA. labels: of `labels_of`. shown: of `shown_clips`, each by `shown_clip`.
    """
    num_charts = sum(len(clip.persons) for clip in shown)
    most_points = max(2, min(MAX_POINTS, MAX_POINTS_OF_PAGE // max(1, num_charts)))
    num_labelled = labels.num_rows - labels["probability"].null_count
    return render(
        "score.html",
        title=title,
        run=run_parts(summary, outcomes),
        night=_night(summary),
        totals=_totals(labels),
        labels=_listing(labels),
        num_labelled=num_labelled,
        no_thumbnails=no_thumbnails,
        clips=[_clip(clip, most_points=most_points, blur_faces=blur_faces) for clip in shown],
    )


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
                [f"share of {emotion}", f"{figure['tonight'][emotion]:.3f}", f"{figure['before'][emotion]:.3f}"]
                + [NONE] * 3
                for emotion in EMOTIONS
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


def _totals(labels: pa.Table) -> Chart:
    totals = counts_of(labels["emotion"])
    traces = [bars(list(EMOTIONS), [totals.get(emotion, 0) for emotion in EMOTIONS], name="clips", colour=OURS)]
    return Chart(traces, "Clips by label", "label", "clips")


def _listing(labels: pa.Table) -> Listing:
    figures = ("num_faces", "num_tracks", "num_changes", "mean_entropy", "agreement")
    return Listing(
        "One row a clip: the mean over its faces",
        ["path", "emotion", "probability", "faces", "persons", "changes", "entropy", "agreement"],
        [
            [row["path"], row["emotion"] or row["reason"], row["probability"], *(row[name] for name in figures)]
            for row in labels.sort_by(_BY_PATH)[:MAX_LISTED].to_pylist()
        ],
        choose="emotion",
        num_rows=labels.num_rows,
    )


def _clip(clip: ShownClip, *, most_points: int, blur_faces: bool) -> dict[str, Any]:
    """One clip: its label, its frames, and under them each person's probabilities over time."""
    label = clip.label
    frames = []
    for picture in clip.pictures:
        own = clip.boxes.get(picture.frame_index, ())
        drawn = drawn_frame(picture, own, alt=_alt(picture, own), blur_faces=blur_faces)
        frames.append({"picture": drawn, "seconds": f"{picture.pts_seconds:.2f} s"})
    persons = [
        _person(person, clip.faces[person["track_index"]], path=label["path"], most_points=most_points)
        for person in clip.persons
    ]
    return {
        "path": label["path"],
        "said": _said(label, label["probability"]),
        "found": f"{counted(label['num_faces'], 'face')} of {counted(label['num_tracks'], 'person')} in"
        f" {counted(label['num_frames'], 'frame')}",
        "frames": frames,
        "persons": persons,
        "num_persons": clip.num_persons,
    }


def _alt(picture: Thumbnail, boxes: Sequence[tuple[int, Box]]) -> str:
    numbers = ", ".join(str(track_index + 1) for track_index, _ in boxes)
    return f"Frame at {picture.pts_seconds:.2f} s, person {numbers or 'none'}"


def _said(row: Row, probability: float) -> str:
    return f"{row['emotion'] or row['reason']}, {probability:.0%}"


def _person(person: Row, faces: Sequence[Row], *, path: str, most_points: int) -> dict[str, Any]:
    """One person: its label, and the seven probabilities at each of its faces."""
    moments = spread(faces, most_points)
    number, shares = person["track_index"] + 1, person["emotion_shares"]
    times = ", ".join(
        f"{emotion} {percent(shares[emotion])} %"
        for emotion in sorted(EMOTIONS, key=lambda emotion: -shares[emotion])
        if shares[emotion]
    )
    traces = [
        line(
            [round(row["pts_seconds"], 3) for row in moments],
            [round(float(row["probabilities"][emotion]), 4) for row in moments],
            name=emotion,
            colour=COLOURS[emotion],
            dash=DASHES[emotion],
        )
        for emotion in EMOTIONS
    ]
    title = f"Probabilities over time of person {number} of {path}"
    return {
        "number": number,
        "colour": person["track_index"] % len(PERSON_COLOURS),
        "said": _said(person, max(person["probabilities"].values())),
        "times": f"{times or NONE} of the time; {counted(person['num_changes'], 'change')}, mean entropy"
        f" {person['mean_entropy']:.2f} nats, agreement {person['agreement']:.0%}",
        "chart": Chart(traces, title, "seconds", "probability", share=True, heading=False),
    }
