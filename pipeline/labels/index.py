"""The table of clips of one model's labels as Parquet files, made from the ledger and kept beside the labels, so that
a large collection opens at once the next time.

    LABELS/model=.../view/clips-v6-LEDGER-CONTENT.parquet

A file is used only while its bytes are those that were written (CONTENT), and the table that it ends only while the
ledger's entries are those that it was made from (LEDGER). Its footer names the files before it, and the entries that
they cover together. What a night adds is one more file; where it changes more than its own clips all is made again,
and the rows of shards that are known are taken over. All of them can be deleted: they are made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.labels.index_rows import OtherRowsError, Reading, write_all, write_merged, write_units
from pipeline.ledger.database import DatabaseError
from pipeline.ledger.ledger import Ledger
from pipeline.records.documents import parse_json
from pipeline.records.vocabulary import UsageError
from pipeline.storage.retry import StorageError
from pipeline.storage.store import Storage

INDEX_VERSION = 6
# More are made one: each question reads all of them.
MAX_PARTS = 12
# What is read before anything is shown: of a collection that was never read so many units, and a night of so many.
# While a larger night is read, the collection is shown as it was before.
FIRST_UNITS = 64
WORTH_BEGINNING = 512
# Of ten million clips it has 9 MB.
MAX_FOOTER_BYTES = 2**26
_NAME = re.compile(r"view/clips-v(\d+)-([0-9a-f]{16})-([0-9a-f]{16})\.parquet")
_ENTRY = re.compile(r"ledger/(g\d{3,}-u\d{6,})\.json")
_FOOTER = b"clips"


class DamagedError(Exception):
    """A kept file is not what was written."""


@dataclass(frozen=True)
class _Kept:
    """Files that are a table together, copied; what their last footer says.

    names: as they are stored. files: here. digest: of the ledger. entries: which it was made from. num_generations: of
    the plan then. supersedes: whether a later file has rows of clips that an earlier one has too.
    """

    names: tuple[str, ...]
    files: tuple[Path, ...]
    digest: str
    entries: frozenset[str]
    num_generations: int
    supersedes: bool

    @property
    def sql(self) -> str:
        """The table."""
        return _table_of(self.files, supersedes=self.supersedes)


def digest_of(stamps: Mapping[str, str]) -> str:
    """16 digits that change whenever one of these objects is written, or another is there."""
    digest = hashlib.sha256()
    for name in sorted(stamps):
        digest.update(f"{name} {stamps[name]}\n".encode())
    return digest.hexdigest()[:16]


class ClipsIndex:
    """The table of clips of one ledger, in files of the local `folder`.

    Attributes:
        digest: changes whenever an entry of the ledger is written.
        sql: the table as far as it is read; before `begin` or `finish`, empty where nothing of today is kept.
        is_whole: whether it is the ledger's of today.
        is_finished: whether nothing is left for `finish`.
        reading: how far the rest is.

    Raises LedgerError, StorageError.
    """

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self._ledger, self._folder = ledger, folder
        self._num_generations = ledger.num_generations  # First: what is planned meanwhile is read the next time.
        self._stamps = dict(ledger.storage.stamps("ledger"))
        self.digest = digest_of(self._stamps)
        self.reading = Reading()
        self._is_night_left = True
        self._old = self._any_kept()
        self._kept: _Kept | None = None
        if self._old is not None and self._old.digest == self.digest:
            self._kept = self._old
        elif self._old is not None and len(self._stamps) - len(self._old.entries) <= FIRST_UNITS:
            self._add_night()
        self.sql, self.is_whole, self.is_finished = "", False, False
        self._show_kept()

    def begin(self) -> None:
        """Have something to show soon: the table of an earlier day, else some of the newest units."""
        if self.is_whole:
            return
        if len(self._stamps) <= WORTH_BEGINNING:
            self.finish()
        elif self._old is not None:
            self.sql = self._old.sql
        else:
            units = sorted(filter(None, map(_unit_of, self._stamps)), key=lambda unit: (len(unit), unit))
            path = self._folder / "first.parquet"
            options: Any = {"since": self._num_generations, "old": None, "metadata": lambda _: {}}
            write_units(self._ledger, path, units[-FIRST_UNITS:], **options, reading=Reading())
            self.sql = _table_of([path], supersedes=False)

    def finish(self) -> None:
        """Read what is missing, and keep the table. Raises LedgerError, StorageError, StoppedError."""
        if self.is_finished:
            return
        if self._kept is None and self._is_night_left:
            self._add_night()
            self._show_kept()
            if self.is_finished:
                return
        path, footer = self._folder / "whole.parquet", self._footer([], supersedes=False)
        if self._kept is not None:
            write_merged(path, self._kept.sql, metadata=footer)
        else:
            old = None if self._old is None else self._old.sql
            write_all(self._ledger, path, old=old, metadata=footer, reading=self.reading)
        self._store(path, [])
        self.sql = _table_of([path], supersedes=False)
        self.is_whole = self.is_finished = True

    def _show_kept(self) -> None:
        if self._kept is not None:
            self.sql, self.is_whole, self.is_finished = self._kept.sql, True, len(self._kept.files) <= MAX_PARTS

    def _add_night(self) -> None:
        self._is_night_left = False
        self._kept = self._with_night()

    def _with_night(self) -> _Kept | None:
        """The table that was kept earlier, and the rows of what was committed since; None where those change others."""
        old = self._old
        if old is None or not old.entries <= self._stamps.keys():
            return None
        if old.digest != digest_of({name: self._stamps[name] for name in old.entries}):
            return None
        units = {unit for name in self._stamps.keys() - old.entries if (unit := _unit_of(name)) is not None}
        path, supersedes = self._folder / "night.parquet", old.supersedes

        def footer(is_known: bool) -> dict[bytes, bytes]:
            nonlocal supersedes
            supersedes = supersedes or is_known
            return self._footer(old.names, supersedes=supersedes)

        try:
            options: Any = {"since": old.num_generations, "old": old.sql, "metadata": footer}
            write_units(self._ledger, path, units, **options, reading=self.reading)
        except (OtherRowsError, DatabaseError):
            return None
        name = self._store(path, old.names)
        return replace(
            old, names=(*old.names, name), files=(*old.files, path), digest=self.digest, supersedes=supersedes
        )

    # What is kept

    def _any_kept(self) -> _Kept | None:
        """The table that was kept of the ledger as it is now, else one of an earlier day."""
        named = [(name, match) for name in self._ledger.storage.sizes("view") if (match := _NAME.fullmatch(name))]
        ours = [(name, match[2]) for name, match in named if match[1] == str(INDEX_VERSION)]
        found = []
        for name, digest in sorted(ours, key=lambda each: each[1] != self.digest):
            if (kept := self._read(name, digest)) is not None:
                found.append(kept)
                if digest == self.digest:
                    break
        return max(found, key=lambda kept: (kept.digest == self.digest, len(kept.entries)), default=None)

    def _read(self, name: str, digest: str) -> _Kept | None:
        """The table that a kept file ends; None where a file of it is gone or damaged."""
        storage = self._ledger.storage
        try:
            last = _copied(storage, name, self._folder)
            footer = zlib.decompressobj().decompress((pq.read_schema(last).metadata or {})[_FOOTER], MAX_FOOTER_BYTES)
            told = parse_json(footer, "it", max_bytes=MAX_FOOTER_BYTES)
            return _Kept(
                names=(*told["before"], name),
                files=(*(_copied(storage, each, self._folder) for each in told["before"]), last),
                digest=digest,
                entries=frozenset(told["entries"]),
                num_generations=told["num_generations"],
                supersedes=told["supersedes"],
            )
        except (FileNotFoundError, DamagedError):
            return None
        except (ValueError, KeyError, TypeError, zlib.error, pa.ArrowException, UsageError):  # Not as we write it.
            return None

    def _footer(self, before: Sequence[str], *, supersedes: bool) -> dict[bytes, bytes]:
        told = {
            "before": list(before),
            "entries": sorted(self._stamps),
            "num_generations": self._num_generations,
            "supersedes": supersedes,
        }
        return {_FOOTER: zlib.compress(json.dumps(told).encode())}

    def _store(self, path: Path, before: Sequence[str]) -> str:
        """Keep a file that goes on from others, and delete all that are of neither; its name."""
        storage, content = self._ledger.storage, _content_of(path)
        name = f"view/clips-v{INDEX_VERSION}-{self.digest}-{content}.parquet"
        try:
            for old in storage.sizes("view"):
                if old.startswith("view/clips-") and old not in (*before, name):
                    storage.delete(old)
            storage.put_stream(name, _parts_of(path))
        except (OSError, StorageError):
            pass  # Labels that may only be read are indexed each time.
        return name


def _table_of(files: Sequence[Path], *, supersedes: bool) -> str:
    """SQL of a table in files of which a later one's rows stand in place of an earlier one's."""
    parts = []
    for place, file in enumerate(files):
        later = [f"select clip_id from read_parquet('{each}')" for each in files[place + 1 :]]
        where = f" where clip_id not in ({' union all '.join(later)})" if supersedes and later else ""
        parts.append(f"select * from read_parquet('{file}'){where}")
    return f"({' union all by name '.join(parts)})"


def _unit_of(name: str) -> str | None:
    match = _ENTRY.fullmatch(name)
    return None if match is None else match[1]


def _copied(storage: Storage, name: str, folder: Path) -> Path:
    """A kept file as a file of this folder. Raises FileNotFoundError, DamagedError, StorageError."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise DamagedError
    to = folder / name.rpartition("/")[2]
    if to.exists():
        return to
    if storage.is_local:
        try:
            os.link(storage.path(name), to)  # Another viewer may delete it.
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(storage.path(name), to)
    else:
        to.write_bytes(storage.read(name))
    if _content_of(to) != match[3]:
        to.unlink()
        raise DamagedError
    return to


def _content_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _parts_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(2**22):
            yield part
