"""Copies the shards of a data set to this node, checked against its manifest."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.records.documents import DocumentError, parquet_table, parse_json, shown_value
from pipeline.records.evolution import with_columns
from pipeline.records.faces import EXAMPLE_SCHEMA, Example
from pipeline.records.vocabulary import MAX_PX, SCHEMA_VERSION, SPLITS, UsageError
from pipeline.storage.parts import parts_of
from pipeline.storage.remote import absolute_url, read_url
from pipeline.storage.store import Storage

# A shard takes 0.2 KB of it.
MAX_MANIFEST_BYTES = 2**29
COPY_THREADS = 4  # shards copied at once: hides the latency of an object store and holds 4 shards in memory


@dataclass(frozen=True, slots=True)
class Manifest:
    """The trusted shards of a preprocessed corpus.

    data_url: the folder below which they lie. sha256: of the manifest's bytes, the identity of the data set.
    """

    data_url: str
    sha256: str
    config: dict[str, Any]
    shards: tuple[dict[str, Any], ...]

    def shards_of(self, split: str) -> list[dict[str, Any]]:
        """The shards of one split that hold rows, in order. Raises UsageError for an unknown or an empty split."""
        if split not in SPLITS:
            raise UsageError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        shards = [shard for shard in self.shards if shard["split"] == split and shard["rows"] > 0]
        if not shards:
            found = {name: sum(s["rows"] for s in self.shards if s["split"] == name) for name in (*SPLITS, None)}
            told = ", ".join(f"{name or 'no split'} {rows}" for name, rows in found.items())
            raise UsageError(
                f"data {self.data_url}: split {split} holds no examples (examples by split: {told});"
                " give the corpus that split, or set --split-fractions in jobs/preprocess.py"
            )
        return shards


def read_manifest(data_url: str) -> Manifest:
    """The manifest that preprocessing writes last. data_url: a folder, or any fsspec URL of one.

    Of outputs that were made in parts (`data-*`) the manifests as one. Raises UsageError where it is missing, damaged,
    or of something else than examples, and where parts are missing or of different settings.
    """
    parts = [_read_manifest(part) for part in parts_of(data_url)]
    return parts[0] if len(parts) == 1 else _whole_of(parts, data_url)


def _whole_of(parts: list[Manifest], data_url: str) -> Manifest:
    """One manifest of several, whose shards are named from the folder above them."""
    first = parts[0]
    for part in parts[1:]:
        names = sorted(first.config.keys() | part.config.keys())
        if differing := [name for name in names if first.config.get(name) != part.config.get(name)]:
            told = ", ".join(f"{name} {part.config.get(name)!r}, not {first.config.get(name)!r}" for name in differing)
            raise UsageError(f"data {part.data_url} was made otherwise than {first.data_url}: {told}; name one of them")
    above = absolute_url(data_url).rpartition("/")[0]
    shards = tuple(
        {**shard, "path": f"{part.data_url[len(above) + 1 :]}/{shard['path']}"}
        for part in parts
        for shard in part.shards
    )
    told = "".join(f"{part.sha256}\n" for part in parts)
    sha256 = hashlib.sha256(told.encode()).hexdigest()
    return Manifest(data_url=above, sha256=sha256, config=first.config, shards=shards)


def _read_manifest(data_url: str) -> Manifest:
    where = f"data {data_url}: manifest.json"
    try:
        content = read_url(f"{data_url.rstrip('/')}/manifest.json", max_bytes=MAX_MANIFEST_BYTES, what=where)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{where} is not there; point at the output of jobs/preprocess.py, and finish that run if it was cut off"
        ) from None
    try:
        manifest = parse_json(content, where, max_bytes=MAX_MANIFEST_BYTES)
        kind, version = manifest["kind"], manifest["schema_version"]
        shards = tuple(_shard(shard) for shard in manifest["shards"])
        config = {**manifest["config"]}
        face_px, context_px = config["face_px"], config["context_px"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DocumentError):
            raise UsageError(f"{where} is damaged ({error}); run jobs/preprocess.py again") from None
        raise UsageError(f"{where} is damaged ({error!r}); run jobs/preprocess.py again") from None
    if kind != "examples" or version != SCHEMA_VERSION:
        raise UsageError(
            f"{where} is of {shown_value(kind)}, schema version {shown_value(version)}, not of 'examples', schema"
            f" version {SCHEMA_VERSION};"
            " point at the output of this version's jobs/preprocess.py"
        )
    if not all(isinstance(px, int) and 0 < px <= MAX_PX for px in (face_px, context_px)):
        raise UsageError(
            f"{where} says face_px {shown_value(face_px)} and context_px {shown_value(context_px)}; both must be pixels"
            f" above 0, up to {MAX_PX}"
        )
    return Manifest(data_url=data_url, sha256=hashlib.sha256(content).hexdigest(), config=config, shards=shards)


def _shard(given: Mapping[str, Any]) -> dict[str, Any]:
    """A shard as a manifest names it. Raises ValueError for a name that leads out of the data, and for wrong types."""
    found = {**{key: given[key] for key in ("path", "split", "rows", "sha256")}, "bytes": given.get("bytes")}
    path, split, sha256 = found["path"], found["split"], found["sha256"]
    counts = [found["rows"], *([] if found["bytes"] is None else [found["bytes"]])]
    holds = (
        isinstance(path, str)
        and not path.startswith("/")
        and not {"", ".", ".."} & set(path.split("/"))
        and isinstance(sha256, str)
        and bool(re.fullmatch(r"[0-9a-f]{64}", sha256))
        and split in (*SPLITS, None)
        and all(type(count) is int and 0 <= count < 2**40 for count in counts)
    )
    if not holds:
        raise ValueError("a shard in it is not one of ours")
    return found


def default_cache_dir() -> Path:
    """Where copies of shards rest on this node: `$XDG_CACHE_HOME`, or `~/.cache`, /emotion-pipeline."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emotion-pipeline"


def copy_shards(manifest: Manifest, shards: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Local Arrow files of the shards, copied where this node has none yet. Ranks that start together copy once."""
    paths = [folder / f"{shard['sha256']}.arrow" for shard in shards]
    if all(path.exists() for path in paths):
        return paths
    with locked(folder):
        missing = [(shard, path) for shard, path in zip(shards, paths, strict=True) if not path.exists()]
        with ThreadPoolExecutor(COPY_THREADS) as threads:
            list(threads.map(lambda pair: _copy_shard(manifest, *pair), missing))
    return paths


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of copies, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes, or its process dies
        yield


def require_space(folder: Path, num_bytes: int, *, what: str) -> None:
    """Raise UsageError unless the disk of `folder` has `num_bytes` free. what: what they are for, in words."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UsageError(
            f"cache {folder}: {free / 1e9:.1f} GB free, {num_bytes / 1e9:.1f} GB needed for {what}; free space, or"
            " choose another folder with --cache-dir"
        )


def _copy_shard(manifest: Manifest, shard: dict[str, Any], path: Path) -> None:
    name = f"data {manifest.data_url}: shard {shard['path']}"
    try:
        content = Storage(manifest.data_url).read(shard["path"], size_bytes=shard["bytes"])
    except FileNotFoundError:
        raise UsageError(f"{name} is missing, though the manifest names it; run jobs/preprocess.py again") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != shard["sha256"]:
        raise UsageError(
            f"{name} is damaged: its sha256 is {digest[:12]}…, the manifest says {shard['sha256'][:12]}…;"
            " restore it, or run jobs/preprocess.py again"
        )
    stored = parquet_table(content, name, num_rows=shard["rows"])
    try:
        table = with_columns(stored, Example, EXAMPLE_SCHEMA)
    except (ValueError, pa.ArrowException):
        table = stored
    if not table.schema.equals(EXAMPLE_SCHEMA) or len(table) != shard["rows"]:
        raise UsageError(
            f"{name} has {len(table)} rows of {', '.join(table.schema.names)}, not {shard['rows']} examples;"
            " run jobs/preprocess.py again"
        )
    temporary = path.with_suffix(".tmp")
    require_space(path.parent, table.nbytes, what="the next shard")
    with temporary.open("wb") as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
