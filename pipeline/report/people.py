"""The people of some clips: which clips a page shows, their frames, and a strip of each person's emotions over time."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute

from pipeline.records.arrow import pc
from pipeline.records.evolution import from_first_frame
from pipeline.records.faces import Box, Thumbnail
from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.charts import Chart, across, colour_numbers, colours_of, dashes_of, line
from pipeline.report.parts import Bar, Part
from pipeline.report.pictures import MAX_THUMBNAILS, PERSON_COLOURS, drawn_frame
from pipeline.report.values import counted, said, said_seconds, spread

MAX_TIMELINES = 40


MAX_TRACKS = 4


MAX_POINTS = 300


# Marks on one strip; more would cover it.
MAX_CUTS = 100


# Of all timelines together: each point is 250 bytes of chart and table.
MAX_POINTS_OF_PAGE = 16_000


# Moments further apart than so many times the usual are a gap, in which the person was not seen.
MAX_STEPS = 2.5


UNDECIDED = "undecided"


BY_PATH = [("path", "ascending"), ("clip_id", "ascending")]


Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownClip:
    """What the page shows of one clip, however long it is.

    label: its row of `labels_of`. persons: rows of TRACK_SCHEMA of those seen most, in order of appearance.
    num_persons: of all. faces: of each person rows of FRAME_SCHEMA in order of time, spread over all. boxes:
    (track_index, box) of the faces in each pictured frame. cuts: seconds from the clip's first frame.
    """

    label: Row
    persons: Sequence[Row]
    num_persons: int
    faces: Mapping[int, Sequence[Row]]
    pictures: Sequence[Thumbnail]
    boxes: Mapping[int, Sequence[tuple[int, Box]]]
    cuts: Sequence[float] = ()


def shown_clips(labels: pa.Table, pictured: Collection[str]) -> list[Row]:
    """The rows of the at most 40 clips whose people the page shows: spread over all, of those with pictures first.

    labels: of `labels_of`. pictured: the clip_ids of which there are pictures.
    """
    labelled = labels.filter(pc.is_valid(labels["probability"])).sort_by(BY_PATH)
    has_pictures = pc.is_in(labelled["clip_id"], value_set=pa.array(sorted(pictured), pa.string()))
    seen = _spread_rows(labelled.filter(has_pictures), MAX_TIMELINES)
    unseen = _spread_rows(labelled.filter(pc.invert(has_pictures)), MAX_TIMELINES - seen.num_rows)
    return pa.concat_tables([seen, unseen]).sort_by(BY_PATH).to_pylist()


def shown_clip(
    label: Row, frames: pa.Table, tracks: pa.Table, pictures: Sequence[Thumbnail], *, cuts: Sequence[float] = ()
) -> ShownClip:
    """What the page shows of one clip. frames, tracks: its rows of FRAME_SCHEMA and TRACK_SCHEMA. pictures: all that
    there are of it. cuts: where shots begin but the first, seconds on the file's clock."""
    on_file, frames = frames, from_first_frame(frames)
    # When the clip's first frame is on the file's clock.
    zero = on_file["pts_seconds"][0].as_py() - frames["pts_seconds"][0].as_py() if frames.num_rows else 0.0
    pictures = [replace(each, pts_seconds=each.pts_seconds - zero) for each in pictures]
    pictures = spread(sorted(pictures, key=lambda picture: picture.pts_seconds), MAX_THUMBNAILS)
    linked: defaultdict[int | None, list[int]] = defaultdict(list)
    if "person_index" in tracks.column_names:
        for row in tracks.select(["track_index", "person_index"]).to_pylist():
            linked[row["person_index"]].append(row["track_index"] + 1)
    most = tracks.sort_by([("num_faces", "descending"), ("track_index", "ascending")])[:MAX_TRACKS].to_pylist()
    faces = {}
    for person in most:
        index = person.get("person_index")
        own = [] if index is None else linked[index]
        person["linked"] = [number for number in own if number != person["track_index"] + 1]
        own = frames.filter(pc.field("track_index") == person["track_index"]).sort_by("pts_seconds")
        faces[person["track_index"]] = _spread_rows(own, MAX_POINTS).to_pylist()
    boxes: defaultdict[int, list[tuple[int, Box]]] = defaultdict(list)
    pictured = pa.array([picture.frame_index for picture in pictures], pa.int64())
    if "stray" in frames.column_names:
        frames = frames.filter(pc.invert(frames["stray"]))
    for row in frames.filter(pc.field("frame_index").isin(pictured)).to_pylist():
        boxes[row["frame_index"]].append((row["track_index"], Box(**row["box"])))
    return ShownClip(
        label=label,
        persons=sorted(most, key=lambda row: row["track_index"]),
        num_persons=tracks.num_rows,
        faces=faces,
        pictures=pictures,
        boxes=boxes,
        cuts=[cut - zero for cut in cuts],
    )


def _spread_rows(rows: pa.Table, most: int) -> pa.Table:
    return rows.take(pa.array(spread(range(rows.num_rows), most), pa.int64())) if rows.num_rows > most else rows


def clip_view(clip: ShownClip, *, most_points: int, blur_faces: bool) -> dict[str, Any]:
    """One clip as its row of the page: its label, its frames, and a strip for each person."""
    label = clip.label
    frames = []
    for picture in clip.pictures:
        own = clip.boxes.get(picture.frame_index, ())
        drawn = drawn_frame(picture, own, alt=_alt(picture, own), blur_faces=blur_faces)
        frames.append({"picture": drawn, "seconds": f"{picture.pts_seconds:.2f} s"})
    times = [row["pts_seconds"] for faces in clip.faces.values() for row in faces]
    start, end = (min(times), max(times)) if times else (0.0, 0.0)
    persons = [
        _person(
            person,
            spread(clip.faces[person["track_index"]], most_points),
            path=label["path"],
            start=start,
            end=end,
            cuts=clip.cuts,
        )
        for person in clip.persons
    ]
    return {
        "path": label["path"],
        "said": _said(label, label["probability"]),
        "found": f"{counted(label['num_faces'], 'face')} of {counted(label['num_tracks'], 'person')} in"
        f" {counted(label['num_frames'], 'frame')}{_in_shots(label)}",
        "frames": frames,
        "persons": persons,
        "num_persons": clip.num_persons,
        "start": f"{start:.2f} s",
        "end": f"{end:.2f} s",
    }


def _in_shots(label: Row) -> str:
    """How many shots and linked persons a clip has, in words; nothing where it has one shot, or nobody looked."""
    shots, persons = label.get("num_shots") or 0, label.get("num_persons") or 0
    linked = f", who are {counted(persons, 'person')} over all shots" if persons else ""
    return (f" of {shots} shots" if shots > 1 else "") + linked


def view_command(clip: ShownClip, labels_url: str) -> str:
    """What shows the clip's video with its boxes in a browser, from the second of the picture that stands for it, or
    from where its persons are first seen."""
    times = [faces[0]["pts_seconds"] for faces in clip.faces.values() if faces]
    at = clip.pictures[len(clip.pictures) // 2].pts_seconds if clip.pictures else min(times, default=0.0)
    where = f" --clip {shlex.quote(clip.label['path'])} --at {at:.1f}"
    return f"python jobs/view.py {shlex.quote(labels_url)}{where}"


def _alt(picture: Thumbnail, boxes: Sequence[tuple[int, Box]]) -> str:
    numbers = ", ".join(str(track_index + 1) for track_index, _ in boxes)
    return f"Frame at {picture.pts_seconds:.2f} s, person {numbers or 'none'}"


def _said(row: Row, probability: float) -> str:
    """What the model says, in words that are no surer than it is."""
    if row["emotion"]:
        return f"{row['emotion']}, {said(probability)} sure"
    if row["reason"] == "stray":
        return "nobody was seen twice"
    return f"{UNDECIDED}: at most {said(probability)} sure"


def _person(
    person: Row, moments: Sequence[Row], *, path: str, start: float, end: float, cuts: Sequence[float]
) -> dict[str, Any]:
    """One person: its label, its strip from `start` to `end` in seconds, and the probabilities at its faces."""
    number, shares = person["track_index"] + 1, person["emotion_shares"]
    decided = sum(shares.values())
    times = [
        f"{emotion} {said(shares[emotion])}"
        for emotion in sorted(shares, key=lambda emotion: -shares[emotion])
        if shares[emotion]
    ]
    if decided < 0.9995:
        times.append(f"{UNDECIDED} {said(1 - decided)}")
    others = person.get("linked") or ()
    alike = f"; the same person as {', '.join(map(str, others))} in other shots" if others else ""
    title = f"Probabilities over time of person {number} of {path}"
    return {
        "number": number,
        "colour": person["track_index"] % len(PERSON_COLOURS),
        "said": _said(person, max(person["probabilities"].values())),
        "times": f"{', '.join(times)} of the time; {counted(person['num_changes'], 'change')}{alike}",
        "strip": strip_of(moments, start=start, end=end, cuts=cuts, label=f"Person {number} over time"),
        "chart": Chart(
            _lines(moments),
            title,
            "seconds",
            "probability",
            share=True,
            heading=False,
            marks=[across(1 / len(shares), "chance")],
        ),
    }


def emotion_at(row: Row) -> str | None:
    """What is said of one face: None where the model is undecided."""
    return row["emotion"] if "emotion" in row else max(row["probabilities"], key=row["probabilities"].__getitem__)


def _step(times: Sequence[float]) -> float:
    """The usual time between two moments."""
    gaps = sorted(b - a for a, b in pairwise(times) if b > a)
    return gaps[len(gaps) // 2] if gaps else 0.0


def strip_of(moments: Sequence[Row], *, start: float, end: float, label: str, cuts: Sequence[float] = ()) -> Bar:
    """A person's emotions over time, from `start` to `end` of the clip in seconds; where it was not seen is a gap, and
    a cut between two shots is a mark."""
    times = [row["pts_seconds"] for row in moments]
    step = _step(times) or max((end - start) / 50, 0.04)
    whole = end + step - start
    spans: list[tuple[str | None, float, float]] = []
    for index, row in enumerate(moments):
        later = times[index + 1] if index + 1 < len(times) else times[index] + step
        until = later if later - times[index] <= MAX_STEPS * step else times[index] + step
        emotion = emotion_at(row)
        if spans and spans[-1][0] == emotion and abs(spans[-1][2] - times[index]) < 1e-6:
            spans[-1] = (emotion, spans[-1][1], until)
        else:
            spans.append((emotion, times[index], until))
    numbers = colour_numbers(list(moments[0]["probabilities"])) if moments else {}
    parts = [
        Part(
            UNDECIDED if emotion is None else f"emotion-{numbers[emotion]}",
            f"{1000 * (low - start) / whole:.1f}",
            f"{max(2.0, 1000 * (high - low) / whole):.1f}",
            f"{emotion or UNDECIDED}, {said_seconds(low)} to {said_seconds(high)}",
        )
        for emotion, low, high in spans
    ]
    marks = [
        Part("cut", f"{1000 * (cut - start) / whole - 1:.1f}", "2.0", f"cut at {said_seconds(cut)}")
        for cut in spread([cut for cut in cuts if start < cut < end + step], MAX_CUTS)
    ]
    return Bar(label, [*parts, *marks], height=20, legend=False)


def _lines(moments: Sequence[Row]) -> list[dict[str, Any]]:
    """A line an emotion; between moments that are far apart it is open."""
    times = [row["pts_seconds"] for row in moments]
    step = _step(times)
    x: list[float] = []
    rows: list[Row | None] = []
    for index, row in enumerate(moments):
        if index and step and times[index] - times[index - 1] > MAX_STEPS * step:
            x.append(round((times[index] + times[index - 1]) / 2, 3))
            rows.append(None)
        x.append(round(row["pts_seconds"], 3))
        rows.append(row)
    classes = list(moments[0]["probabilities"]) if moments else list(EMOTIONS)
    colours, dashes = colours_of(classes), dashes_of(classes)
    return [
        line(
            x,
            [None if row is None else round(float(row["probabilities"][emotion]), 4) for row in rows],
            name=emotion,
            colour=colours[emotion],
            dash=dashes[emotion],
        )
        for emotion in classes
    ]
