"""Labels in, files that other programs read out: each is written whole or not at all, and one that is there stays.

OUTPUT/export.json   what was exported, and how: written first, compared on every resume
OUTPUT/_SUCCESS      written last
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from pipeline.labels.config import ExportConfig
from pipeline.labels.over_time import file_name
from pipeline.labels.source import Labels, open_labels
from pipeline.labels.tables import UNCERTAIN_COLUMNS, csv_files, csv_parts, most_uncertain, uncertain_rows
from pipeline.labels.tiers import elan, webvtt
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import log_event, log_status
from pipeline.storage.store import Storage

TOLD_EVERY = 100
_FREE = ("labels", "output")
# The name of a file, and a function that makes it: all bytes, or parts of them.
NamedFile = tuple[str, Callable[[], Any]]


def export(config: ExportConfig) -> int:
    """Write what the settings ask for; the exit code. Raises UsageError, StorageError."""
    labels = open_labels(config.labels, model=config.model)
    persons = None
    if config.most_uncertain is not None:
        persons = most_uncertain(labels, count=config.most_uncertain, pattern=config.clips)
    chosen = {"pattern": config.clips, "clip_ids": None}
    if persons is not None:
        chosen["clip_ids"] = sorted({row["clip_id"] for row in persons})
    num_clips = _count(labels, chosen)
    if not num_clips:
        raise UsageError(f"--clips is {config.clips!r}; no labelled clip of {config.labels} fits it")
    storage = Storage(config.output)
    is_same = _begin(storage, labels, config)
    files = _files(labels, chosen, config, persons)
    num_written = num_kept = 0
    is_kept: set[str] = set(storage.sizes("")) if is_same else set()
    for name, make in files:
        if name in is_kept:
            num_kept += 1
            continue
        made = make()
        if made is None:
            continue
        storage.put(name, made) if isinstance(made, bytes) else storage.put_stream(name, made)
        num_written += 1
        log_event("exported", name=name, num_written=num_written)
        if (num_written + num_kept) % TOLD_EVERY == 0:
            log_status(f"{num_written + num_kept} files of {num_clips} clips")
    storage.put("_SUCCESS", b"")
    kept = f", {num_kept} were there" if num_kept else ""
    log_status(f"{config.format}: {num_clips} clips, {num_written} files written{kept}: {storage.url}")
    return 0


def _count(labels: Labels, chosen: dict[str, Any]) -> int:
    return labels.database.value(
        "select count(*) from clips where num_faces > 0 and (path glob $pattern or clip_id = $pattern)"
        " and ($ids is null or clip_id in (select unnest($ids::varchar[])))",
        pattern=chosen["pattern"],
        ids=chosen["clip_ids"],
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
        saved = json.loads(storage.read("export.json"))
        before = {**saved["settings"], "model": saved["model"]}
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"{storage.url}/export.json cannot be read; delete the folder, or give another") from None
    now = {**settings, "model": told["model"]}
    changed = [
        f"{name} {before.get(name)!r} -> {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
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
    labels: Labels, chosen: dict[str, Any], config: ExportConfig, persons: list[dict[str, Any]] | None
) -> Iterator[NamedFile]:
    every, abstain_below = config.every, labels.info["config"].get("abstain_below", 0.0)
    if config.format == "csv":
        for name, parts in csv_files(labels, chosen, every=every).items():
            yield name, lambda parts=parts: parts
        if persons is not None:
            yield "most_uncertain.csv", lambda: csv_parts(UNCERTAIN_COLUMNS, uncertain_rows(persons))
        return
    author = f"emotion-pipeline, model {labels.model}"

    def made(clip: dict[str, Any], faces: pa.Table) -> bytes:
        if config.format == "webvtt":
            return webvtt(faces, every=every, abstain_below=abstain_below)
        return elan(clip, faces, every=every, abstain_below=abstain_below, author=author)

    ending = {"webvtt": "vtt", "elan": "eaf"}[config.format]
    for clip, faces, _ in labels.labelled(**chosen):
        yield file_name(clip, ending), lambda clip=clip, faces=faces: made(clip, faces)
