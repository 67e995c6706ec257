"""Archives listed in a sandboxed child: their bytes in, a part at a time, and what lies in them out.

The child opens no file: it asks for what it reads, so that it needs no right to read and no network. What it answers is
checked before it is believed.
"""

from __future__ import annotations

import io
import os
import queue
import re
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

from pipeline.corpus.listing import url_of
from pipeline.corpus.types import ListedFile
from pipeline.sandbox.limits import SandboxError, SandboxLimits
from pipeline.sandbox.supervisor import Sandbox
from pipeline.storage.archives.bytes_ids import BYTES_ID
from pipeline.storage.archives.listing import (
    MAX_MEMBER_BYTES,
    MAX_MEMBERS,
    MAX_NAME_BYTES,
    MAX_TOTAL_BYTES,
    MIN_BYTES_PER_CPU_SECOND,
    MIN_CPU_SECONDS,
    REASONS,
    list_members,
    listing_block_bytes,
)
from pipeline.storage.archives.members import Member, kind_of
from pipeline.storage.archives.parts import ArchiveError
from pipeline.storage.archives.reading import MemberReader
from pipeline.storage.asked import MAX_PART_BYTES, AskedFile
from pipeline.storage.contents import is_md5
from pipeline.storage.redaction import printable
from pipeline.storage.remote import RangedFile, require_content
from pipeline.video.formats import is_named_as_clip

LIMITS = SandboxLimits(timeout_seconds=120.0, memory_bytes=2**30)


NUM_CHILDREN = 4


MAX_TRIES = 3


# A listing reads an archive once, by blocks, and headers that lie at a seam twice. Members are read while half is left.
MAX_READS_OF_ALL, SPARE_READ_BYTES = 8, 2**26


# Of a zip whose members are read: they may be small, and lie in another order than they are listed in.
MEMBER_BLOCK_BYTES = 2**12


MAX_DETAIL_LETTERS = 300


# Wall seconds for each second of the processor that a listing may take: stores are slow.
WALL_SECONDS_PER_CPU_SECOND = 10


_Item = TypeVar("_Item")


_BATCH_LETTERS, _BATCH_MEMBERS = 2**17, 1000


# What ends a child -> what is said of the archive.
_REASONS_OF_ENDS = {"hang": "too_slow", "over_budget": "too_slow", "memory": "too_large"}


class ArchiveLister:
    """Lists archives, some at a time, each in a child; usable by several threads. Close it, or use it as a context."""

    def __init__(self) -> None:
        self._free: queue.LifoQueue[Sandbox] = queue.LifoQueue()
        self._all = [Sandbox(build_listing, {}, limits=LIMITS, readable=[]) for _ in range(NUM_CHILDREN)]
        for sandbox in self._all:
            self._free.put(sandbox)

    def __enter__(self) -> ArchiveLister:
        return self

    def __exit__(self, *_: object) -> None:
        for sandbox in self._all:
            sandbox.close()

    def members(self, file: Any, kind: str, *, size_bytes: int, content_id: str, read: bool = False) -> list[Member]:
        """What lies in an archive, as `list_members` has it; of one that costs its child the archive alone.

        file: the archive, open at any position and able to seek. read: whether clips are read for their MD5.
        Raises OSError where its store fails.
        """
        with self._child() as sandbox:
            for attempt in range(1, MAX_TRIES + 1):
                try:
                    return _listed(sandbox, file, kind, size_bytes=size_bytes, content_id=content_id, read=read)
                except SandboxError as error:
                    if error.reason == "killed" and attempt < MAX_TRIES:
                        continue  # From outside: nothing is known against the archive.
                    reason = _REASONS_OF_ENDS.get(error.reason, "damaged_archive")
                    detail = f"the archive cannot be listed ({error.reason}: {error.detail}); pack it again"
                    return [
                        Member(
                            name="", size_bytes=size_bytes, content_id=content_id, steps=(), reason=reason,
                            detail=detail[:MAX_DETAIL_LETTERS],
                        )
                    ]  # fmt: skip
        raise AssertionError("unreachable")

    def md5s(self, file: Any, urls: Sequence[str], *, size_bytes: int) -> list[str | None]:
        """The MD5 of each of these members of an archive, in the order in which they are read; None of what cannot be.

        file: as in `members`. Raises OSError where its store fails.
        """
        task = {"size_bytes": size_bytes, "urls": "\n".join(urls).encode()}
        with self._child() as sandbox:
            try:
                found = _answered(sandbox, file, task, _md5_or_none)
            except SandboxError:
                found = []
        return found if len(found) == len(urls) else [None] * len(urls)

    @contextmanager
    def _child(self) -> Iterator[Sandbox]:
        sandbox = self._free.get()
        try:
            yield sandbox
        finally:
            self._free.put(sandbox)


def members_of(archive: ListedFile, lister: ArchiveLister, *, read: bool) -> list[Member]:
    """What lies in an archive whose content id is known.

    read: see `ArchiveLister.members`. Raises OSError where its store fails.
    """
    kind, content_id = kind_of(archive.path), archive.content_id
    assert kind is not None, "only archives come here"
    assert content_id is not None, "hashed before"
    try:
        with _opened(archive, block_bytes=listing_block_bytes(kind)) as file:
            return lister.members(file, kind, size_bytes=archive.size_bytes, content_id=content_id, read=read)
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


def md5s_of(archive: ListedFile, lister: ArchiveLister, urls: Sequence[str]) -> list[str | None]:
    """The MD5s of members of the very archive that was listed, see `ArchiveLister.md5s`.

    Raises OSError where it cannot be read, and ContentChangedError where it is another by now.
    """
    content_id = archive.content_id or ""
    with _opened(archive, block_bytes=1, content_id=content_id) as file:
        found = lister.md5s(file, urls, size_bytes=archive.size_bytes)
    if archive.store is not None:
        require_content(archive.store, archive.place, content_id, url=url_of(archive.place, archive.store))
    return found


def _opened(file: ListedFile, *, block_bytes: int, content_id: str = "") -> Any:
    if file.store is None:
        return open(file.place, "rb")
    what = f"{url_of(file.place, file.store)} cannot be read"
    sizes = {"size_bytes": file.size_bytes, "block_bytes": block_bytes}
    return RangedFile(file.store, file.place, what=what, content_id=content_id, **sizes)


# In the child


def build_listing() -> Callable[..., Generator[list[Any], None, None]]:
    """The child's work: a task (kind, size, content id) to the members of the archive, in batches."""

    def work(task: dict[str, Any], line: Any) -> Generator[list[Any], None, None]:
        line("list")
        if "urls" in task:
            yield from _md5s(task, line)
            return
        asked = AskedFile(line, task["size_bytes"])
        is_read_anywhere = task["kind"] == "zip" and task["read"]
        block_bytes = MEMBER_BLOCK_BYTES if is_read_anywhere else listing_block_bytes(task["kind"])
        most = (MAX_READS_OF_ALL * task["size_bytes"] + SPARE_READ_BYTES) // 2
        members = list_members(
            io.BufferedReader(asked, block_bytes), task["kind"], size_bytes=task["size_bytes"],
            content_id=task["content_id"], is_wanted=is_named_as_clip, make_spool=lambda: _AskedSpool(line),
            is_read=lambda _: task["read"] and asked.num_read_bytes < most,
        )  # fmt: skip
        batch, num_letters = [], 0
        for each in members:
            # What cannot be read is never looked for, and its numbers may be any.
            size_bytes, steps = (
                (each.size_bytes, each.steps) if each.reason is None else (_bounded(each.size_bytes), ())
            )
            batch.append([each.name, size_bytes, each.content_id, steps, each.reason, each.detail])
            if each.bytes_id is not None:
                batch[-1].append(each.bytes_id)
            num_letters += len(each.name)
            if num_letters > _BATCH_LETTERS or len(batch) >= _BATCH_MEMBERS:
                yield batch
                batch, num_letters = [], 0
        yield batch

    return work


def _md5s(task: dict[str, Any], line: Any) -> Generator[list[str | None], None, None]:
    def open_file(_url: str, size_bytes: int, block_bytes: int, _content_id: str) -> Any:
        return io.BufferedReader(AskedFile(line, size_bytes), block_bytes)

    reader, batch = MemberReader(open_file), []
    for url in task["urls"].decode().split("\n"):  # As bytes: a message may have few texts.
        try:
            batch.append(reader.md5_of(url))
        except ArchiveError:
            batch.append(None)
        if len(batch) == _BATCH_MEMBERS:
            yield batch
            batch = []
    yield batch


def _bounded(size_bytes: int) -> int:
    return max(-1, min(size_bytes, 2**62))


class _AskedSpool:
    """A temporary file of the parent."""

    def __init__(self, line: Any) -> None:
        self._line, self._at = line, 0
        line.ask(["spool"])

    def __enter__(self) -> _AskedSpool:
        return self

    def __exit__(self, *_: object) -> None:
        pass  # The next one takes its place.

    def write(self, data: bytes) -> None:
        self._line.ask(["write", data])

    def seek(self, offset: int) -> None:
        self._at = offset

    def read(self, num_bytes: int) -> bytes:
        data = self._line.ask(["spooled", self._at, min(num_bytes, MAX_PART_BYTES)])
        self._at += len(data)
        return data


# In the parent


def _listed(
    sandbox: Sandbox, file: Any, kind: str, *, size_bytes: int, content_id: str, read: bool = False
) -> list[Member]:
    """Raises SandboxError, and OSError where the store fails."""
    task = {"kind": kind, "size_bytes": size_bytes, "content_id": content_id, "read": read}
    return _answered(sandbox, file, task, partial(_member_of, archive_id=content_id))


def _answered(sandbox: Sandbox, file: Any, task: Mapping[str, Any], parse: Callable[[Any], _Item]) -> list[_Item]:
    """What a child answers to a task, in batches, parsed. Raises SandboxError, and OSError where the store fails."""
    cpu_seconds = MIN_CPU_SECONDS + task["size_bytes"] / MIN_BYTES_PER_CPU_SECOND
    found: list[_Item] = []
    with tempfile.TemporaryFile() as spool:
        answers = _Answers(file, spool, size_bytes=task["size_bytes"])
        running = sandbox.stream(task, answer=answers, seconds=WALL_SECONDS_PER_CPU_SECOND * cpu_seconds)
        try:
            for batch in running:
                found += map(parse, batch)
                if len(found) > 2 * MAX_MEMBERS:
                    raise ValueError(f"it has more than {2 * MAX_MEMBERS} members")
        except (ValueError, TypeError) as error:
            detail = f"what the worker answered is not sound: {error}"[:MAX_DETAIL_LETTERS]
            raise SandboxError("bad_answer", detail, stage="answer", fatal=True) from None
        finally:
            running.close()
    return found


def _md5_or_none(plain: Any) -> str | None:
    return plain if isinstance(plain, str) and is_md5(plain) else None


class _Answers:
    """Gives a child the bytes that it asks for, and no more of them than a listing needs. Raises ValueError."""

    def __init__(self, file: Any, spool: Any, *, size_bytes: int) -> None:
        self._file, self._spool = file, spool
        self._left_bytes = MAX_READS_OF_ALL * size_bytes + SPARE_READ_BYTES
        self._left_spooled_bytes = MAX_TOTAL_BYTES
        self._num_spooled = 0

    def __call__(self, asked: Any) -> bytes:
        match asked:
            case ["read", int(offset), int(num_bytes)] if offset >= 0 and 0 < num_bytes <= MAX_PART_BYTES:
                self._left_bytes -= num_bytes
                self._file.seek(offset)
                data = bytes(self._file.read(num_bytes))
            case ["spool"]:
                self._spool.seek(0)
                self._spool.truncate()
                self._num_spooled, data = 0, b""
            case ["write", bytes(part)]:
                self._spool.seek(0, os.SEEK_END)
                self._spool.write(part)
                self._num_spooled += len(part)
                self._left_spooled_bytes -= len(part)
                data = b""
            case ["spooled", int(offset), int(num_bytes)] if offset >= 0 and 0 <= num_bytes <= MAX_PART_BYTES:
                self._spool.seek(offset)
                data = self._spool.read(num_bytes)
            case _:
                raise ValueError("it asks for what is not there to be asked for")
        if self._left_bytes < 0 or self._left_spooled_bytes < 0 or self._num_spooled > MAX_MEMBER_BYTES:
            raise ValueError("it asks for more bytes than a listing needs")
        return data


def _member_of(plain: Any, *, archive_id: str) -> Member:
    """The member that the child told. Raises ValueError for what is none."""
    bytes_id = None
    if isinstance(plain, list) and len(plain) == len(fields(Member)):
        *plain, bytes_id = plain
        if not isinstance(bytes_id, str) or not re.fullmatch(BYTES_ID, bytes_id):
            raise ValueError("a member has bytes that none has")
    match plain:
        case [str(name), int(size_bytes), str(content_id), list(told), None | str() as reason, None | str() as detail]:
            steps = tuple(map(_step_of, told))
        case _:
            raise ValueError("a member has other fields")
    if len(name) > 3 * MAX_NAME_BYTES or not -(2**63) <= size_bytes < 2**63 or (reason is None and not steps):
        raise ValueError("a member has a name or a size that none has")
    content_id = content_id if name else archive_id
    if (name and not re.fullmatch(r"[0-9a-f]{32}", content_id)) or (reason is not None and reason not in REASONS):
        raise ValueError("a member has an id or a reason that none has")
    detail = None if reason is None else printable(detail or reason)[:MAX_DETAIL_LETTERS]
    return Member(
        name=name, size_bytes=size_bytes, content_id=content_id, steps=steps, reason=reason, detail=detail,
        bytes_id=bytes_id,
    )  # fmt: skip


def _step_of(plain: Any) -> tuple[str, tuple[int, ...]]:
    match plain:
        case [("gz" | "zst") as kind, []]:
            return kind, ()
        case [("tar" | "zip") as kind, [*numbers]] if len(numbers) == (2 if kind == "tar" else 5):
            if all(type(each) is int and 0 <= each < 2**63 for each in numbers):
                return kind, tuple(numbers)
    raise ValueError("a member lies in what is no place")
