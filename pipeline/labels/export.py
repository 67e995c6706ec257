"""Labels in, files that other programs read out: each is written whole or not at all, and one that is there stays.

OUTPUT/export.json   what was exported, and how: written first, compared on every resume
OUTPUT/_SUCCESS      written last
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from pipeline.labels.annotations import cvat_annotations, label_studio_config, label_studio_task
from pipeline.labels.come_back import import_corrections
from pipeline.labels.config import ExportConfig
from pipeline.labels.faces_set import face_sets
from pipeline.labels.figures import figures, require_matplotlib
from pipeline.labels.over_time import file_name, shot_times
from pipeline.labels.source import Labels, open_labels, otherwise_of
from pipeline.labels.tables import UNCERTAIN_COLUMNS, csv_files, csv_parts, most_uncertain, uncertain_rows
from pipeline.labels.tiers import elan, webvtt
from pipeline.labels.videos import VideoMissingError, Videos, opened_videos, plain_tracks, step_of
from pipeline.records.documents import parse_json
from pipeline.records.evolution import with_defaults
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import log_event, log_status
from pipeline.storage.store import Storage

TOLD_EVERY = 100
_FREE = ("labels", "output", "input", "import_", "annotator")
_WITH_VIDEOS = ("video", "hf", "label-studio", "cvat")
# The name of a file, and a function that makes it: all bytes, or parts of them.
NamedFile = tuple[str, Callable[[], Any]]


def export(config: ExportConfig) -> int:
    """Write what the settings ask for, or import what came back; the exit code. Raises UsageError, StorageError."""
    if config.import_ is not None:
        return import_corrections(config)
    assert config.output is not None
    if config.format == "figure":
        require_matplotlib()
    labels = open_labels(config.labels, model=config.model, **otherwise_of(config))
    persons = None
    if config.most_uncertain is not None:
        persons = most_uncertain(labels, count=config.most_uncertain, pattern=config.clips)
    chosen = {"pattern": config.clips, "clip_ids": None}
    if persons is not None:
        chosen["clip_ids"] = sorted({row["clip_id"] for row in persons})
    num_clips = _count(labels, chosen)
    if not num_clips:
        _require_some(labels, chosen, config)
    storage = Storage(config.output)
    is_same = _begin(storage, labels, config)
    is_kept: set[str] = set(storage.sizes("")) if is_same else set()
    with _videos(config) as videos:
        counts = _write(storage, _files(labels, chosen, config, persons, videos), is_kept, num_clips=num_clips)
    num_written, num_kept, num_left_out = counts
    storage.put("_SUCCESS", b"")
    kept = f", {num_kept} were there" if num_kept else ""
    lost = f", {num_left_out} left out" if num_left_out else ""
    log_status(f"{config.format}: {num_clips} clips, {num_written} files written{kept}{lost}: {storage.url}")
    return 0


def _videos(config: ExportConfig) -> AbstractContextManager[Videos | None]:
    if config.format not in _WITH_VIDEOS:
        return nullcontext()
    return opened_videos(config.input, allow_private_hosts=config.allow_private_hosts)


def _write(storage: Storage, files: Iterator[NamedFile], is_kept: set[str], *, num_clips: int) -> tuple[int, int, int]:
    """Write the files that are not there; how many were written, were there and could not be made."""
    num_written = num_kept = num_left_out = 0
    for name, make in files:
        if name in is_kept:
            num_kept += 1
            continue
        try:
            made = make()
        except VideoMissingError as error:
            log_status(f"left out: {error}")
            num_left_out += 1
            continue
        storage.put(name, made) if isinstance(made, bytes) else storage.put_stream(name, made)
        num_written += 1
        log_event("exported", name=name, num_written=num_written)
        if (num_written + num_kept) % TOLD_EVERY == 0:
            log_status(f"{num_written + num_kept} files of {num_clips} clips")
    return num_written, num_kept, num_left_out


def _count(labels: Labels, chosen: dict[str, Any]) -> int:
    return labels.database.value(
        "select count(*) from clips where num_faces > 0 and (path glob $pattern or clip_id = $pattern)"
        " and ($ids is null or clip_id in (select unnest($ids::varchar[])))",
        pattern=chosen["pattern"],
        ids=chosen["clip_ids"],
    )


def _require_some(labels: Labels, chosen: dict[str, Any], config: ExportConfig) -> None:
    """Of clips without faces there are tables alone. Raises UsageError."""
    sql = "select count(*) from clips where path glob $pattern or clip_id = $pattern"
    num_clips = labels.database.value(sql, pattern=chosen["pattern"])
    if not num_clips:
        raise UsageError(f"--clips is {config.clips!r}; no labelled clip of {config.labels} fits it")
    if config.format != "csv" or config.most_uncertain is not None:
        raise UsageError(
            f"{config.labels} holds no face: {num_clips} clips fit --clips {config.clips!r}, none with a face that is"
            " labelled; --format csv lists them with their states"
        )


def _begin(storage: Storage, labels: Labels, config: ExportConfig) -> bool:
    """Whether the files in the output are of these labels, so that they stay. Raises UsageError for another export."""
    settings = {name: value for name, value in asdict(config).items() if name not in _FREE}
    told = {"settings": settings, "model": labels.info["config"]["checkpoint_sha256"], "labels": labels.digest}
    body = (json.dumps(told, indent=1) + "\n").encode()
    if storage.create("export.json", body):
        if others := [name for name in storage.sizes("") if name != "export.json"]:
            storage.delete("export.json")
            raise UsageError(f"--output {storage.url} holds {others[0]}, which is no export; give a folder of its own")
        return True
    try:
        saved = parse_json(storage.read("export.json"), "it")
        before = {**with_defaults(ExportConfig, saved["settings"]), "model": saved["model"]}
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"{storage.url}/export.json cannot be read; delete the folder, or give another") from None
    now = {**settings, "model": told["model"]}
    changed = [
        f"{name} {before.get(name)!r} -> {now.get(name)!r}"
        for name in sorted({*before, *now})
        if name not in _FREE and before.get(name) != now.get(name)
    ]
    if changed:
        raise UsageError(
            f"--output {storage.url} was begun with other settings: {', '.join(changed)}; give another folder"
        )
    if saved["labels"] == labels.digest:
        return True
    storage.delete("_SUCCESS")  # There are new labels: what is there may lack them.
    storage.put("export.json", body)
    return False


def _files(
    labels: Labels,
    chosen: dict[str, Any],
    config: ExportConfig,
    persons: list[dict[str, Any]] | None,
    videos: Videos | None,
) -> Iterator[NamedFile]:
    every = config.every
    if config.format == "csv":
        for name, parts in csv_files(labels, chosen, every=every).items():
            yield name, lambda parts=parts: parts
        if persons is not None:
            yield "most_uncertain.csv", lambda: csv_parts(UNCERTAIN_COLUMNS, uncertain_rows(persons))
    elif config.format == "figure":
        yield from figures(labels, chosen, every=every)
    elif config.format == "hf":
        assert videos is not None
        yield from face_sets(labels, chosen, videos, every=every, blur=config.blur_faces)
    else:
        if config.format == "label-studio":
            yield "config.xml", lambda: label_studio_config(labels.classes)
        ending = {"webvtt": "vtt", "elan": "eaf", "video": "mp4", "label-studio": "json", "cvat": "xml"}[config.format]
        for clip, faces, _ in labels.labelled(**chosen):
            yield (
                file_name(clip, ending),
                lambda clip=clip, faces=faces: _of_clip(labels, clip, faces, config, videos),
            )


def _of_clip(
    labels: Labels, clip: dict[str, Any], faces: pa.Table, config: ExportConfig, videos: Videos | None
) -> bytes | list[bytes]:
    """The file of one clip. Raises VideoMissingError where it needs a video that cannot be read."""
    how = {"every": config.every, "abstain_below": labels.abstain_below}
    if config.format == "webvtt":
        return webvtt(faces, **how)
    if config.format == "elan":
        shots = shot_times(labels.shots(clip))
        return elan(clip, faces, shots, **how, author=f"emotion-pipeline, model {labels.model}")
    assert videos is not None
    videos.require_scored(clip)
    if config.format == "video":
        tracks = {"hidden": plain_tracks(faces), "step_seconds": step_of(faces, labels.info["config"])}
        log_status(f"drawing {clip['path']}")
        return videos.ask_many("draw", clip, **tracks, blur=config.blur_faces)
    facts = videos.ask("facts", clip)
    if config.format == "cvat":
        return cvat_annotations(clip, faces, facts)
    return label_studio_task(clip, faces, facts, **how, video=videos.url_of(clip), model=labels.model)
