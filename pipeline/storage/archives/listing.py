"""An archive in; its members with their places in it out, and later the bytes of one member, under a neutral name.

Reads .zip, .tar, .tar.gz (.tgz) and .tar.zst (.tzst), and archives in archives down to MAX_DEPTH. A member is known by
numbers, its steps: where it lies in the archive, and how it is packed there. Its name is text for people and is never a
path. A member of a .zip or .tar costs one ranged read. One of a compressed tar costs a decompression up to it, so
`reading_order` keeps such members together and `MemberReader` goes on where it stands.

What cannot be read is a member with a `reason`, one of `REASONS`. All else costs the archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import stat
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline.storage.archives.bytes_ids import bytes_id_of
from pipeline.storage.archives.members import Member, Step, kind_of
from pipeline.storage.archives.names import zip_names
from pipeline.storage.archives.parts import (
    MAX_RATIO,
    RATIO_FLOOR_BYTES,
    ArchiveError,
    BoundedHeaders,
    FilePart,
    GuardedStream,
    StoreFaultError,
    decompressed,
)
from pipeline.storage.archives.reading import STREAM_BLOCK_BYTES, cut_error, fault_in_words, is_hashed, without_quotes
from pipeline.storage.archives.zips import check_overlaps, refuse_last_part

REASONS = (
    *("truncated_archive", "damaged_archive", "archive_bomb", "too_large", "too_many_members", "nested_too_deep"),
    *("split_archive", "unsafe_name", "name_too_long", "headers_too_large", "overlapping_members", "too_slow"),
    *("duplicate_name", "link", "not_a_file", "encrypted", "unsupported_compression"),
)


MAX_DEPTH = 2


MAX_MEMBERS = 100_000  # of one archive with all that are nested in it


MAX_MEMBER_BYTES = 8 * 2**30


MAX_TOTAL_BYTES = 256 * 2**30  # 15 minutes of decompressing


# Both are read at once by the standard library, whatever size they claim. A zip's directory takes 46 bytes and the
# name for each member: 364,000 empty names of 16 MiB cost the reader 250 MB.
MAX_DIRECTORY_BYTES = 16 * 2**20


MAX_HEADER_BYTES = 2**20


MAX_ALL_HEADERS_BYTES = 2**27  # of one tar: twice the headers of as many members as may be


# What a tar says for all its members at once is copied for each of them.
MAX_GLOBAL_KEYS = 100


MAX_GLOBAL_LETTERS = 2**16


MAX_NAME_BYTES = 4096  # PATH_MAX of Linux


MAX_NAMES_BYTES = 2**25  # of all members together: 335 bytes each


SHOWN_NAME_LETTERS = 100  # of a name that is too long


MIN_CPU_SECONDS, MIN_BYTES_PER_CPU_SECOND = 60.0, 2**21


LISTING_BLOCK_BYTES = 2**16


_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile decompresses the others without a bound on memory


def listing_block_bytes(kind: str) -> int:
    """What one request should fetch of an archive that is listed: one of gz and zst is read whole."""
    return LISTING_BLOCK_BYTES if kind in ("zip", "tar") else STREAM_BLOCK_BYTES


def list_members(
    file: Any,
    kind: str,
    *,
    size_bytes: int,
    content_id: str,
    is_wanted: Callable[[str], bool],
    is_read: Callable[[Member], bool] = lambda _: False,
    make_spool: Callable[[], Any] = tempfile.TemporaryFile,
) -> list[Member]:
    """Every file in an archive, in its order, with those that cannot be read and their reasons.

    file: the archive, open at any position and able to seek. is_wanted: whether the bytes of a member of this name
    may be asked for later; those of a compressed tar are hashed now. is_read: of the others, whether they are read and
    hashed too; one that cannot be read is listed all the same. make_spool: where a zip inside a compressed
    archive is unpacked, one at a time. Memory is bounded, disk only by the size of such a zip. Raises OSError where the
    store of the archive fails.
    """
    tally = _Tally(is_wanted, is_read, make_spool, cpu_seconds=MIN_CPU_SECONDS + size_bytes / MIN_BYTES_PER_CPU_SECOND)
    part = FilePart(GuardedStream(file), num_bytes=size_bytes, can_seek=True)
    try:
        members = list(_listed(part, kind, tally, name="", content_id=content_id, steps=()))
    except StoreFaultError as fault:
        raise fault.error from None
    last = {member.name: number for number, member in enumerate(members)}
    again = Counter(member.name for member in members)
    return [
        replace(
            member,
            reason="duplicate_name",
            detail=f"the archive holds {again[member.name]} members of this name; the last one is read",
        )
        if member.reason is None and number != last[member.name]
        else member
        for number, member in enumerate(members)
    ]


class _Tally:
    """What an archive and all that is nested in it have claimed so far."""

    def __init__(
        self, is_wanted: Callable[[str], bool], is_read: Callable[[Member], bool], make_spool: Callable[[], Any], *,
        cpu_seconds: float,
    ) -> None:  # fmt: skip
        self.is_wanted, self.is_read, self.make_spool = is_wanted, is_read, make_spool
        self.num_members = 0
        self.num_bytes = 0
        self.num_name_bytes = 0
        self._until = time.thread_time() + cpu_seconds  # an archive is listed by one thread
        self._cpu_seconds = cpu_seconds

    def has_time_to_read(self) -> bool:
        """Whether more than half of the time is left: what is only good to know may not cost an archive its list."""
        return time.thread_time() < self._until - self._cpu_seconds / 2

    def check_time(self) -> None:
        if time.thread_time() > self._until:
            raise ArchiveError("too_slow", "it takes too much processor time for its size; pack it again")

    def add(self, num_bytes: int, name: str) -> None:
        self.check_time()
        self.num_members += 1
        self.num_bytes += max(0, num_bytes)
        self.num_name_bytes += min(len(name), MAX_NAME_BYTES)
        if self.num_name_bytes > MAX_NAMES_BYTES:
            raise ArchiveError(
                "name_too_long",
                f"its names have more than {MAX_NAMES_BYTES // 2**20} MiB in all; split it",
            )
        if self.num_members > MAX_MEMBERS:
            raise ArchiveError("too_many_members", f"the archive has more than {MAX_MEMBERS} members; split it")
        if self.num_bytes > MAX_TOTAL_BYTES:
            raise ArchiveError(
                "too_large", f"its members claim more than {MAX_TOTAL_BYTES // 2**30} GiB in all; split the archive"
            )


def _listed(
    part: FilePart, kind: str, tally: _Tally, *, name: str, content_id: str, steps: tuple[Step, ...]
) -> Iterator[Member]:
    """The members of one archive; where it cannot be read on, a last one that is the archive itself with the reason."""
    try:
        with fault_in_words():
            if kind == "zip":
                yield from _zip_members(part, tally, name=name, content_id=content_id, steps=steps)
            elif kind == "tar":
                yield from _tar_members(part, tally, name=name, content_id=content_id, steps=steps)
            else:
                unpacked, inner = decompressed(part, kind), (*steps, (kind, ()))
                yield from _tar_members(unpacked, tally, name=name, content_id=content_id, steps=inner)
    except ArchiveError as error:
        yield Member(
            name=name, size_bytes=part.num_bytes or 0, content_id=content_id, steps=steps, reason=error.reason,
            detail=str(error),
        )  # fmt: skip
    except StoreFaultError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a hostile archive makes a reader do
        detail = f"the archive cannot be read ({without_quotes(error)})"
        yield Member(
            name=name, size_bytes=part.num_bytes or 0, content_id=content_id, steps=steps, reason="damaged_archive",
            detail=detail,
        )  # fmt: skip


def _tar_members(
    part: FilePart, tally: _Tally, *, name: str, content_id: str, steps: tuple[Step, ...]
) -> Iterator[Member]:
    headers: Any = BoundedHeaders(part)
    headers.left_bytes, num_header_bytes = MAX_HEADER_BYTES, 0
    sort = partial(_sorted, tally=tally, container=part, archive_id=content_id)
    with tarfile.open(fileobj=headers, mode="r:", encoding="utf-8", errors="surrogateescape") as opened:
        tar: Any = opened
        while (info := tar.next()) is not None:
            tar.members.clear()  # else it keeps all of them
            num_header_bytes += MAX_HEADER_BYTES - headers.left_bytes
            headers.left_bytes = MAX_HEADER_BYTES
            _check_headers(tar.pax_headers, num_header_bytes)
            tally.add(info.size, info.name)
            if info.isdir():
                continue
            own_name, problem = _shown(_name_of(info.name)), _unsafe(info.name) or _tar_problem(info)
            step: Step = ("tar", (info.offset_data, info.size))
            member = Member(
                name=_joined(name, own_name), size_bytes=info.size, steps=(*steps, step), content_id="",
            )  # fmt: skip
            if problem is None and part.num_bytes is not None and info.offset_data + info.size > part.num_bytes:
                problem = "truncated_archive", f"it ends after {part.num_bytes - info.offset_data} of {info.size} bytes"
            data = FilePart(part, start=info.offset_data, num_bytes=max(0, info.size), can_seek=part.can_seek)
            yield from sort(member, data, own_name=own_name, problem=problem)
    if headers.last.strip(b"\0"):  # tarfile ends without a word at a block that is no whole header
        if len(headers.last) < tarfile.BLOCKSIZE:
            raise EOFError("in the middle of a header")
        raise ArchiveError("damaged_archive", "what follows its last member is no tar header; pack it again")


def _zip_members(
    part: FilePart, tally: _Tally, *, name: str, content_id: str, steps: tuple[Step, ...]
) -> Iterator[Member]:
    with contextlib.ExitStack() as stack:
        if not part.can_seek:
            # Its directory is at its end.
            if (part.num_bytes or 0) > MAX_MEMBER_BYTES:
                raise ArchiveError(
                    "too_large", f"a zip in it has {part.num_bytes} bytes, the limit is {MAX_MEMBER_BYTES}"
                )
            spool = GuardedStream(stack.enter_context(tally.make_spool()))
            while chunk := part.read(2**20):
                spool.write(chunk)
            part = FilePart(spool, num_bytes=part.tell(), can_seek=True)
        if part.num_bytes == 0:
            raise EOFError("it is empty")
        refuse_last_part(part)
        directory: Any = BoundedHeaders(part)
        directory.left_bytes = MAX_DIRECTORY_BYTES
        with zipfile.ZipFile(directory) as opened:
            infos = opened.infolist()
        check_overlaps(infos)
        sort = partial(_sorted, tally=tally, container=part, archive_id=content_id)
        names = zip_names(infos)
        for info, zip_name in zip(infos, names, strict=True):
            tally.add(info.file_size, zip_name)
            if info.is_dir():
                continue
            own_name, problem = _shown(_name_of(zip_name)), _unsafe(zip_name) or _zip_problem(info)
            numbers = (info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)
            member = Member(
                name=_joined(name, own_name), size_bytes=info.file_size, steps=(*steps, ("zip", numbers)),
                content_id="",
            )  # fmt: skip
            if problem is None and info.header_offset + info.compress_size > (part.num_bytes or 0):
                problem = "truncated_archive", "its place lies past the end of the archive"
            data = None
            if problem is None and kind_of(own_name) is not None:
                try:
                    with fault_in_words():
                        data = cut_error(part, ("zip", numbers), is_last=False)
                except ArchiveError as error:
                    problem = error.reason, str(error)
            yield from sort(member, data, own_name=own_name, problem=problem)


def _sorted(
    member: Member, data: FilePart | None, *, tally: _Tally, container: FilePart, own_name: str, archive_id: str,
    problem: tuple[str, str] | None,
) -> Iterator[Member]:  # fmt: skip
    """A member as it is, or with its problem, or the members that are nested in it."""
    member = replace(member, content_id=_derived_id(archive_id, member))
    kind = kind_of(own_name)
    if problem is None and not kind and member.size_bytes > MAX_MEMBER_BYTES:
        problem = "too_large", f"it has {member.size_bytes} bytes, the limit is {MAX_MEMBER_BYTES}"
    if problem is None and kind and len(_archives_in(member.steps)) >= MAX_DEPTH:
        problem = "nested_too_deep", f"archives in archives are read to a depth of {MAX_DEPTH}; unpack it"
    if problem is not None:
        yield replace(member, reason=problem[0], detail=problem[1])
    elif kind and data is not None:
        yield from _listed(data, kind, tally, name=member.name, content_id=member.content_id, steps=member.steps)
    elif is_hashed(member.steps) and tally.is_wanted(own_name) and data is not None:
        md5, num_bytes = hashlib.md5(usedforsecurity=False), 0
        while chunk := data.read(2**20):
            tally.check_time()
            md5.update(chunk)
            num_bytes += len(chunk)
        if num_bytes < member.size_bytes:
            detail = f"it ends after {num_bytes} of {member.size_bytes} bytes"
            yield replace(member, reason="truncated_archive", detail=detail)
        else:
            yield replace(member, content_id=md5.hexdigest())
    elif tally.is_wanted(own_name):
        has_time = tally.has_time_to_read if tally.is_read(member) else lambda: False
        yield replace(member, bytes_id=bytes_id_of(member.steps[-1], container, data, has_time=has_time))
    else:
        yield member


def _archives_in(steps: Sequence[Step]) -> list[str]:
    return [kind for kind, _ in steps if kind in ("tar", "zip")]


def _derived_id(archive_id: str, member: Member) -> str:
    text = json.dumps([archive_id, member.name, member.steps[-1]])
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _joined(archive: str, name: str) -> str:
    return f"{archive}!{name}" if archive else name


def _name_of(name: str) -> str:
    """A member's name without the "./" that `tar -C folder .` writes."""
    return re.sub(r"^(\./+)+", "", name)


def _shown(name: str) -> str:
    """A name that is too long as its first letters and a hash of it, else as it is."""
    if len(name) * 4 <= MAX_NAME_BYTES or _num_bytes(name) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.md5(name.encode(errors="surrogateescape"), usedforsecurity=False).hexdigest()
    return f"{name[:SHOWN_NAME_LETTERS]}…{digest[:12]}"


def _num_bytes(name: str) -> int:
    return len(name.encode(errors="surrogateescape"))


def _check_headers(for_all: Mapping[str, str], num_bytes: int) -> None:
    """Raise ArchiveError for a tar whose headers cost more than any archive needs."""
    if (
        len(for_all) > MAX_GLOBAL_KEYS
        or sum(len(key) + len(text) for key, text in for_all.items()) > MAX_GLOBAL_LETTERS
    ):
        raise ArchiveError(
            "headers_too_large",
            f"a header for all its members has more than {MAX_GLOBAL_KEYS} keys or {MAX_GLOBAL_LETTERS} letters;"
            " pack it again",
        )
    if num_bytes > MAX_ALL_HEADERS_BYTES:
        raise ArchiveError(
            "headers_too_large",
            f"its headers have over {MAX_ALL_HEADERS_BYTES // 2**20} MiB in all; pack it again",
        )


def _unsafe(name: str) -> tuple[str, str] | None:
    if len(name) * 4 > MAX_NAME_BYTES and (num_bytes := _num_bytes(name)) > MAX_NAME_BYTES:
        return "name_too_long", f"its name has {num_bytes} bytes, the limit is {MAX_NAME_BYTES}"
    if name.startswith("/") or ".." in name.split("/") or re.match("[A-Za-z]:", name) or "\\" in name or not name:
        return "unsafe_name", "its name is absolute, leads upwards, or holds a drive or a backslash; pack it again"
    return None


def _tar_problem(info: tarfile.TarInfo) -> tuple[str, str] | None:
    if info.issym() or info.islnk():
        return "link", "a link in an archive is not followed; pack the file itself"
    if info.issparse():
        return "unsupported_compression", "sparse files are not read; pack it without --sparse"
    if not info.isreg():
        return "not_a_file", "a device, FIFO or another special file"
    if info.size < 0:
        return "damaged_archive", f"its size is {info.size} bytes"
    return None


def _zip_problem(info: zipfile.ZipInfo) -> tuple[str, str] | None:
    mode = info.external_attr >> 16
    if stat.S_ISLNK(mode):
        return "link", "a link in an archive is not followed; pack the file itself"
    if stat.S_IFMT(mode) and not stat.S_ISREG(mode):
        return "not_a_file", "a device, FIFO or another special file"
    if info.flag_bits & 0x41:
        return "encrypted", "it is encrypted; pack it without a password"
    if info.compress_type not in _METHODS or info.flag_bits & 0x20:
        return "unsupported_compression", f"zip method {info.compress_type} is not read; pack it with deflate"
    if info.file_size > RATIO_FLOOR_BYTES and info.file_size > MAX_RATIO * info.compress_size:
        return "archive_bomb", f"{info.compress_size} bytes claim to become {info.file_size}"
    return None
