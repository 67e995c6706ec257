"""Labels as tasks to correct in Label Studio and CVAT."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.labels.over_time import by_person, moments_of, printable, spans_of
from pipeline.records.columns import classes_of

# What an annotator may say there besides the model's classes, and what it means here.
OTHER_LABELS = {"Not a face": "not_a_face", "Another person": "another_person", "Cannot tell": "cannot_tell"}


def label_studio_config(classes: Sequence[str]) -> bytes:
    """The labelling interface of the tasks, as XML. classes: of the model."""
    view = ET.Element("View")
    ET.SubElement(view, "Header", value="$path")
    ET.SubElement(view, "Video", name="video", value="$video")
    ET.SubElement(view, "VideoRectangle", name="box", toName="video")
    labels = ET.SubElement(view, "Labels", name="emotion", toName="video", allowEmpty="true")
    for name in (*classes, *OTHER_LABELS):
        ET.SubElement(labels, "Label", value=name)
    ET.indent(view)
    return ET.tostring(view, encoding="utf-8")


def region_id(person: int, number: int) -> str:
    """The id of a stretch of one emotion of a person: what comes back is known by it."""
    return f"p{person + 1}s{number + 1}"


def label_studio_task(
    clip: dict[str, Any],
    faces: pa.Table,
    facts: dict[str, Any],
    *,
    video: str,
    every: float,
    abstain_below: float,
    model: str,
) -> bytes:
    """One task with a prediction: a moving rectangle for each stretch of one emotion of a person.

    faces: rows of FRAME_SCHEMA. facts: `VideoFacts` of its video, by name. video: the address of the video there.
    """
    result, scores = [], []
    for person, own in by_person(faces).items():
        for number, span in enumerate(spans_of(moments_of(own, every=every, abstain_below=abstain_below), every=every)):
            rows = [row for row in own.to_pylist() if span.start <= row["pts_seconds"] + 1e-9 < span.end]
            sequence = [_rectangle(row, facts) for row in rows]
            sequence[-1]["enabled"] = False
            scores.append(span.probability)
            result.append(
                {
                    "id": region_id(person, number),
                    "type": "videorectangle",
                    "from_name": "box",
                    "to_name": "video",
                    "origin": "prediction",
                    "score": round(span.probability, 4),
                    "meta": {"text": [f"person {person + 1}"]},
                    "value": {
                        "framesCount": max(faces["frame_index"].to_pylist()) + 1,
                        "duration": round(facts["end"] - facts["start"], 3),
                        "sequence": sequence,
                        "labels": [span.emotion],
                    },
                }
            )
    data = {"video": video, "path": clip["path"], "clip_id": clip["clip_id"], "every": every}
    score = round(sum(scores) / len(scores), 4) if scores else 0.0
    task = {"data": data, "predictions": [{"model_version": model, "score": score, "result": result}]}
    return (json.dumps([task], indent=1) + "\n").encode()


def _rectangle(row: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    box, width, height = row["box"], facts["width"], facts["height"]
    return {
        "frame": row["frame_index"] + 1,  # Frames count from 1 there.
        "time": round(row["pts_seconds"], 6),
        "enabled": True,
        "rotation": 0,
        "x": round(100 * box["x_min"] / width, 4),
        "y": round(100 * box["y_min"] / height, 4),
        "width": round(100 * (box["x_max"] - box["x_min"]) / width, 4),
        "height": round(100 * (box["y_max"] - box["y_min"]) / height, 4),
    }


def cvat_annotations(clip: dict[str, Any], faces: pa.Table, facts: dict[str, Any]) -> bytes:
    """A file "CVAT for video 1.1": a track for each person, whose emotion is an attribute that changes.

    faces: rows of FRAME_SCHEMA. facts: `VideoFacts` of its video, by name.
    """
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    task = ET.SubElement(ET.SubElement(root, "meta"), "task")
    last = max(faces["frame_index"].to_pylist())
    for name, text in (
        ("name", printable(clip["path"])),
        ("size", str(last + 1)),
        ("mode", "interpolation"),
        ("overlap", "0"),
    ):
        ET.SubElement(task, name).text = text
    label = ET.SubElement(ET.SubElement(task, "labels"), "label")
    ET.SubElement(label, "name").text = "face"
    attributes = ET.SubElement(label, "attributes")
    choices = [*classes_of(faces.schema), *OTHER_LABELS, "abstained"]
    _attribute(attributes, "emotion", is_mutable=True, kind="select", values=choices)
    _attribute(attributes, "person", is_mutable=False, kind="number", values=["1", "100000", "1"])
    _attribute(attributes, "clip_id", is_mutable=False, kind="text", values=[])
    size = ET.SubElement(task, "original_size")
    ET.SubElement(size, "width").text, ET.SubElement(size, "height").text = str(facts["width"]), str(facts["height"])
    for person, own in by_person(faces).items():
        track = ET.SubElement(root, "track", id=str(person), label="face", source="auto")
        rows = own.to_pylist()
        for row, following in zip(rows, [*rows[1:], None], strict=True):
            whose = {"clip_id": clip["clip_id"], "person": person}
            _cvat_box(track, row, **whose, frame=row["frame_index"], is_outside=False)
            step = 1 if len(rows) < 2 else rows[1]["frame_index"] - rows[0]["frame_index"]
            is_gap = following is None or following["frame_index"] - row["frame_index"] > 1.5 * step
            if is_gap and row["frame_index"] < last:
                _cvat_box(track, row, **whose, frame=row["frame_index"] + 1, is_outside=True)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def _attribute(parent: ET.Element, name: str, *, is_mutable: bool, kind: str, values: list[str]) -> None:
    found = ET.SubElement(parent, "attribute")
    ET.SubElement(found, "name").text = name
    ET.SubElement(found, "mutable").text = str(is_mutable)
    ET.SubElement(found, "input_type").text = kind
    ET.SubElement(found, "default_value").text = values[0] if values else ""
    ET.SubElement(found, "values").text = "\n".join(values)


def _cvat_box(
    track: ET.Element, row: dict[str, Any], *, clip_id: str, person: int, frame: int, is_outside: bool
) -> None:
    box = row["box"]
    found = ET.SubElement(
        track,
        "box",
        frame=str(frame),
        keyframe="1",
        outside=str(int(is_outside)),
        occluded="0",
        xtl=f"{box['x_min']:.2f}",
        ytl=f"{box['y_min']:.2f}",
        xbr=f"{box['x_max']:.2f}",
        ybr=f"{box['y_max']:.2f}",
        z_order="0",
    )
    for name, text in (("emotion", row["emotion"] or "abstained"), ("person", str(person + 1)), ("clip_id", clip_id)):
        ET.SubElement(found, "attribute", name=name).text = text
