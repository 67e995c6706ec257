"""What a job needs, tried before hours are spent: an output that keeps its promises, an input that can be read, and
decoders.

In go URLs; out comes a line in words, or one UsageError that names the thing and the cure.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import av
import pyarrow as pa
import pyarrow.compute
from av.codec.codec import UnknownCodecError

from pipeline.corpus.read import require_input
from pipeline.records.arrow import pc
from pipeline.records.clips import CLIP_SCHEMA, Clip, clip_of, clip_table
from pipeline.records.vocabulary import UsageError
from pipeline.storage.archives.members import archive_of, is_member
from pipeline.storage.remote import local_path, open_filesystem
from pipeline.storage.retry import StorageError, call
from pipeline.storage.spool import BatchSpool
from pipeline.storage.store import Storage

FOLDER = "preflight"


TRIES = 4  # A person waits.


LITTLE_BYTES = 2**30


# Codec -> its decoders in FFmpeg. FFmpeg's own av1 needs a GPU.
DECODERS = {
    "h264": ("h264",),
    "hevc": ("hevc",),
    "mpeg4": ("mpeg4",),
    "vp8": ("vp8", "libvpx"),
    "vp9": ("vp9", "libvpx-vp9"),
    "av1": ("libdav1d", "libaom-av1"),
}


# Of a clip or an archive in a store; a name on this machine that is no UTF-8 is a `file:` URL.
_REMOTE = r"^([a-z0-9+.-]+://[^?]|archive://\?file=[a-z0-9+.-]+%3A)"


def preflight(*, input_url: str, output_url: str) -> list[str]:
    """Try the input's address, the output and the decoders of a job on clips; what to tell, a line each.

    Raises UsageError where the input is not there or the output cannot be used. A missing decoder is told: only its
    clips will be quarantined.
    """
    require_input(input_url)
    checked = f"checked: {check_output(output_url)}"
    missing = missing_decoders()
    if not missing:
        return [f"{checked}; decoders {', '.join(DECODERS)}"]
    return [
        checked,
        f"warning: PyAV has no decoder for {', '.join(missing)}: such clips will be quarantined; install av",
    ]


def check_clips(clips: Sequence[Clip] | BatchSpool) -> None:
    """Read a byte of the first, middle and last remote clip until one is read: listing may be allowed where reading is
    not. clips: or rows of CLIP_SCHEMA, or of more columns. Raises UsageError where none can be read."""
    batches = clips if isinstance(clips, BatchSpool) else clip_table(clips).to_batches()
    middle_row = (clips.num_rows if isinstance(clips, BatchSpool) else len(clips)) // 2
    first: Clip | None = None
    middle: Clip | None = None
    last: Clip | None = None
    num_rows = 0
    for batch in batches:
        is_remote = pc.and_(
            pc.match_substring_regex(batch["url"], _REMOTE), pc.not_equal(batch["content_id"], "missing")
        )
        rows = pc.indices_nonzero(is_remote)
        if len(rows):
            at = pc.index(pc.greater_equal(rows, middle_row - num_rows), True).as_py()
            first = first or _clip_at(batch, rows[0].as_py())
            middle = middle or (_clip_at(batch, rows[at].as_py()) if at >= 0 else None)
            last = _clip_at(batch, rows[-1].as_py())
        num_rows += batch.num_rows
    found = [clip for clip in (first, middle, last) if clip is not None and local_path(_file_of(clip)) is None]
    told = None
    for clip in {clip.clip_id: clip for clip in found}.values():
        url = _file_of(clip)
        filesystem, path = open_filesystem(url, is_listed=True)
        try:
            call(filesystem, "cat_file", path, start=0, end=1, what=f"{url} cannot be read", num_tries=TRIES)
        except FileNotFoundError:
            continue
        except StorageError as error:
            told = told or str(error)
        else:
            return
    if told is not None:
        raise UsageError(f"input {told}")


def _clip_at(batch: pa.RecordBatch, row: int) -> Clip:
    (values,) = batch.slice(row, 1).to_pylist()
    return clip_of({name: values[name] for name in CLIP_SCHEMA.names})


def check_output(url: str) -> str:
    """Write, create twice, read, list and delete a small object below `url`; what was found, in words.

    Raises UsageError where one of them fails, or where the store lets a second writer replace what the first created:
    two attempts at one unit could then both count.
    """
    storage = Storage(url, num_tries=TRIES)
    if storage.is_local and os.path.isfile(storage.path()):
        raise UsageError(f"output {url} is not a folder; give a folder, or a name that is not taken")
    name = f"{FOLDER}/{secrets.token_hex(8)}"
    try:
        storage.put(name, b"replaced")
        storage.put(name, b"first")
        is_refused = not storage.create(name, b"second")
        found = storage.read(name, size_bytes=len(b"first" if is_refused else b"second"))
        is_listed = name in storage.sizes(FOLDER)
        storage.delete(name)
        is_gone = not storage.exists(name)
    except OSError as error:
        told = str(error) if isinstance(error, StorageError) else f"{url}: {error}; check the path"
        raise UsageError(f"output {told}") from None
    finally:
        clean(storage, name)
    if not is_refused or found != b"first":
        raise UsageError(
            f"output {url}: the store ignores If-None-Match, so that two attempts at one unit could both count; use a "
            "store with conditional writes (S3, R2, GCS, MinIO of 2024 or later) or a shared disk"
        )
    if not is_listed or not is_gone:
        raise UsageError(f"output {url}: what is written is not listed, or what is deleted stays; use another store")
    text = "the output is writable, the first of two writers wins"
    if storage.is_local:
        free_bytes = shutil.disk_usage(storage.path()).free
        text += f", {'only ' if free_bytes < LITTLE_BYTES else ''}{free_bytes / 2**30:.1f} GiB free"
    return text


def missing_decoders() -> list[str]:
    """The common codecs that PyAV cannot decode here."""
    return [codec for codec, names in DECODERS.items() if not any(map(_has_decoder, names))]


def clean(storage: Storage, name: str) -> None:
    """Remove a small object that was written to try the output, and its folder."""
    with contextlib.suppress(OSError):
        storage.delete(name)
        if storage.is_local:
            Path(storage.path(FOLDER)).rmdir()


def _file_of(clip: Clip) -> str:
    return archive_of(clip.url) if is_member(clip.url) else clip.url


def _has_decoder(name: str) -> bool:
    try:
        return av.Codec(name, "r").type == "video"
    except UnknownCodecError:
        return False
