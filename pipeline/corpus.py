"""An input (folder, file, glob, manifest, CAER, CAER-S; local or any fsspec URL) in; a sorted table of clips out.

Nothing vanishes: every file below the input is either a clip or an `Ignored` with a reason. Files are listed and
hashed here, never decoded. Clip ids do not depend on where the corpus lies: see `read_corpus`. A listing streams into
columns, some 0.4 KB a file: as objects, ten million files would not fit into memory.
"""

from __future__ import annotations

import base64
import csv
import errno
import hashlib
import io
import json
import math
import os
import posixpath
import re
import stat
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cache, cached_property
from itertools import accumulate, chain, islice
from typing import Any, TypeVar
from urllib.parse import quote, unquote_to_bytes, urljoin

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.utils import glob_translate

from pipeline.archives import Member, kind_of, list_members, listing_block_bytes, member_url
from pipeline.records import CLIP_SCHEMA, EMOTIONS, SPLITS, Clips, UsageError
from pipeline.storage import (
    RangedFile,
    StorageError,
    StoreLostError,
    call,
    listed,
    open_filesystem,
    redacted,
    store_errors,
)

pc: Any = pyarrow.compute  # Its functions are made when it is imported, where no type checker sees them.
CORPUS_SCHEMA = CLIP_SCHEMA.append(pa.field("modified_seconds", pa.float64()))
LAYOUTS = ("auto", "caer", "caer-s", "manifest", "folder")

_VIDEO_EXTENSIONS = frozenset(
    "3g2 3gp asf avi divx dv f4v flv gif h264 h265 hevc ivf m1v m2t m2ts m2v m4v mj2 mkv mov mp4 mpe mpeg mpg mts mxf "  # noqa: SIM905
    "ogm ogv qt rm rmvb ts vob webm wmv y4m".split()
)
_IMAGE_EXTENSIONS = frozenset({"png", "jpg", "jpeg"})
_MANIFEST_EXTENSIONS = frozenset({"csv", "tsv", "parquet"})
_OTHER_ARCHIVE_EXTENSIONS = frozenset({"7z", "bz2", "gz", "rar", "tbz2", "txz", "xz", "zst"})
# These names settle it too; a file of any other name is what its first bytes say.
_OTHER_EXTENSIONS = _MANIFEST_EXTENSIONS | frozenset(
    "aac arrow ass bmp cfg doc docx eaf flac h5 hdf5 heic htm html ini ipynb json jsonl log m3u m3u8 m4a mat md md5 "  # noqa: SIM905
    "mp3 mpd npy npz ogg opus pdf pkl pt pth py rst safetensors sh srt svg tif tiff toml txt vtt wav webp wma xls xlsx "
    "xml yaml yml".split()
)

_NAMED_EXTENSIONS = _VIDEO_EXTENSIONS | _IMAGE_EXTENSIONS | _OTHER_EXTENSIONS

_LABEL_NAMES: dict[str, str] = {name.lower(): name for name in EMOTIONS} | {
    "angry": "Anger",
    "disgusted": "Disgust",
    "fearful": "Fear",
    "happiness": "Happy",
    "sadness": "Sad",
    "surprised": "Surprise",
}
_SPLIT_NAMES: dict[str, str] = {name: name for name in SPLITS} | {"val": "validation"}
_MANIFEST_COLUMNS = ("url", "label", "split", "start_seconds", "end_seconds")

_TIMES = ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "modified", "created")
_THREADS = 8
_ROWS_AT_ONCE = 2**15
# A column of Arrow's strings holds no more, so some 50 million addresses.
_MOST_URL_BYTES = 2**31 - 1
_TRIES = 5  # of one request: a person waits, 4 s on average
_FIRST_BYTES = 4096

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class CorpusError(UsageError):
    """An input that cannot be read as a corpus: one line that names the thing, the value and the cure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ignored:
    """A file (or, ending in "/", a folder) below the input that is not a clip, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What an input holds. `root` is what the paths of its clips are relative to.

    layout: caer, caer-s, manifest or folder. description: one line for people, on what was recognised. table: rows of
    CLIP_SCHEMA, sorted by path, then start. As read it has a column more, modified_seconds: when a clip's file was last
    modified, seconds of the epoch, or null where the store does not tell.
    """

    layout: str
    root: str
    description: str
    table: pa.Table
    ignored: tuple[Ignored, ...]

    @cached_property
    def clips(self) -> Clips:
        """The table's rows as clips."""
        return Clips(self.table)


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """One listed file. `path` is relative to the root and may hold surrogates (undecodable bytes of a local name)."""

    path: str
    place: str  # absolute local path, or the name in the store
    size_bytes: int
    store: AbstractFileSystem | None = None  # None: a local file
    content_id: str | None = None  # None: the MD5 of the bytes, not yet taken
    modified: float | None = None  # seconds of the epoch
    label: str | None = None
    split: str | None = None
    start_pts_seconds: float | None = None
    end_pts_seconds: float | None = None
    url: str | None = None  # None: `place` in `store`; else where it lies in an archive
    is_broken: bool = False  # it is known that it cannot be read, and its url says why
    tree_path: str | None = None  # of a member: its path if each archive were unpacked where it lies


class _Files:
    """Files of one root, in columns; each is made again when it is asked for.

    A column of nothing but None takes no memory, so a listed file costs its path, size, etag and time.
    """

    def __init__(self, root: str, store: AbstractFileSystem | None) -> None:
        self._start, self._store = root.rstrip("/") + "/", store
        self._rows: list[tuple[Any, ...]] = []
        self._batches: deque[pa.RecordBatch] = deque()
        self._num_flushed = 0

    def append(self, file: _File) -> None:
        place = None if file.place == self._start + file.path else _bytes_of(file.place)
        tree_path = None if file.tree_path is None else _bytes_of(file.tree_path)
        self._rows.append((_bytes_of(file.path), tree_path, place, *(getattr(file, name) for name in _PLAIN_FIELDS)))
        if len(self._rows) == _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [pa.array(column) for column in zip(*self._rows, strict=True)]
            self._batches.append(pa.record_batch(columns, names=["path", "tree_path", "place", *_PLAIN_FIELDS]))
            self._num_flushed += len(self._rows)
            self._rows = []

    def __len__(self) -> int:
        return self._num_flushed + len(self._rows)

    def __iter__(self) -> Iterator[_File]:
        self._flush()
        for batch in self._batches:
            yield from self._files_of(batch)

    def taken(self) -> Iterator[_File]:
        """The files, of which none is left here then."""
        self._flush()
        while self._batches:
            yield from self._files_of(self._batches.popleft())

    def tree_paths(self) -> Iterator[str]:
        """`_tree_path` of each file."""
        self._flush()
        for batch in self._batches:
            for path, tree_path in zip(batch["path"].to_pylist(), batch["tree_path"].to_pylist(), strict=True):
                yield _text_of(path if tree_path is None else tree_path)

    def _files_of(self, batch: pa.RecordBatch) -> Iterator[_File]:
        for path, tree_path, place, *plain in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            text = _text_of(path)
            yield _File(
                path=text,
                place=self._start + text if place is None else _text_of(place),
                tree_path=None if tree_path is None else _text_of(tree_path),
                store=self._store,
                **dict(zip(_PLAIN_FIELDS, plain, strict=True)),
            )


_PLAIN_FIELDS = tuple(each.name for each in fields(_File) if each.name not in ("path", "tree_path", "place", "store"))


def _bytes_of(text: str) -> bytes:
    return text.encode(errors="surrogateescape")  # A column of text may not hold the bytes of a name that is no UTF-8.


def _text_of(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def read_corpus(
    input_url: str,
    *,
    layout: str = "auto",
    split_fractions: Sequence[float] | None = (0.7, 0.1, 0.2),
    storage_options: Mapping[str, Any] | None = None,
) -> Corpus:
    """Every clip of a folder, file, glob or manifest, with stable ids, labels and splits.

    `input_url` is a local path or an fsspec URL. A manifest is a .csv, .tsv or .parquet given itself, with a column
    url and optionally label, split, start_seconds, end_seconds; its relative urls start at its own folder. CAER is
    `{train,validation,test}/<Class>/*` of videos, CAER-S the same of images; auto also finds them one folder above or
    below the input. In any other folder, direct sub-folders that are all classes give labels. Class and split names
    are read in any case; Angry, Disgusted, Fearful, Happiness, Sadness, Surprised and val are taken too.

    Splits come from the layout or the manifest. A CAER-S without validation has its official test cut 1:2 into
    validation and test, per class, by blocks of file numbers: neighbouring files are frames of one clip, so random
    images would leak. Clips without a split get `split_of` with `split_fractions`; None leaves them without. All time
    ranges of one file fall into one split.

    `clip_id` is from the path, size, content and time range. `content_id` is the MD5 of a local file and the store's
    etag of a remote one: equal for S3 objects written by a single PUT, so that a copied corpus keeps its ids. It is
    "missing", "unreadable" or "not-a-file" for clips that will fail when they are read.

    Archives (.zip, .tar, .tar.gz, .tgz, .tar.zst, .tzst) that are found in a folder, glob or given themselves are
    listed: their videos are clips with paths `archive!member`, labelled as if each were unpacked where it lies, known
    by their names alone. A member or an archive that cannot be read is a clip too, whose reading gives the reason.

    Raises CorpusError for an input that is missing, empty, forbidden or contradicts its layout or manifest.
    """
    if layout not in LAYOUTS:
        raise CorpusError(f"layout {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    if split_fractions is not None:
        _check_fractions(split_fractions)
    if not input_url:
        raise CorpusError("the input is empty; give a folder, file, glob or manifest, local or as a URL")
    with _one_line_errors(input_url):
        place, store = _locate(input_url, storage_options)
        if layout in ("auto", "manifest") and _is_manifest(place, store):
            return _read_manifest(
                place, store, split_fractions=split_fractions, storage_options=storage_options, shown=_shown(input_url)
            )
        if layout == "manifest":
            raise CorpusError(
                f"input {_shown(input_url)} is not a manifest; give a .csv, .tsv or .parquet file, or another layout"
            )
        return _read_files(place, store, layout=layout, split_fractions=split_fractions, shown=_shown(input_url))


def require_input(input_url: str) -> None:
    """Raise CorpusError where nothing is at the input, in one or two requests: nothing is listed or hashed."""
    if not input_url:
        raise CorpusError("the input is empty; give a folder, file, glob or manifest, local or as a URL")
    with _one_line_errors(input_url):
        place, store = _locate(input_url, None)
        wildcard = re.search(r"[^/]*[*?[]", place)
        above = (place[: wildcard.start()].rstrip("/") or "/") if wildcard else place
        if store is None:
            os.stat(place if os.path.lexists(place) else above)
        elif "://" in place:
            _ask(store, "info", place)
        elif place:
            _ask(store, "info", above)


def split_of(clip_id: str, split_fractions: Sequence[float]) -> str:
    """The split of a clip by the hash of its id: clips that are added or removed never move another.

    `split_fractions` are the shares of train, validation and test. Raises CorpusError if they do not sum to 1.
    """
    _check_fractions(split_fractions)
    return _split_at(clip_id, split_fractions)


def _split_at(clip_id: str, split_fractions: Sequence[float]) -> str:
    position = int.from_bytes(hashlib.sha256(f"split {clip_id}".encode()).digest()[:6], "big") / 2**48
    for split, edge in zip(SPLITS, accumulate(split_fractions), strict=True):
        if position < edge:
            return split
    # The shares may sum to 1 - 1e-9.
    return max(zip(split_fractions, SPLITS, strict=True))[1]


def local_path(url: str) -> str | None:
    """The local path of a clip's url, or None where the url is in a remote store.

    A local url is the path as it is, except for a name that is not valid UTF-8, which is a percent-encoded `file:` URL.
    """
    if not (match := re.match(r"([A-Za-z][\w+.-]*)://", url)):
        return url
    if match[1] not in ("file", "local"):
        return None
    path = url[match.end() :]
    return path if os.path.lexists(path) else os.fsdecode(unquote_to_bytes(path))


# --- where the bytes are ---------------------------------------------------------------------------------------------


def _locate(url: str, storage_options: Mapping[str, Any] | None) -> tuple[str, AbstractFileSystem | None]:
    """The absolute local path and None, or the name in a store and the store."""
    if (path := local_path(url)) is not None:
        return os.path.abspath(path), None
    protocol = url.partition("://")[0]
    try:
        store, name = open_filesystem(url, storage_options)
    except (ImportError, TypeError, ValueError) as error:
        raise CorpusError(
            f"input {_shown(url)}: {_shown(str(error))}; install the fsspec package of {protocol!r}, or use another URL"
        ) from None
    store.invalidate_cache()  # a listing kept from an earlier read of this process may be old
    return name, store


def _ask(store: AbstractFileSystem, method: str, place: str, **options: Any) -> Any:
    """What a store's method says of a place; what may pass is asked again."""
    return call(store, method, place, what=f"{_url_of(place, store)} cannot be read", num_tries=_TRIES, **options)


def _info(place: str, store: AbstractFileSystem) -> Mapping[str, Any] | None:
    try:
        return _ask(store, "info", place)
    except FileNotFoundError:
        return None


def _url_of(place: str, store: AbstractFileSystem | None) -> str:
    if store is not None:
        return store.unstrip_protocol(place)
    return place if _is_utf8(place) else "file://" + quote(os.fsencode(place))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(path: str) -> str:
    r"""A path as valid UTF-8: undecodable bytes of a local name are shown as \xNN."""
    return path if _is_utf8(path) else os.fsencode(path).decode("utf-8", "backslashreplace")


def _shown(text: str) -> str:
    """Text for people, in one line: no credentials, no signed query strings."""
    return re.sub(r"\s*[\r\n]+\s*", " ", redacted(_printable(text)))


@contextmanager
def _one_line_errors(input_url: str) -> Iterator[None]:
    try:
        yield
    except store_errors() as error:
        if isinstance(error, StorageError) and error.errno != errno.ENOENT:
            raise CorpusError(f"input {error}") from None
        detail = _shown(f"{type(error).__name__}: {error}")[:300]
        fault, cure = f"cannot be read: {detail}", "check the address, the network and the store"
        if isinstance(error, FileNotFoundError | StorageError):
            fault, cure = "does not exist", "check the path"
        elif isinstance(error, PermissionError) or "redential" in detail or "Forbidden" in detail:
            cure = "check the credentials, and that they may list and read it"
        # Not chained: the store's own traceback may hold credentials or signed URLs.
        raise CorpusError(f"input {_shown(input_url)} {fault}; {cure}") from None


def _in_threads(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """`work` of each item, in order; only a few are waited for at a time, so that a million need no more memory."""
    pool, items = ThreadPoolExecutor(_THREADS), iter(items)
    try:
        waiting = deque(pool.submit(work, item) for item in islice(items, 4 * _THREADS))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(items, 1))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the running files, not for all that are queued


# --- listing ---------------------------------------------------------------------------------------------------------


def _list_input(
    place: str, store: AbstractFileSystem | None, *, shown: str
) -> tuple[str, Iterator[_File | Ignored], bool]:
    """The root, its files with what is no file, and whether the input was a single file."""
    wildcard = re.search(r"[^/]*[*?[]", place)
    if wildcard and not (os.path.lexists(place) if store is None else _info(place, store)):
        # The folder before the first wildcard is the root, so that ids are those of the whole folder.
        root = place[: wildcard.start()].rstrip("/") or "/"
        pattern = place.removeprefix(root).lstrip("/")
        try:
            matches = re.compile(glob_translate(pattern)).match
        except ValueError as error:
            raise CorpusError(f"glob {shown}: {error}; write ** alone between slashes") from None
        depth = None if "**" in pattern else pattern.count("/")
        items = _local_files(root, depth=depth) if store is None else _remote_files(root, store)
        return root, (item for item in items if item.path.endswith("/") or matches(item.path)), False
    if store is not None:
        items = _remote_files(place, store)
        first = list(islice(items, 2))
        single = [item.place for item in first if isinstance(item, _File)] == [place]
        return (posixpath.dirname(place) if single else place), chain(first, items), single
    if os.path.isdir(place):
        return place, _local_files(place, depth=None), False
    status = os.stat(place)
    if not stat.S_ISREG(status.st_mode):
        raise CorpusError(f"input {shown} is neither a folder nor a regular file; give one of these")
    file = _File(path=os.path.basename(place), place=place, size_bytes=status.st_size, modified=status.st_mtime)
    return os.path.dirname(place), iter([file]), True


def _local_files(root: str, *, depth: int | None) -> Iterator[_File | Ignored]:
    """All regular files below a local folder, following each linked folder once; `depth` limits the levels below."""

    def ignored(path: str, reason: str) -> Ignored:
        return Ignored(path=_printable(path), reason=reason)

    read: dict[tuple[int, int], str] = {}
    above = os.path.realpath(root)
    while (parent := os.path.dirname(above)) != above:
        status = os.stat(parent)
        read[status.st_dev, status.st_ino] = "the input's own parent"
        above = parent
    folders, links = [""], []
    while folders or links:
        # Links wait until the tree itself is read, so that a file keeps its own name whatever links lead to it.
        if not folders:
            links.sort(reverse=True)
        folder = folders.pop() if folders else links.pop()
        try:
            status = os.stat(os.path.join(root, folder))
            with os.scandir(os.path.join(root, folder)) as entries:
                sorted_entries = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not folder:
                raise
            yield ignored(f"{folder}/", f"a folder that cannot be listed: {error.strerror}")
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in read:
            yield ignored(f"{folder}/", f"a link to a folder already read: {read[identity]}")
            continue
        read[identity] = _printable(folder or "the input itself")
        for entry in sorted_entries:
            path = posixpath.join(folder, entry.name)
            try:
                status = entry.stat()
            except OSError as error:
                kind = "a link that leads nowhere" if entry.is_symlink() else "it cannot be looked at"
                yield ignored(path, f"{kind}: {error.strerror}")
                continue
            is_folder = stat.S_ISDIR(status.st_mode)
            if entry.name.startswith("."):
                yield ignored(path + "/" * is_folder, "hidden: its name begins with a dot")
            elif is_folder:
                if depth is None or path.count("/") < depth:
                    (links if entry.is_symlink() else folders).append(path)
            elif stat.S_ISREG(status.st_mode):
                place, modified = os.path.join(root, path), status.st_mtime
                yield _File(path=path, place=place, size_bytes=status.st_size, modified=modified)
            else:
                yield ignored(path, "not a regular file: a FIFO, device or socket")


def _remote_files(root: str, store: AbstractFileSystem) -> Iterator[_File | Ignored]:
    """All objects below a name in a store, by one listing; a name that is itself an object gives that object."""
    start = root.rstrip("/") + "/"
    for place, info in _objects(root, store):
        if place.endswith("/"):
            continue  # the empty object that stands for a folder
        path = posixpath.basename(_without_query(place)) if place == root else place.removeprefix(start)
        if place != root and (path.startswith(".") or "/." in path):
            yield Ignored(path=path, reason="hidden: its name begins with a dot")
        else:
            yield _File(
                path=path,
                place=place,
                size_bytes=info.get("size") or 0,
                store=store,
                content_id=_remote_content_id(info),
                modified=_remote_modified(info),
            )


def _objects(root: str, store: AbstractFileSystem) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if "://" in root and not root.endswith("/"):
        # On the web: to list it, the whole file would be read for its links.
        yield root, _ask(store, "info", root)
        return
    url = _url_of(root, store)
    objects = listed(store, root, what=f"{url} cannot be read", num_tries=_TRIES)
    try:
        first = next(objects, None)
    except ValueError as error:
        raise CorpusError(f"input {_shown(url)}: {_shown(str(error))}; name a bucket or folder") from None
    if first is not None:
        yield first
        yield from objects
    elif root and (info := _info(root, store)) and info["type"] == "file":
        yield root, info


def _remote_content_id(info: Mapping[str, Any]) -> str:
    if info.get("type") == "directory":
        return "not-a-file"
    if info.get("md5Hash"):  # Google's MD5, in base64; its etag changes with the metadata
        return base64.b64decode(info["md5Hash"]).hex()
    for name in ("ETag", "etag", "generation", "checksum"):
        if info.get(name):
            return str(info[name]).removeprefix("W/").strip('"')
    changed = next((str(info[name]) for name in _TIMES if info.get(name)), "")
    return f"{info.get('size')} {changed}".strip()


def _remote_modified(info: Mapping[str, Any]) -> float | None:
    """When an object was modified, seconds of the epoch: stores give a datetime, its text, or a number."""
    value = next((info[name] for name in _TIMES if info.get(name)), None)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return float(value) if isinstance(value, int | float) else None


def _without_query(place: str) -> str:
    return place.partition("?")[0] if place.startswith(("http://", "https://")) else place


# --- what a file is --------------------------------------------------------------------------------------------------


def _extension(path: str) -> str:
    return posixpath.splitext(path)[1].lower().removeprefix(".")


def _is_manifest(place: str, store: AbstractFileSystem | None) -> bool:
    if _extension(_without_query(place)) not in _MANIFEST_EXTENSIONS:
        return False
    if store is None:
        return os.path.isfile(place)
    info = _info(place, store)  # Not isfile(): it takes every fault for a no.
    return info is not None and info["type"] == "file"


def _first_bytes(file: _File) -> bytes | OSError:
    if file.size_bytes == 0:
        return b""
    if file.store is not None:
        return bytes(_ask(file.store, "cat_file", file.place, start=0, end=_FIRST_BYTES))
    try:
        with open(file.place, "rb") as stream:
            return stream.read(_FIRST_BYTES)
    except OSError as error:
        return error


def _is_video(start: bytes) -> bool:
    """Whether the first bytes are those of a known video container."""
    return (
        start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
        or (start[:4] == b"RIFF" and start[8:12] == b"AVI ")
        or start.startswith(
            (
                b"\x1a\x45\xdf\xa3",  # Matroska, WebM
                b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
                b"\x00\x00\x01\xba",  # MPEG program stream
                b"\x00\x00\x01\xb3",  # MPEG video
                b"\x06\x0e\x2b\x34\x02\x05\x01\x01",  # MXF
                b"FLV\x01",
                b"GIF87a",
                b"GIF89a",
                b"OggS",
                b".RMF",
                b"YUV4MPEG2 ",
                b"DKIF",
            )
        )
        # A transport stream's packets of 188 bytes, or of 192 with a time code before each, begin with 0x47.
        or any(
            len(start) > first + 2 * step and {*start[first::step][:8]} == {0x47}
            for first, step in ((0, 188), (4, 192))
        )
    )


class _Sorted:
    """What the files of an input are: by the name where it tells, else by the first bytes of a loose file."""

    def __init__(self, root: str, store: AbstractFileSystem | None) -> None:
        self.videos, self.images, self._unnamed = (_Files(root, store) for _ in range(3))
        self.broken: list[_File] = []  # archives that cannot be read (to their end), and archives in them
        self.broken_videos: list[_File] = []
        self.broken_images: list[_File] = []
        self.ignored: list[Ignored] = []
        self.num_members = 0

    def read(self, items: Iterable[_File | Ignored]) -> None:
        """Sort out all that was listed, and what lies in the archives among it."""
        archives: list[_File] = []
        for item in items:
            if isinstance(item, Ignored):
                self.ignored.append(item)
            elif (extension := _extension(item.path)) not in _NAMED_EXTENSIONS and kind_of(item.path):
                archives.append(item)
            else:
                self._add(item, extension)
        for archive, found in zip(archives, _in_threads(_members_of, archives), strict=True):
            if not found:
                self.ignored.append(_ignored(archive, "an archive that holds nothing"))
            for member in found:
                self._add_member(archive, member)
        self._read_unnamed()

    def _add(self, file: _File, extension: str) -> None:
        if extension in _VIDEO_EXTENSIONS:
            (self.broken_videos if file.is_broken else self.videos).append(file)
        elif extension in _IMAGE_EXTENSIONS:
            (self.broken_images if file.is_broken else self.images).append(file)
        elif extension in _OTHER_ARCHIVE_EXTENSIONS:
            self.ignored.append(_ignored(file, f"an archive of a kind that is not read: .{extension}"))
        elif extension in _OTHER_EXTENSIONS or file.url is not None:
            self.ignored.append(_not_a_video(file))
        else:
            self._unnamed.append(file)

    def _add_member(self, archive: _File, member: Member) -> None:
        path = f"{archive.path}!{member.name}" if member.name else archive.path
        file = replace(
            archive,
            path=path,
            size_bytes=member.size_bytes,
            content_id=member.content_id,
            is_broken=member.reason is not None,
            url=member_url(_url_of(archive.place, archive.store), archive.size_bytes, member),
            tree_path="/".join([*filter(None, map(posixpath.dirname, path.split("!"))), posixpath.basename(path)]),
        )
        if not member.name or kind_of(member.name):
            self.broken.append(file)
        elif any(part.startswith(".") and part != ".." for part in re.split("[/!]", member.name)):
            self.ignored.append(_ignored(file, "hidden: its name begins with a dot"))
        else:
            self.num_members += 1
            self._add(file, _extension(path))

    def _read_unnamed(self) -> None:
        def first_bytes(file: _File) -> tuple[_File, bytes | OSError]:
            return file, _first_bytes(file)

        for file, start in _in_threads(first_bytes, self._unnamed.taken()):
            if isinstance(start, OSError):
                reason = f"not a video by its name, and it cannot be read: {start.strerror}"
                self.ignored.append(_ignored(file, reason))
            elif _is_video(start):
                self.videos.append(file)
            else:
                self.ignored.append(_ignored(file, "not a video: no known container in its first bytes"))


def _ignored(file: _File, reason: str) -> Ignored:
    return Ignored(path=_printable(file.path), reason=reason)


def _not_a_video(file: _File) -> Ignored:
    return _ignored(file, _not_a_video_reason(_extension(file.path)))


@cache  # A million files share a few texts.
def _not_a_video_reason(extension: str) -> str:
    return f"not a video by its name: .{extension}"


# --- archives --------------------------------------------------------------------------------------------------------


def _members_of(archive: _File) -> list[Member]:
    kind = kind_of(archive.path)
    assert kind is not None, "only archives come here"
    content_id = archive.content_id or _md5(archive)
    try:
        with _opened(archive, block_bytes=listing_block_bytes(kind)) as file:
            return list_members(
                file, kind, size_bytes=archive.size_bytes, content_id=content_id, is_wanted=_is_named_as_clip
            )
    except OSError as error:
        if archive.store is not None:
            raise
        detail = f"it cannot be opened: {error.strerror}; check its rights"
        return [
            Member(
                name="",
                size_bytes=archive.size_bytes,
                content_id=content_id,
                steps=(),
                reason="unreadable",
                detail=detail,
            )
        ]


def _opened(file: _File, *, block_bytes: int) -> Any:
    if file.store is None:
        return open(file.place, "rb")
    what = f"{_url_of(file.place, file.store)} cannot be read"
    return RangedFile(file.store, file.place, what=what, size_bytes=file.size_bytes, block_bytes=block_bytes)


def _is_named_as_clip(name: str) -> bool:
    extension = _extension(name)
    return extension in _VIDEO_EXTENSIONS or extension in _IMAGE_EXTENSIONS


# --- folders ---------------------------------------------------------------------------------------------------------


def _read_files(
    place: str,
    store: AbstractFileSystem | None,
    *,
    layout: str,
    split_fractions: Sequence[float] | None,
    shown: str,
) -> Corpus:
    root, items, single = _list_input(place, store, shown=shown)
    found = _Sorted(root, store)
    found.read(items)
    has_videos = bool(found.videos or found.broken_videos)
    has_images = bool(found.images or found.broken_images)
    takes_images = layout == "caer-s" or (layout == "auto" and not has_videos)
    wanted = found.images if takes_images else found.videos
    # Whatever the names of broken members are, they upset no layout.
    broken = found.broken + (found.broken_images if takes_images else found.broken_videos)
    move = None
    if layout != "folder" and (found.num_members or not single):
        move = _caer_move("" if single else posixpath.basename(root.rstrip("/")), wanted.tree_paths())
    if layout in ("caer", "caer-s") and move is None:
        kind = "images" if layout == "caer-s" else "videos"
        raise CorpusError(
            f"input {shown} is not in the layout {layout!r}: no {kind} in {{train,validation,test}}/<Class>/; "
            "check the path, or set the layout to auto or folder"
        )
    ignored = found.ignored
    if move is not None:
        layout = "caer-s" if layout == "caer-s" or not has_videos else "caer"
        if layout == "caer-s":
            videos = chain(found.videos.taken(), found.broken_videos)
            ignored += [_ignored(file, "a video among the images of CAER-S") for file in videos]
        else:
            ignored += map(_not_a_video, chain(found.images.taken(), found.broken_images))
        strip, add = move
        moves_root = not strip or any(file.path.startswith(strip) for file in wanted)
        if moves_root:  # else it is a folder inside an archive
            root = posixpath.join(root, strip) if strip else posixpath.dirname(root) if add else root
            ignored = [replace(item, path=_moved(item.path, strip, add)) for item in ignored]
            broken = [replace(file, path=_moved(file.path, strip, add)) for file in broken]
        _check_caer(wanted, move, moves_root=moves_root, shown=shown)
        rows, notes = _cut_test(wanted, move) if layout == "caer-s" else (set(), [])
        clips = _in_caer(wanted, move, moves_root=moves_root, validation_rows=rows)
    else:
        layout = "folder"
        ignored += map(_not_a_video, chain(found.images.taken(), found.broken_images))
        if not found.videos and not broken:
            reasons = Counter(item.reason for item in ignored).most_common(3)
            told = "; ".join(f"{count:,} × {reason}" for reason, count in reasons) or "nothing is there"
            cure = "images are read in the CAER-S layout only" if has_images else "check the path"
            raise CorpusError(f"input {shown} holds no video ({told}); {cure}")
        is_labelled = _are_labels(found.videos.tree_paths())
        notes = [] if is_labelled or not found.videos else ["no labels"]
        clips = map(_in_its_folder, found.videos.taken()) if is_labelled else found.videos.taken()
    url = _url_of(root.rstrip("/") or "/", store)
    files = chain(clips, broken)
    return _corpus(layout, url, files=files, ignored=ignored, split_fractions=split_fractions, notes=notes)


def _tree_path(file: _File) -> str:
    return file.path if file.tree_path is None else file.tree_path


def _moved(path: str, strip: str, add: str) -> str:
    if not strip:
        return add + path
    return path.removeprefix(strip) if path.startswith(strip) and path != strip else f"../{path}"


def _caer_move(root_name: str, paths: Iterable[str]) -> tuple[str, str] | None:
    """The prefixes to take from and to put before the paths, so that they are CAER's; None if they are not CAER."""
    tops: set[str] = set()
    is_below = is_above = False
    for path in paths:
        parts = path.split("/", 3)
        if _caer_class(parts):
            return "", ""
        if len(tops) < 2:
            tops.add(parts[0])
        is_below = is_below or _caer_class(parts[1:]) is not None
        is_above = is_above or _caer_class([root_name, *parts]) is not None
    if len(tops) == 1 and is_below:
        return f"{tops.pop()}/", ""
    return ("", f"{root_name}/") if is_above else None


def _caer_class(parts: Sequence[str]) -> tuple[str, str] | None:
    """The split and label of a path that is split at its slashes."""
    if len(parts) < 3 or (split := _SPLIT_NAMES.get(parts[0].lower())) is None:
        return None
    label = _LABEL_NAMES.get(parts[1].lower())
    return None if label is None else (split, label)


def _caer_parts(tree_path: str, move: tuple[str, str]) -> list[str]:
    return (move[1] + tree_path.removeprefix(move[0])).split("/", 2)


def _check_caer(files: _Files, move: tuple[str, str], *, moves_root: bool, shown: str) -> None:
    num_strays = sum(_caer_class(_caer_parts(path, move)) is None for path in files.tree_paths())
    if num_strays:
        strays = (file.path for file in files if _caer_class(_caer_parts(_tree_path(file), move)) is None)
        first = min(_moved(path, *move) if moves_root else path for path in strays)
        # Leaving them out would lose a class that is only misspelt.
        raise CorpusError(
            f"input {shown} is in CAER's layout, but {num_strays:,} of its {len(files):,} files are in no "
            f"{{train,validation,test}}/<Class>/, the first {first!r}; the classes are {', '.join(EMOTIONS)}; "
            "rename or move them, or set the layout to folder"
        )


def _cut_test(files: _Files, move: tuple[str, str]) -> tuple[set[int], list[str]]:
    """CAER-S as shipped has no validation: the first third of each class of its test becomes that. Which files."""
    blocks: dict[str, list[tuple[list[str | int], int]]] = {}
    for row, tree_path in enumerate(files.tree_paths()):
        split, label = _caer_class(parts := _caer_parts(tree_path, move)) or ("", "")
        if split == "validation":
            return set(), []
        if split == "test":
            numbered = re.split(r"([0-9]+)", "/".join(parts))
            number = [int(part) if i % 2 else part for i, part in enumerate(numbered)]
            blocks.setdefault(label, []).append((number, row))
    rows = {row for block in blocks.values() for _, row in sorted(block)[: (len(block) + 1) // 3]}  # a third, rounded
    return rows, ["validation is the first third of each class of the official test"] if blocks else []


def _in_caer(
    files: _Files, move: tuple[str, str], *, moves_root: bool, validation_rows: Collection[int]
) -> Iterator[_File]:
    for row, file in enumerate(files.taken()):
        split, label = _caer_class(_caer_parts(_tree_path(file), move)) or (None, None)
        path = _moved(file.path, *move) if moves_root else file.path
        yield replace(file, path=path, split="validation" if row in validation_rows else split, label=label)


def _are_labels(tree_paths: Iterable[str]) -> bool:
    """Whether there are direct sub-folders, and all are classes: labels for all of them, rather than for some."""
    tops = (top.lower() for top, slash, _ in (path.partition("/") for path in tree_paths) if slash)
    first = next(tops, None)
    return first in _LABEL_NAMES and all(top in _LABEL_NAMES for top in tops)


def _in_its_folder(file: _File) -> _File:
    top, slash, _ = _tree_path(file).partition("/")
    return replace(file, label=_LABEL_NAMES[top.lower()]) if slash else file


# --- manifests -------------------------------------------------------------------------------------------------------


def _read_manifest(
    place: str,
    store: AbstractFileSystem | None,
    *,
    split_fractions: Sequence[float] | None,
    storage_options: Mapping[str, Any] | None,
    shown: str,
) -> Corpus:
    if store is None:
        with open(place, "rb") as stream:
            content = stream.read()
    else:
        content = bytes(_ask(store, "cat_file", place))
    extension = _extension(_without_query(place))
    columns = _manifest_columns(content, extension=extension, shown=shown)
    folder = os.path.dirname(place) if store is None else posixpath.dirname(_without_query(place))

    def files() -> Iterator[tuple[str, str, _File]]:
        for where, row in _manifest_rows(content, columns, extension=extension, shown=shown):
            yield where, row["url"], _file_of_row(row, f"manifest {shown}, {where}", folder, store, storage_options)

    # The rows are read twice: as objects, a million of them would take a gigabyte.
    folders = _checked_rows(files, shown=shown)
    unread = [name for name in columns if name not in _MANIFEST_COLUMNS]
    notes = [f"columns not read: {', '.join(unread)}"] if unread else []
    return _corpus(
        "manifest",
        _url_of(folder, store),
        files=_looked_up((file for _, _, file in files()), folders),
        ignored=[],
        split_fractions=split_fractions,
        notes=notes,
    )


def _file_of_row(
    row: Mapping[str, Any],
    thing: str,
    folder: str,
    store: AbstractFileSystem | None,
    storage_options: Mapping[str, Any] | None,
) -> _File:
    url = row["url"]
    if not isinstance(url, str) or not url:
        raise CorpusError(f"{thing}: url is {url!r}; give a path or URL")
    if re.match(r"[A-Za-z][\w+.-]*://", url) or os.path.isabs(url):
        row_place, row_store = _locate(url, storage_options)
    elif store is None:
        row_place, row_store = os.path.abspath(os.path.join(folder, url)), None
    elif "://" in folder:
        row_place, row_store = urljoin(f"{folder}/", url), store
    else:
        row_place, row_store = posixpath.join(folder, url), store
        if {".", ".."} & set(url.split("/")):  # else not: "a//b" is a key of its own
            row_place = posixpath.normpath(row_place)
    start, end = (_seconds(row.get(name), f"{thing}: {name}") for name in _MANIFEST_COLUMNS[3:])
    if start is not None and end is not None and end <= start:
        raise CorpusError(f"{thing}: it ends at {end} s, before it starts at {start} s; correct it")
    return _File(
        path=_path_from(folder, row_place, store=store, row_store=row_store),
        place=row_place,
        size_bytes=0,
        store=row_store,
        label=_named(row.get("label"), _LABEL_NAMES, f"{thing}: label"),
        split=_named(row.get("split"), _SPLIT_NAMES, f"{thing}: split"),
        start_pts_seconds=start,
        end_pts_seconds=end,
    )


def _checked_rows(
    files: Callable[[], Iterable[tuple[str, str, _File]]], *, shown: str
) -> set[tuple[AbstractFileSystem, str]]:
    """The remote folders that a manifest's rows lie in; `files` gives each row's place, url and file.

    Raises CorpusError for a wrong row and for one given twice.
    """

    def key_of(file: _File) -> tuple[str, float | None, float | None]:
        return _url_of(file.place, file.store), file.start_pts_seconds, file.end_pts_seconds

    folders, seen = set(), set()
    for where, url, file in files():
        key = key_of(file)
        if hash(key) in seen:
            first = next(other for other, _, earlier in files() if key_of(earlier) == key)
            if first != where:  # else two keys have one hash
                times = f"from {file.start_pts_seconds} to {file.end_pts_seconds} s"
                raise CorpusError(
                    f"manifest {shown}: {first} and {where} both give {_shown(url)!r} {times}; remove one"
                )
        seen.add(hash(key))
        if file.store is not None:
            folders.add((file.store, file.store._parent(file.place)))
    if not seen:
        raise CorpusError(f"manifest {shown} has no rows; give one row for each clip")
    return folders


@contextmanager
def _manifest_errors(extension: str, *, shown: str) -> Iterator[None]:
    try:
        yield
    except (UnicodeDecodeError, csv.Error, pa.ArrowException, OSError) as error:
        raise CorpusError(
            f"manifest {shown} is not a readable .{extension} file: {_shown(str(error))[:200]}; "
            "write it again as UTF-8 CSV, TSV or Parquet with a header"
        ) from None


def _csv_reader(content: bytes, extension: str) -> Any:
    text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")
    return csv.reader(text, delimiter="\t" if extension == "tsv" else ",", strict=True)


def _manifest_columns(content: bytes, *, extension: str, shown: str) -> list[str]:
    with _manifest_errors(extension, shown=shown):
        if extension == "parquet":
            names = pq.ParquetFile(pa.BufferReader(content)).schema_arrow.names
        else:
            names = next(_csv_reader(content, extension), [])
    return _columns(names, shown=shown)


def _manifest_rows(
    content: bytes, columns: Sequence[str], *, extension: str, shown: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place in the file in words."""
    with _manifest_errors(extension, shown=shown):
        if extension == "parquet":
            number = 0
            for batch in pq.ParquetFile(pa.BufferReader(content)).iter_batches(_ROWS_AT_ONCE):
                for row in batch.rename_columns(columns).to_pylist():
                    number += 1
                    yield f"row {number}", row
            return
        reader = _csv_reader(content, extension)
        next(reader)
        for fields in reader:
            where = f"line {reader.line_num}"
            if fields and len(fields) != len(columns):
                raise CorpusError(
                    f"manifest {shown}, {where}: {len(fields)} fields, but the header has {len(columns)}; "
                    "quote fields that hold the separator"
                )
            if fields:
                yield where, dict(zip(columns, fields, strict=True))


def _columns(names: Sequence[str], *, shown: str) -> list[str]:
    columns = [name.strip().lower() for name in names]
    known = f"the columns are {', '.join(_MANIFEST_COLUMNS)}"
    for name in columns:
        if columns.count(name) > 1:
            raise CorpusError(f"manifest {shown}: column {name!r} is there twice; remove one")
        # A misspelt column would silently lose all labels.
        near = get_close_matches(name, _MANIFEST_COLUMNS, 1, 0.75)
        if name not in _MANIFEST_COLUMNS and near and near[0] not in columns:
            raise CorpusError(f"manifest {shown}: column {name!r} is unknown; did you mean {near[0]!r}? {known}")
    if "url" not in columns:
        raise CorpusError(f"manifest {shown}: no column 'url' among {', '.join(columns) or 'none'}; {known}")
    return columns


def _seconds(value: Any, thing: str) -> float | None:
    if value is None or value == "" or value != value:  # noqa: PLR0124 (NaN: how pandas writes an empty number)
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise CorpusError(f"{thing} {value!r} is not a number of seconds; write it like 12.5")
    return seconds


def _named(value: Any, names: Mapping[str, str], thing: str) -> str | None:
    if value is None or value != value or (text := str(value).strip()) == "":  # noqa: PLR0124 (NaN, as above)
        return None
    if text.lower() not in names:
        raise CorpusError(f"{thing} {value!r} is unknown; use one of {', '.join(dict.fromkeys(names.values()))}")
    return names[text.lower()]


def _path_from(
    folder: str, place: str, *, store: AbstractFileSystem | None, row_store: AbstractFileSystem | None
) -> str:
    """The path of a listed file from the manifest's folder, so that ids hold when both are moved together."""
    if row_store is None:
        return os.path.relpath(place, folder) if store is None else place
    if row_store == store and place.startswith(f"{folder}/"):
        return _without_query(place.removeprefix(f"{folder}/"))
    return _without_query(row_store.unstrip_protocol(place))


def _looked_up(files: Iterable[_File], folders: Iterable[tuple[AbstractFileSystem, str]]) -> Iterator[_File]:
    """Files of a manifest with their sizes and contents; one that is not there stays, marked "missing".

    folders: listed, where they can be, in place of a request for each file.
    """
    infos: dict[tuple[AbstractFileSystem, str], tuple[int, str, float | None]] = {}
    for store, folder in folders:
        if "://" in folder:
            continue  # the web has no listings: each file is asked for
        what = f"{_url_of(folder, store)} cannot be read"
        try:
            for name, info in listed(store, folder, what=what, is_deep=False, num_tries=_TRIES):
                infos[store, name] = _told(info)
        except (FileNotFoundError, StorageError):
            continue  # reading may be allowed where listing is not: each file is asked for

    def looked_up(file: _File) -> _File:
        if file.store is None:
            try:
                status = os.stat(file.place)
            except OSError:
                return replace(file, content_id="missing")
            if not stat.S_ISREG(status.st_mode):
                return replace(file, content_id="not-a-file")
            return replace(file, size_bytes=status.st_size, modified=status.st_mtime)
        try:
            told = infos.get((file.store, file.place)) or _told(_ask(file.store, "info", file.place))
        except FileNotFoundError:
            return replace(file, content_id="missing")
        except StoreLostError as error:
            if error.errno != errno.ENOENT:  # a missing bucket
                raise
            return replace(file, content_id="missing")
        size_bytes, content_id, modified = told
        return replace(file, size_bytes=size_bytes, content_id=content_id, modified=modified)

    return _in_threads(looked_up, files)


def _told(info: Mapping[str, Any]) -> tuple[int, str, float | None]:
    """Size, content id and time of a remote file, out of what its store says."""
    return info.get("size") or 0, _remote_content_id(info), _remote_modified(info)


# --- clips -----------------------------------------------------------------------------------------------------------


def _corpus(
    layout: str,
    root: str,
    *,
    files: Iterable[_File],
    ignored: Iterable[Ignored],
    split_fractions: Sequence[float] | None,
    notes: Sequence[str],
) -> Corpus:
    table, num_hashed = _table(files, split_fractions)
    ignored = tuple(sorted(ignored, key=lambda item: item.path))
    return Corpus(
        layout=layout,
        root=redacted(root),
        description=_description(layout, table, [*notes], num_hashed=num_hashed, ignored=ignored),
        table=table,
        ignored=ignored,
    )


def _table(files: Iterable[_File], split_fractions: Sequence[float] | None) -> tuple[pa.Table, int]:
    """Rows of CORPUS_SCHEMA, sorted, each of one clip; and how many were split by their hash."""
    parts, num_hashed, num_url_bytes, num_files = [CORPUS_SCHEMA.empty_table()], 0, 0, 0
    files = iter(files)
    while batch := list(islice(files, _ROWS_AT_ONCE)):
        # Many time ranges of one large file read it once.
        unhashed = {file.place: file for file in batch if file.content_id is None}
        md5s = dict(zip(unhashed, _in_threads(_md5, unhashed.values()), strict=True))
        rows = [_row(file, file.content_id or md5s[file.place], split_fractions) for file in batch]
        columns = zip(zip(*rows, strict=True), CORPUS_SCHEMA.types, strict=True)
        parts.append(pa.table([pa.array(column, kind) for column, kind in columns], schema=CORPUS_SCHEMA))
        num_files += len(batch)
        num_url_bytes += pc.sum(pc.binary_length(parts[-1]["url"])).as_py()
        if num_url_bytes > _MOST_URL_BYTES:
            raise CorpusError(
                f"the input is larger than one output can hold: the addresses of its first {num_files:,} clips take "
                f"more than {_MOST_URL_BYTES / 1e9:.1f} GB; give its sub-folders one after the other, each an --output"
            )
        num_hashed += sum(file.split is None for file in batch) if split_fractions is not None else 0
    table = pa.concat_tables(parts)
    paths = table["path"]
    if not pc.all(pc.less(paths[:-1], paths[1:])).as_py():  # the listing of a store comes sorted
        table = _sorted(table)
        ids = table["clip_id"]
        if (row := pc.index(pc.equal(ids[:-1], ids[1:]), True).as_py()) >= 0:  # One path: equal ids are neighbours.
            one, other = Clips(table[row : row + 2])
            raise CorpusError(
                f"{_shown(one.url)!r} and {_shown(other.url)!r} cannot be told apart: same path {other.path!r}, "
                "size and content; remove one"
            )
    return table, num_hashed


def _sorted(table: pa.Table) -> pa.Table:
    """By path, then start, end and id."""
    start, end = table["start_pts_seconds"].fill_null(0.0), table["end_pts_seconds"].fill_null(math.inf)
    keys = pa.table({"path": table["path"], "start": start, "end": end, "clip_id": table["clip_id"]})
    return table.take(pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names]))


def _description(layout: str, table: pa.Table, notes: list[str], *, num_hashed: int, ignored: Sequence[Ignored]) -> str:
    names = {"caer": "CAER layout", "caer-s": "CAER-S layout", "manifest": "manifest", "folder": "folder"}
    found = set(pc.unique(table["split"]).to_pylist())
    splits = [split for split in SPLITS if split in found]
    labels = set(pc.unique(table["label"]).to_pylist()) - {None}
    num_clips = table.num_rows
    text = f"{names[layout]}: {num_clips:,} {'clip' if num_clips == 1 else 'clips'}"
    if splits:
        text += f" in {', '.join(splits)}"
    if labels:
        notes.insert(0, f"{len(labels)} {'class' if len(labels) == 1 else 'classes'}")
        if num_unlabelled := table["label"].null_count:
            notes.insert(1, f"{num_unlabelled:,} without a label")
    if num_hashed:
        notes.append("split by hash" if num_hashed == num_clips else f"{num_hashed:,} split by hash")
    if ignored:
        notes.append(f"{len(ignored):,} ignored")
    return "; ".join([text, *notes])


def _md5(file: _File) -> str:
    try:
        with open(file.place, "rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError:
        return "unreadable"


def _row(file: _File, content_id: str, split_fractions: Sequence[float] | None) -> tuple[Any, ...]:
    """The values of CORPUS_SCHEMA's columns."""
    start, end = file.start_pts_seconds, file.end_pts_seconds
    clip_id, split = _clip_id(file, content_id, start, end), file.split
    if split is None and split_fractions is not None:
        # By the whole file: two time ranges of one video in train and test would leak.
        is_whole = start is None and end is None
        split = _split_at(clip_id if is_whole else _clip_id(file, content_id, None, None), split_fractions)
    url = file.url or _url_of(file.place, file.store)
    path, same_as = _printable(file.path), None
    return clip_id, path, url, file.size_bytes, content_id, file.label, split, start, end, same_as, file.modified


def _clip_id(file: _File, content_id: str, start: float | None, end: float | None) -> str:
    # JSON in ASCII: no separator that a name could imitate, and a place for undecodable bytes.
    text = json.dumps([file.path, file.size_bytes, content_id, start, end])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _check_fractions(split_fractions: Sequence[float]) -> None:
    shares = tuple(split_fractions)
    if len(shares) != len(SPLITS) or not all(share >= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise CorpusError(
            f"split fractions {shares} are not three shares of {', '.join(SPLITS)} that sum to 1; use 0.7, 0.1, 0.2"
        )
