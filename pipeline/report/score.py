"""The page of a scored collection: the night's totals and drift, labels, and people's emotions over time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.records import EMOTIONS, Box, Outcome, Thumbnail
from pipeline.report.charts import COLOURS, DASHES, OURS, bars, chart, line
from pipeline.report.parts import (
    CAVEAT,
    NONE,
    facts_list,
    listing,
    note,
    page,
    percent,
    section,
    short,
    spread,
    table,
    text,
)
from pipeline.report.pictures import MOST_THUMBNAILS, PERSON_COLOURS, drawn_frame
from pipeline.report.run import not_done_section, outcomes_section, run_section

MOST_TIMELINES = 40
MOST_TRACKS = 4
MOST_POINTS = 300
# Of all timelines together: each point is 250 bytes of chart and table.
MOST_POINTS_OF_PAGE = 16_000

Row = Mapping[str, Any]


def score_page(
    summary: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    frames: Iterable[Row],
    tracks: Iterable[Row],
    clips: Sequence[Row],
    *,
    title: str,
    thumbnails: Iterable[Thumbnail] = (),
    no_thumbnails: bool = False,
    blur_faces: bool = False,
) -> str:
    """A night of a collection: states, totals, drift, labels, and up to 40 clips' people and their probabilities.

    frames, tracks, clips: rows of FRAME_SCHEMA, TRACK_SCHEMA and CLIP_LABEL_SCHEMA. thumbnails: frames of some clips,
    which are shown before others.
    """
    labelled = sorted((row for row in clips if row["probabilities"]), key=lambda row: (row["path"], row["clip_id"]))
    pictures: defaultdict[str, list[Thumbnail]] = defaultdict(list)
    for thumbnail in () if no_thumbnails else thumbnails:
        pictures[thumbnail.clip_id].append(thumbnail)
    seen = spread([row for row in labelled if row["clip_id"] in pictures], MOST_TIMELINES)
    unseen = spread([row for row in labelled if row["clip_id"] not in pictures], MOST_TIMELINES - len(seen))
    shown = sorted([*seen, *unseen], key=lambda row: (row["path"], row["clip_id"]))
    faces = _of_clips(frames, shown)
    persons = _of_clips(tracks, shown)
    num_charts = sum(min(len(rows), MOST_TRACKS) for rows in persons.values())
    most_points = max(2, min(MOST_POINTS, MOST_POINTS_OF_PAGE // max(1, num_charts)))
    return page(
        title,
        [
            run_section(summary, outcomes),
            _night_section(summary),
            _labels_section(clips),
            section(
                "People over time",
                note(len(shown), len(labelled), "of the clips with a face"),
                "<p>Pictures are left out by --no-thumbnails.</p>" if no_thumbnails else "",
                *(
                    _clip(
                        row,
                        faces[row["clip_id"]],
                        persons[row["clip_id"]],
                        pictures.get(row["clip_id"], []),
                        most_points=most_points,
                        blur_faces=blur_faces,
                    )
                    for row in shown
                ),
            ),
            not_done_section(outcomes, heading="Quarantine, and what else is not done"),
            outcomes_section(outcomes),
        ],
    )


def _of_clips(rows: Iterable[Row], clips: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {row["clip_id"]: [] for row in clips}
    for row in rows:
        if row["clip_id"] in found:
            found[row["clip_id"]].append(row)
    return found


def _night_section(summary: Mapping[str, Any]) -> str:
    """The night's totals, and its figures beside those of the nights before."""
    night, drift = summary.get("night"), summary.get("drift")
    if not night or drift is None:
        return section("Night", "<p>Nothing was scored, so there is nothing to compare.</p>")
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
    compared = (
        table(
            f"This night beside the mean of {drift['nights']} before; the distance of the emotions is their total"
            " variation",
            ["figure", "tonight", "before", "distance", "limit", "verdict"],
            rows,
        )
        if rows
        else f"<p>Not compared: {drift['nights']} earlier nights had enough clips with a face, or tonight has too few."
        " Three nights of 30 such clips are needed, and 30 tonight.</p>"
    )
    totals = {name: short(value) for name, value in _figures(night).items()}
    return section(
        "Night",
        *(f'<p class="warning" role="note"><strong>Warning:</strong> {text(line_)}</p>' for line_ in drift["warnings"]),
        facts_list(totals),
        compared,
    )


def _figures(night: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a night but its emotions, which the table has."""
    return {name: value for name, value in night.items() if name != "emotions"}


def _labels_section(clips: Sequence[Row]) -> str:
    totals = Counter(row["emotion"] for row in clips)
    return section(
        "Labels",
        f"<p>{CAVEAT}</p>",
        chart(
            [bars(list(EMOTIONS), [totals[emotion] for emotion in EMOTIONS], name="clips", colour=OURS)],
            title="Clips by label",
            x="label",
            y="clips",
        ),
        listing(
            "One row a clip: the mean over its faces",
            ["path", "emotion", "probability", "faces", "persons", "changes", "entropy", "agreement"],
            [
                [
                    *(row["path"], row["emotion"] or row["reason"]),
                    max(row["probabilities"].values()) if row["probabilities"] else None,
                    *(row[name] for name in ("num_faces", "num_tracks", "num_changes", "mean_entropy", "agreement")),
                ]
                for row in clips
            ],
            choose="emotion",
        ),
    )


def _clip(
    clip: Row,
    faces: Sequence[Row],
    persons: Sequence[Row],
    pictures: Sequence[Thumbnail],
    *,
    most_points: int,
    blur_faces: bool,
) -> str:
    """One clip: its label, its frames, and under them each person's probabilities over time."""
    boxes: defaultdict[int, list[tuple[int, Box]]] = defaultdict(list)
    for row in faces:
        boxes[row["frame_index"]].append((row["track_index"], Box(**row["box"])))
    frames = (
        f"<li>{drawn_frame(picture, boxes[picture.frame_index], alt=_alt(picture, boxes), blur_faces=blur_faces)}"
        f"<small>{picture.pts_seconds:.2f} s</small></li>"
        for picture in spread(sorted(pictures, key=lambda picture: picture.pts_seconds), MOST_THUMBNAILS)
    )
    strip = f'<ol class="strip" tabindex="0" aria-label="Frames">{"".join(frames)}</ol>' if pictures else ""
    longest = sorted(persons, key=lambda row: (-row["num_faces"], row["track_index"]))[:MOST_TRACKS]
    return (
        f'<article><h3>{text(clip["path"])}</h3><p class="label">{_said(clip)}; {clip["num_faces"]:,} faces of'
        f" {clip['num_tracks']:,} persons in {clip['num_frames']:,} frames</p>{strip}"
        + "".join(
            _timeline(
                person,
                [row for row in faces if row["track_index"] == person["track_index"]],
                path=clip["path"],
                most_points=most_points,
            )
            for person in sorted(longest, key=lambda row: row["track_index"])
        )
        + (note(len(longest), len(persons), "persons") if len(longest) < len(persons) else "")
        + "</article>"
    )


def _alt(picture: Thumbnail, boxes: Mapping[int, Sequence[tuple[int, Box]]]) -> str:
    numbers = ", ".join(str(track_index + 1) for track_index, _ in boxes.get(picture.frame_index, ()))
    return f"Frame at {picture.pts_seconds:.2f} s, person {numbers or 'none'}"


def _said(row: Row) -> str:
    best = max(row["probabilities"].values())
    return text(f"{row['emotion'] or row['reason']}, {best:.0%}")


def _timeline(person: Row, faces: Sequence[Row], *, path: str, most_points: int) -> str:
    """One person: the seven probabilities at each of its faces."""
    moments = spread(sorted(faces, key=lambda row: row["pts_seconds"]), most_points)
    number = person["track_index"] + 1
    shares = person["emotion_shares"]
    times = ", ".join(
        f"{emotion} {percent(shares[emotion])} %"
        for emotion in sorted(EMOTIONS, key=lambda emotion: -shares[emotion])
        if shares[emotion]
    )
    colour = PERSON_COLOURS[person["track_index"] % len(PERSON_COLOURS)]
    return (
        f'<h4><span class="swatch" style="background:{colour}"></span>Person {number}: {_said(person)}</h4>'
        f'<p class="label">{text(times)} of the time; {person["num_changes"]:,} changes, mean entropy'
        f" {person['mean_entropy']:.2f} nats, agreement {person['agreement']:.0%}</p>"
        + chart(
            [
                line(
                    [round(row["pts_seconds"], 3) for row in moments],
                    [round(float(row["probabilities"][emotion]), 4) for row in moments],
                    name=emotion,
                    colour=COLOURS[emotion],
                    dash=DASHES[emotion],
                )
                for emotion in EMOTIONS
            ],
            title=f"Probabilities over time of person {number} of {path}",
            x="seconds",
            y="probability",
            share=True,
            heading=False,
        )
    )
