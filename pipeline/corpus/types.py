"""What a listing consists of: listed files, ignored ones, and the corpus that they become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute
from fsspec import AbstractFileSystem

from pipeline.records.clips import CLIP_SCHEMA, Clips
from pipeline.records.vocabulary import UsageError
from pipeline.storage.spool import BatchSpool

CORPUS_SCHEMA = pa.schema(
    [
        *CLIP_SCHEMA,
        *(("modified_seconds", pa.float64()), ("is_split_given", pa.bool_()), ("split_key", pa.string())),
    ]
)


IGNORED_SCHEMA = pa.schema([("path", pa.string()), ("reason", pa.string())])


ROWS_AT_ONCE = 2**15


class CorpusError(UsageError):
    """An input that cannot be read as a corpus: one line that names the thing, the value and the cure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ignored:
    """A file (or, ending in "/", a folder) below the input that is not a clip, and why."""

    path: str
    reason: str


class IgnoredFiles:
    """What is ignored of a listing, on a disk where it is much: a note may lie beside each of millions of clips.

    reasons: how often each was given.
    """

    def __init__(self, items: Iterable[Ignored] = ()) -> None:
        self.reasons: Counter[str] = Counter()
        self._rows: list[Ignored] = []
        self._batches = BatchSpool()
        self.extend(items)

    def append(self, item: Ignored) -> None:
        self.reasons[item.reason] += 1
        self._rows.append(item)
        if len(self._rows) == ROWS_AT_ONCE:
            self._flush()

    def extend(self, items: Iterable[Ignored]) -> None:
        for item in items:
            self.append(item)

    def _flush(self) -> None:
        if self._rows:
            columns = [[item.path for item in self._rows], [item.reason for item in self._rows]]
            arrays = map(pa.array, columns, IGNORED_SCHEMA.types)
            self._batches.append(pa.record_batch([*arrays], schema=IGNORED_SCHEMA))
            self._rows = []

    def batches(self) -> BatchSpool:
        """Rows of IGNORED_SCHEMA."""
        self._flush()
        return self._batches

    def __eq__(self, other: object) -> bool:
        """Whether another has the same in the same order."""
        return isinstance(other, IgnoredFiles) and self.batches() == other.batches()

    __hash__ = None  # type: ignore[assignment] - it changes

    def __len__(self) -> int:
        return self._batches.num_rows + len(self._rows)

    def __iter__(self) -> Iterator[Ignored]:
        for batch in self.batches():
            for path, reason in zip(batch["path"].to_pylist(), batch["reason"].to_pylist(), strict=True):
                yield Ignored(path=path, reason=reason)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What an input holds. `root` is what the paths of its clips are relative to.

    layout: caer, caer-s, manifest or folder. description: one line for people, on what was recognised. rows: of
    CORPUS_SCHEMA, sorted by path, then start, and on a disk if they are many; modified_seconds is when a clip's file
    was last modified, seconds of the epoch, or null where the store does not tell; is_split_given is whether the split
    is that of the layout or of the manifest, and not by a hash; split_key is what decides the split of a member of an
    archive by its hash, and null where the content id does.
    """

    layout: str
    root: str
    description: str
    rows: BatchSpool
    ignored: IgnoredFiles

    @property
    def num_clips(self) -> int:
        """How many clips there are."""
        return self.rows.num_rows

    @cached_property
    def table(self) -> pa.Table:
        """All rows, in memory."""
        return pa.Table.from_batches(self.rows, schema=CORPUS_SCHEMA)

    @cached_property
    def clips(self) -> Clips:
        """The table's rows as clips."""
        return Clips(self.table)


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedFile:
    """One listed file. `path` is relative to the root and may hold surrogates (undecodable bytes of a local name)."""

    path: str
    place: str  # absolute local path, or the name in the store
    size_bytes: int
    store: AbstractFileSystem | None = None  # None: a local file
    content_id: str | None = None  # None: the MD5 of the bytes, not yet taken
    modified: float | None = None  # seconds of the epoch
    label: str | None = None
    split: str | None = None
    group: str | None = None
    start_pts_seconds: float | None = None
    end_pts_seconds: float | None = None
    url: str | None = None  # None: `place` in `store`; else where it lies in an archive
    is_broken: bool = False  # it is known that it cannot be read, and its url says why
    tree_path: str | None = None  # of a member: its path if each archive were unpacked where it lies
    bytes_id: str | None = None  # of a member: see `storage.archives.members.Member`


class ListedFiles:
    """Files of one root, in columns; each is made again when it is asked for.

    A column of nothing but None takes no memory, so a listed file costs its path, size, etag and time, on a disk where
    there are many.
    """

    def __init__(self, root: str, store: AbstractFileSystem | None) -> None:
        self._start, self._store = root.rstrip("/") + "/", store
        self._rows: list[tuple[Any, ...]] = []
        self._batches = BatchSpool()

    def append(self, file: ListedFile) -> None:
        place = None if file.place == self._start + file.path else _bytes_of(file.place)
        tree_path = None if file.tree_path is None else _bytes_of(file.tree_path)
        self._rows.append((_bytes_of(file.path), tree_path, place, *(getattr(file, name) for name in _PLAIN_FIELDS)))
        if len(self._rows) == ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [pa.array(column) for column in zip(*self._rows, strict=True)]
            self._batches.append(pa.record_batch(columns, names=["path", "tree_path", "place", *_PLAIN_FIELDS]))
            self._rows = []

    def __len__(self) -> int:
        return self._batches.num_rows + len(self._rows)

    def __iter__(self) -> Iterator[ListedFile]:
        self._flush()
        for batch in self._batches:
            yield from self._files_of(batch)

    def taken(self) -> Iterator[ListedFile]:
        """The files, of which none is left here then."""
        self._flush()
        batches, self._batches = self._batches, BatchSpool()
        for batch in batches:
            yield from self._files_of(batch)

    def tree_paths(self) -> Iterator[str]:
        """`_tree_path` of each file."""
        self._flush()
        for batch in self._batches:
            for path, tree_path in zip(batch["path"].to_pylist(), batch["tree_path"].to_pylist(), strict=True):
                yield _text_of(path if tree_path is None else tree_path)

    def _files_of(self, batch: pa.RecordBatch) -> Iterator[ListedFile]:
        for path, tree_path, place, *plain in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            text = _text_of(path)
            yield ListedFile(
                path=text,
                place=self._start + text if place is None else _text_of(place),
                tree_path=None if tree_path is None else _text_of(tree_path),
                store=self._store,
                **dict(zip(_PLAIN_FIELDS, plain, strict=True)),
            )


_PLAIN_FIELDS = tuple(
    each.name for each in fields(ListedFile) if each.name not in ("path", "tree_path", "place", "store")
)


def _bytes_of(text: str) -> bytes:
    return text.encode(errors="surrogateescape")  # A column of text may not hold the bytes of a name that is no UTF-8.


def _text_of(data: bytes) -> str:
    return data.decode(errors="surrogateescape")
