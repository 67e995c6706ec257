"""What annotators changed in Label Studio and CVAT, as corrections."""

from __future__ import annotations

import hashlib
import io
import json
import xml.etree.ElementTree as ET
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.labels.annotations import OTHER_LABELS, region_id
from pipeline.labels.config import ExportConfig
from pipeline.labels.corrections import add_correction, new_correction
from pipeline.labels.over_time import by_person, moments_of, spans_of
from pipeline.labels.source import Labels, open_labels, otherwise_of
from pipeline.records.documents import parse_json, parse_xml, shown_value
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import log_status
from pipeline.storage.remote import absolute_url, read_url
from pipeline.storage.store import Storage

MAX_BYTES, MAX_FILES = 2**27, 100_000
Said = dict[str, Any]


class NoAnnotationsError(ValueError):
    """A file that is none of its format; its text says why."""


def import_corrections(config: ExportConfig) -> int:
    """Create a correction for each thing that was changed; the exit code. Raises UsageError, StorageError.

    The same file twice gives the same corrections once.
    """
    labels = open_labels(config.labels, model=config.model, **otherwise_of(config))
    assert config.import_ is not None
    num_new = num_known = num_files = 0
    for name, data in _files(config.import_):
        read = _label_studio if config.format == "label-studio" else _cvat
        try:
            found = list(read(labels, data, config))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            is_ours = isinstance(error, NoAnnotationsError | UsageError)
            told = str(error)[:160] if is_ours else "a field is missing, or of another type than it has"
            raise UsageError(f"--import {name} is no export of {config.format} of these labels ({told})") from None
        num_files += 1
        for said in found:
            if add_correction(labels.storage_of(said["clip_id"]), new_correction(**said, correction_id=_id_of(said))):
                num_new += 1
            else:
                num_known += 1
    known = f", {num_known} were there" if num_known else ""
    log_status(
        f"{config.format}: {num_new} corrections of {num_files} files{known}: {labels.storages[0].url}/corrections"
    )
    return 0


def _id_of(said: Said) -> str:
    """The same for the same thing said, so that it is said once however often it is imported."""
    return f"import-{hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:40]}"


def _files(url: str) -> Iterator[tuple[str, bytes]]:
    """A file, or every one of a folder; those in a zip, as CVAT gives it, in its place."""
    storage = Storage(url)
    names = [name for name in storage.sizes("") if name.endswith((".json", ".xml", ".zip"))]
    names = [name for name in names if name != "export.json"]
    root = absolute_url(url)
    found = ((f"{url}/{name}", read_url(f"{root}/{name}", max_bytes=MAX_BYTES, what=name)) for name in names)
    if not names:
        try:
            found = iter([(url, read_url(root, max_bytes=MAX_BYTES, what=f"--import {url}"))])
        except (FileNotFoundError, IsADirectoryError):
            raise UsageError(f"--import {url} is not there, or holds no .json, .xml or .zip") from None
    for name, data in found:
        if not data.startswith(b"PK\x03\x04"):
            yield name, data
            continue
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if len(archive.infolist()) > MAX_FILES:
                    raise UsageError(f"--import {name} has more than {MAX_FILES} files")
                for member in archive.infolist():
                    if member.filename.endswith((".xml", ".json")) and member.file_size <= MAX_BYTES:
                        yield f"{name}!{member.filename}", archive.read(member)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error, EOFError) as error:
            raise UsageError(f"--import {name} cannot be unpacked ({error})") from None


def _faces_of(labels: Labels, clip_id: str) -> tuple[dict[str, Any], pa.Table]:
    clip = labels.clip(clip_id)
    if clip is None:
        raise NoAnnotationsError(f"clip {shown_value(clip_id)} is not among these labels")
    return clip, labels.faces(clip)


def _said(clip: dict[str, Any], labels: Labels, *, label: str, annotator: str, source: str, **where: Any) -> Said:
    values = {"clip_id": clip["clip_id"], "path": clip["path"], "model": labels.model, "source": source}
    if label in labels.classes:
        return {**values, **where, "said": "emotion", "label": label, "annotator": annotator}
    if label in OTHER_LABELS:
        return {**values, **where, "said": OTHER_LABELS[label], "annotator": annotator}
    raise NoAnnotationsError(f"label {shown_value(label)} is none of {', '.join((*labels.classes, *OTHER_LABELS))}")


def _label_studio(labels: Labels, data: bytes, config: ExportConfig) -> Iterator[Said]:
    """Corrections of an export "JSON" of Label Studio: of each annotation, what differs from our prediction."""
    tasks = parse_json(data, "it", max_bytes=MAX_BYTES)
    abstain_below = labels.abstain_below
    for task in tasks if isinstance(tasks, list) else [tasks]:
        clip, faces = _faces_of(labels, task["data"]["clip_id"])
        every = float(task["data"].get("every", config.every))
        ours = {}
        for person, own in by_person(faces).items():
            spans = spans_of(moments_of(own, every=every, abstain_below=abstain_below), every=every)
            ours |= {region_id(person, number): (person, span) for number, span in enumerate(spans)}
        for annotation in task.get("annotations", []):
            if annotation.get("was_cancelled"):
                continue
            annotator = config.annotator or _annotator_of(annotation)
            regions = {each["id"]: each for each in annotation["result"] if each["type"] == "videorectangle"}
            for name, (person, span) in ours.items():
                given = regions[name]["value"].get("labels", []) if name in regions else ["Not a face"]
                for label in given:
                    if label != span.emotion:
                        where = {"track_index": person, "start_pts_seconds": span.start, "end_pts_seconds": span.end}
                        yield _said(clip, labels, label=label, annotator=annotator, source="label-studio", **where)


def _annotator_of(annotation: dict[str, Any]) -> str:
    by = annotation.get("completed_by")
    if isinstance(by, dict):
        by = by.get("email") or by.get("id")
    return f"label-studio {by}" if isinstance(by, int) else str(by or "label-studio")[:100]


def _cvat(labels: Labels, data: bytes, config: ExportConfig) -> Iterator[Said]:
    """Corrections of an export "CVAT for video 1.1": of each track, where its emotion differs from ours."""
    root = parse_xml(data, "it", max_bytes=MAX_BYTES)
    if root.tag != "annotations":
        raise NoAnnotationsError(f"it begins with <{root.tag[:40]}>, not with <annotations>")
    annotator = config.annotator or root.findtext("meta/task/owner/username") or "cvat"
    by_clip: dict[str, dict[int, ET.Element]] = {}
    for track in root.findall("track"):
        clip_id, person = _attribute(track, "clip_id"), _attribute(track, "person")
        if clip_id and person:
            by_clip.setdefault(clip_id, {})[int(float(person)) - 1] = track
    if not by_clip:
        raise NoAnnotationsError("no track has the attributes clip_id and person")
    for clip_id, tracks in by_clip.items():
        clip, faces = _faces_of(labels, clip_id)
        where = {"annotator": annotator, "source": "cvat"}
        for person, own in by_person(faces).items():
            if person not in tracks:
                yield _said(clip, labels, label="Not a face", track_index=person, **where)
                continue
            for start, end, label in _changed(own, tracks[person]):
                edges = {"start_pts_seconds": start, "end_pts_seconds": end}
                yield _said(clip, labels, label=label, track_index=person, **edges, **where)


def _attribute(element: ET.Element, name: str) -> str | None:
    for each in element.iter("attribute"):
        if each.get("name") == name:
            return (each.text or "").strip()
    return None


def _changed(own: pa.Table, track: ET.Element) -> Iterator[tuple[float, float, str]]:
    """(start, end, label) of each stretch of a person in which the track says another emotion than ours.

    The emotion of a frame is that of the last key frame of the track up to it.
    """
    boxes = [each for each in track.findall("box") if each.get("outside") != "1"]
    frames = np.array([int(each.get("frame", "")) for each in boxes])
    said = [_attribute(each, "emotion") or "abstained" for each in boxes]
    order = np.argsort(frames, kind="stable")
    rows = own.to_pylist()
    times = [row["pts_seconds"] for row in rows]
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    stretch: tuple[float, float, str] | None = None
    for row, seconds in zip(rows, times, strict=True):
        place = int(np.searchsorted(frames[order], row["frame_index"], side="right")) - 1
        label = said[order[place]] if place >= 0 else None
        is_changed = label is not None and label not in (row["emotion"] or "abstained", "abstained")
        if stretch and (not is_changed or stretch[2] != label):
            yield stretch
            stretch = None
        if is_changed:
            assert label is not None
            end = round(seconds + step, 6)
            stretch = (stretch[0], end, label) if stretch else (round(seconds, 6), end, label)
    if stretch:
        yield stretch
