"""An archive in; its members with their places in it out, and later the bytes of one member, under a neutral name.

Reads .zip, .tar, .tar.gz (.tgz) and .tar.zst (.tzst), and archives in archives down to MAX_DEPTH. A member is known by
numbers, its steps: where it lies in the archive, and how it is packed there. Its name is text for people and is never a
path. A member of a .zip or .tar costs one ranged read. One of a compressed tar costs a decompression up to it, so
`reading_order` keeps such members together and `MemberReader` goes on where it stands.

What cannot be read is a member with a `reason`, one of: truncated_archive, damaged_archive, archive_bomb, too_large,
too_many_members, nested_too_deep, unsafe_name, duplicate_name, link, not_a_file, encrypted, unsupported_compression.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pyarrow as pa

MAX_DEPTH = 2
MAX_MEMBERS = 100_000  # of one archive with all that are nested in it
MAX_MEMBER_BYTES = 8 * 2**30
MAX_TOTAL_BYTES = 256 * 2**30  # 15 minutes of decompressing
MAX_RATIO = 200  # video shrinks by some per cent; zeros by 1,000 in deflate, by 16,000 in zstd
RATIO_FLOOR_BYTES = 64 * 2**20
# Both are read at once by the standard library, whatever size they claim. A zip's directory takes 46 bytes and the
# name for each member: 364,000 empty names of 16 MiB cost the reader 250 MB.
MAX_DIRECTORY_BYTES = 16 * 2**20
MAX_HEADER_BYTES = 2**20
LISTING_BLOCK_BYTES = 2**16
STREAM_BLOCK_BYTES = 2**22

_KINDS = {".zip": "zip", ".tar": "tar", ".tar.gz": "gz", ".tgz": "gz", ".tar.zst": "zst", ".tzst": "zst"}
MEMBERS_START = "archive://?"
_LOCAL_HEADER = struct.Struct("<4s2xHH16xHH")  # signature, flags, method, length of the name, length of the extra field
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile decompresses the others without a bound on memory
_FAULTS = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, pa.ArrowException, EOFError, OSError, ValueError,
    NotImplementedError, OverflowError, IndexError, RecursionError,
)  # fmt: skip

# How a part of a file is cut out: gz, zst (), tar (offset, bytes), zip (header offset, bytes packed, bytes, method,
# CRC-32).
Step = tuple[str, tuple[int, ...]]


class ArchiveError(Exception):
    """A member or an archive that cannot be read: `reason` is a short stable word, the message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        return self.args[1]


class _StoreFaultError(Exception):
    """The store failed under the archive: nothing is known against the archive."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file in an archive, or what cannot be read of it and why; `name` is "" where that is the whole archive.

    name: names of the nested archives and of the member, joined by "!"; may hold surrogates for undecodable bytes.
    content_id: the MD5 of the bytes in a compressed tar; else from the archive's own content, the name, the place and
    the size.
    """

    name: str
    size_bytes: int
    content_id: str
    steps: tuple[Step, ...]
    reason: str | None = None
    detail: str | None = None


def kind_of(name: str) -> str | None:
    """The kind of archive that a file's name tells (zip, tar, gz or zst), or None."""
    return next((kind for suffix, kind in _KINDS.items() if name.lower().endswith(suffix)), None)


def listing_block_bytes(kind: str) -> int:
    """What one request should fetch of an archive that is listed: one of gz and zst is read whole."""
    return LISTING_BLOCK_BYTES if kind in ("zip", "tar") else STREAM_BLOCK_BYTES


def list_members(
    file: Any, kind: str, *, size_bytes: int, content_id: str, is_wanted: Callable[[str], bool]
) -> list[Member]:
    """Every file in an archive, in its order, with those that cannot be read and their reasons.

    file: the archive, open at any position and able to seek. is_wanted: whether the bytes of a member of this name
    may be asked for later; those of a compressed tar are hashed now. Memory is bounded, disk only by the size of a zip
    inside a compressed archive. Raises OSError where the store of the archive fails.
    """
    tally = _Tally(is_wanted)
    part = _Part(_Guarded(file), num_bytes=size_bytes, can_seek=True)
    try:
        members = list(_listed(part, kind, tally, name="", content_id=content_id, steps=()))
    except _StoreFaultError as fault:
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


# --- the place of a member as a URL ----------------------------------------------------------------------------------


def member_url(archive_url: str, archive_bytes: int, member: Member) -> str:
    """Where a member is read: `archive://?file=<url of the archive>&bytes=...` and its steps, or its reason."""
    fields: list[tuple[str, Any]] = [("file", archive_url), ("bytes", archive_bytes)]
    if member.reason is not None:
        fields += [("reason", member.reason), ("detail", member.detail)]
    else:
        fields += [(kind, ",".join(map(str, numbers))) for kind, numbers in member.steps]
    return MEMBERS_START + urlencode(fields, errors="backslashreplace")


def is_member(url: str) -> bool:
    """Whether the URL is one of `member_url`."""
    return url.startswith(MEMBERS_START)


def archive_of(url: str) -> str:
    """The URL of the archive that a member lies in."""
    return _place_of(url).file


def reading_order(url: str) -> tuple[Any, ...]:
    """What clips are sorted by, so that members that lie in one compressed stream follow one another; () for others."""
    if not is_member(url):
        return ()
    place = _place_of(url)
    return (place.file, *(step[1] for step in place.steps)) if place.is_stream else ()


@dataclass(frozen=True, kw_only=True)
class _Place:
    file: str
    num_bytes: int
    steps: tuple[Step, ...]
    problem: tuple[str, str] | None

    @property
    def is_stream(self) -> bool:
        """Whether it can be reached only by decompressing what lies before it."""
        return any(
            kind in ("gz", "zst") or (kind == "zip" and n[3] != zipfile.ZIP_STORED) for kind, n in self.steps[:-1]
        )


def _place_of(url: str) -> _Place:
    fields = parse_qsl(url.removeprefix(MEMBERS_START), keep_blank_values=True)
    named = dict(fields)
    steps = [(k, tuple(map(int, filter(None, v.split(","))))) for k, v in fields if k in ("gz", "zst", "tar", "zip")]
    problem = (named["reason"], named["detail"]) if "reason" in named else None
    return _Place(file=named["file"], num_bytes=int(named["bytes"]), steps=tuple(steps), problem=problem)


# --- reading one member ----------------------------------------------------------------------------------------------


class MemberReader:
    """Copies members out of archives; between members of one compressed stream it keeps its place in that stream.

    open_file: opens an archive by its URL, its size (bytes) and what one request should fetch (bytes).
    """

    def __init__(self, open_file: Callable[[str, int, int], Any]) -> None:
        self._open_file = open_file
        self._key: tuple[Any, ...] | None = None
        self._opened = contextlib.ExitStack()
        self._container: _Part | None = None

    def copy(self, url: str, target: Path, *, content_id: str) -> None:
        """Write a member's bytes to a new file.

        Raises ArchiveError for what the archive is to blame for, OSError where its store or this disk fails.
        """
        place = _place_of(url)
        if place.problem is not None:
            raise ArchiveError(*place.problem)
        try:
            with open(target, "xb") as sink, _in_words():
                self._copy(place, _Guarded(sink), content_id=content_id)
        except _StoreFaultError as fault:
            self.close()
            raise fault.error from None
        except ArchiveError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the archive that is open."""
        self._opened.close()
        self._key = self._container = None

    def _copy(self, place: _Place, sink: _Guarded, *, content_id: str) -> None:
        kind, numbers = place.steps[-1]
        container = self._container_of(place)
        source = _cut(container, (kind, numbers), is_last=True)
        md5 = hashlib.md5(usedforsecurity=False)
        size_bytes = numbers[2] if kind == "zip" else numbers[1]
        num_bytes = 0
        while chunk := source.read(min(2**20, size_bytes - num_bytes)):
            md5.update(chunk)
            num_bytes += len(chunk)
            sink.write(chunk)
        if num_bytes != size_bytes:
            raise ArchiveError("truncated_archive", f"the member ends after {num_bytes} of {size_bytes} bytes")
        if _is_hashed(place.steps) and md5.hexdigest() != content_id:
            raise _changed()

    def _container_of(self, place: _Place) -> _Part:
        """What the member is cut from, standing before it."""
        key = (place.file, place.num_bytes, place.steps[:-1])
        kind, numbers = place.steps[-1]
        begin = numbers[0] - (tarfile.BLOCKSIZE if kind == "tar" else 0)
        if place.is_stream and key == self._key and self._container is not None and self._container.tell() <= begin:
            return self._container
        self.close()
        # A member in reach of a seek is fetched by one request of its size, with room for a zip's local header.
        reach = STREAM_BLOCK_BYTES if place.is_stream else min(STREAM_BLOCK_BYTES, numbers[1] + 4096)
        file = self._opened.enter_context(self._open(place, reach))
        part = _Part(_Guarded(file), num_bytes=place.num_bytes, can_seek=True)
        for step in place.steps[:-1]:
            part = _cut(part, step, is_last=False)
        self._key, self._container = key, part
        return part

    def _open(self, place: _Place, block_bytes: int) -> Any:
        try:
            return self._open_file(place.file, place.num_bytes, block_bytes)
        except Exception as error:  # whatever a store raises
            raise _StoreFaultError(error) from error


def _cut(part: _Part, step: Step, *, is_last: bool) -> Any:
    """One step down: the file that lies in `part`."""
    kind, numbers = step
    if kind in ("gz", "zst"):
        return _decompressed(part, kind)
    if kind == "tar":
        offset, size_bytes = numbers
        part.seek(offset - tarfile.BLOCKSIZE)
        try:
            header = tarfile.TarInfo.frombuf(part.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            raise _changed() from None
        if header.size != size_bytes:
            raise _changed()
        return _Part(part, start=offset, num_bytes=size_bytes, can_seek=part.can_seek)
    offset, packed_bytes, size_bytes, method, crc = numbers
    part.seek(offset)
    header = part.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise _changed()
    _, flags, local_method, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    if flags & 1 or local_method != method:
        raise _changed()
    start = offset + len(header) + name_bytes + extra_bytes
    if method == zipfile.ZIP_STORED and not is_last:
        return _Part(part, start=start, num_bytes=packed_bytes, can_seek=part.can_seek)
    info = zipfile.ZipInfo()
    info.compress_type, info.compress_size, info.file_size, info.CRC = method, packed_bytes, size_bytes, crc
    packed = _Part(part, start=start, num_bytes=packed_bytes, can_seek=False)
    unpacked: Any = zipfile.ZipExtFile(packed, "r", info)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return unpacked if is_last else _Part(unpacked, num_bytes=size_bytes, can_seek=False)


def _changed() -> ArchiveError:
    return ArchiveError("damaged_archive", "the archive is damaged here, or is not the one that was listed; run again")


# --- listing ---------------------------------------------------------------------------------------------------------


class _Tally:
    """What an archive and all that is nested in it have claimed so far."""

    def __init__(self, is_wanted: Callable[[str], bool]) -> None:
        self.is_wanted = is_wanted
        self.num_members = 0
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        self.num_members += 1
        self.num_bytes += max(0, num_bytes)
        if self.num_members > MAX_MEMBERS:
            raise ArchiveError("too_many_members", f"the archive has more than {MAX_MEMBERS} members; split it")
        if self.num_bytes > MAX_TOTAL_BYTES:
            raise ArchiveError(
                "too_large", f"its members claim more than {MAX_TOTAL_BYTES // 2**30} GiB in all; split the archive"
            )


def _listed(
    part: _Part, kind: str, tally: _Tally, *, name: str, content_id: str, steps: tuple[Step, ...]
) -> Iterator[Member]:
    """The members of one archive; where it cannot be read on, a last one that is the archive itself with the reason."""
    try:
        with _in_words():
            if kind == "zip":
                yield from _zip_members(part, tally, name=name, content_id=content_id, steps=steps)
            elif kind == "tar":
                yield from _tar_members(part, tally, name=name, content_id=content_id, steps=steps)
            else:
                unpacked, inner = _decompressed(part, kind), (*steps, (kind, ()))
                yield from _tar_members(unpacked, tally, name=name, content_id=content_id, steps=inner)
    except ArchiveError as error:
        yield Member(
            name=name, size_bytes=part.num_bytes or 0, content_id=content_id, steps=steps, reason=error.reason,
            detail=str(error),
        )  # fmt: skip


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except _FAULTS as error:
        text = f"{type(error).__name__}: {error}"[:300]
        if isinstance(error, EOFError) or re.search(
            "truncated|unexpected end|empty file|not a zip file", text, re.IGNORECASE
        ):
            raise ArchiveError(
                "truncated_archive", f"the archive ends too early ({text}); what lies before is read; copy it again"
            ) from error
        raise ArchiveError(
            "damaged_archive", f"the archive cannot be read on ({text}); what lies before is read; pack it again"
        ) from error


def _tar_members(
    part: _Part, tally: _Tally, *, name: str, content_id: str, steps: tuple[Step, ...]
) -> Iterator[Member]:
    headers: Any = _Headers(part)
    headers.left_bytes = MAX_HEADER_BYTES
    with tarfile.open(fileobj=headers, mode="r:", encoding="utf-8", errors="surrogateescape") as opened:
        tar: Any = opened
        while (info := tar.next()) is not None:
            tar.members.clear()  # else it keeps all of them
            headers.left_bytes = MAX_HEADER_BYTES
            tally.add(info.size)
            if info.isdir():
                continue
            own_name, problem = _name_of(info.name), _unsafe(info.name) or _tar_problem(info)
            step: Step = ("tar", (info.offset_data, info.size))
            member = Member(
                name=_joined(name, own_name), size_bytes=info.size, steps=(*steps, step), content_id="",
            )  # fmt: skip
            if problem is None and part.num_bytes is not None and info.offset_data + info.size > part.num_bytes:
                problem = "truncated_archive", f"it ends after {part.num_bytes - info.offset_data} of {info.size} bytes"
            data = _Part(part, start=info.offset_data, num_bytes=max(0, info.size), can_seek=part.can_seek)
            yield from _sorted(member, data, tally, own_name=own_name, archive_id=content_id, problem=problem)
    if headers.last.strip(b"\0"):  # tarfile ends without a word at a block that is no whole header
        if len(headers.last) < tarfile.BLOCKSIZE:
            raise EOFError("in the middle of a header")
        raise ArchiveError("damaged_archive", "what follows its last member is no tar header; pack it again")


def _zip_members(
    part: _Part, tally: _Tally, *, name: str, content_id: str, steps: tuple[Step, ...]
) -> Iterator[Member]:
    with contextlib.ExitStack() as stack:
        if not part.can_seek:
            # Its directory is at its end.
            if (part.num_bytes or 0) > MAX_MEMBER_BYTES:
                raise ArchiveError(
                    "too_large", f"a zip in it has {part.num_bytes} bytes, the limit is {MAX_MEMBER_BYTES}"
                )
            spool = _Guarded(stack.enter_context(tempfile.TemporaryFile()))
            while chunk := part.read(2**20):
                spool.write(chunk)
            part = _Part(spool, num_bytes=part.tell(), can_seek=True)
        if part.num_bytes == 0:
            raise EOFError("it is empty")
        if not part.read(4).startswith(b"PK"):
            raise ArchiveError("damaged_archive", "it does not begin like a zip; pack it again")
        directory: Any = _Headers(part)
        directory.left_bytes = MAX_DIRECTORY_BYTES
        with zipfile.ZipFile(directory) as opened:
            infos = opened.infolist()
        for info in infos:
            tally.add(info.file_size)
            if info.is_dir():
                continue
            own_name, problem = _name_of(info.filename), _unsafe(info.filename) or _zip_problem(info)
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
                    with _in_words():
                        data = _cut(part, ("zip", numbers), is_last=False)
                except ArchiveError as error:
                    problem = error.reason, str(error)
            yield from _sorted(member, data, tally, own_name=own_name, archive_id=content_id, problem=problem)


def _sorted(
    member: Member, data: _Part | None, tally: _Tally, *, own_name: str, archive_id: str,
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
    elif _is_hashed(member.steps) and tally.is_wanted(own_name) and data is not None:
        md5, num_bytes = hashlib.md5(usedforsecurity=False), 0
        while chunk := data.read(2**20):
            md5.update(chunk)
            num_bytes += len(chunk)
        if num_bytes < member.size_bytes:
            detail = f"it ends after {num_bytes} of {member.size_bytes} bytes"
            yield replace(member, reason="truncated_archive", detail=detail)
        else:
            yield replace(member, content_id=md5.hexdigest())
    else:
        yield member


def _archives_in(steps: Sequence[Step]) -> list[str]:
    return [kind for kind, _ in steps if kind in ("tar", "zip")]


def _is_hashed(steps: Sequence[Step]) -> bool:
    """Whether a member of these steps lies in a compressed tar, whose bytes pass by when it is listed."""
    return len(steps) > 1 and steps[-2][0] in ("gz", "zst")


def _derived_id(archive_id: str, member: Member) -> str:
    text = json.dumps([archive_id, member.name, member.steps[-1]])
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _joined(archive: str, name: str) -> str:
    return f"{archive}!{name}" if archive else name


def _name_of(name: str) -> str:
    """A member's name without the "./" that `tar -C folder .` writes."""
    return re.sub(r"^(\./+)+", "", name)


def _unsafe(name: str) -> tuple[str, str] | None:
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


# --- files within files ----------------------------------------------------------------------------------------------


class _Guarded:
    """A file of the store or of this disk: its own failures are told apart from those of what it holds."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, num_bytes: int) -> bytes:
        return self._told(self._file.read, num_bytes)

    def write(self, data: bytes) -> None:
        self._told(self._file.write, data)

    def seek(self, offset: int) -> None:
        self._told(self._file.seek, offset)

    @staticmethod
    def _told(call: Callable[..., Any], argument: Any) -> Any:
        try:
            return call(argument)
        except Exception as error:  # whatever a store raises
            raise _StoreFaultError(error) from error


class _Part:
    """A part of a file as a file of its own; without `can_seek` it goes forwards only, by reading.

    num_bytes: its length, None where only its end will tell. packed: what it is decompressed from, for the ratio.
    """

    closed = False

    def __init__(
        self, file: Any, *, start: int = 0, num_bytes: int | None, can_seek: bool, packed: _Part | None = None
    ) -> None:
        self.num_bytes = num_bytes
        self.can_seek = can_seek
        self._file = file
        self._start = start
        self._packed = packed
        self._at = 0
        if start and not can_seek:
            file.seek(start)

    def read(self, num_bytes: int = -1) -> bytes:
        left = None if self.num_bytes is None else max(0, self.num_bytes - self._at)
        if num_bytes is None or num_bytes < 0:
            num_bytes = 2**20 if left is None else left
        if left is not None:
            num_bytes = min(num_bytes, left)
        if num_bytes == 0:
            return b""
        if self.can_seek:
            self._file.seek(self._start + self._at)
        data = bytes(self._file.read(num_bytes))
        while len(data) < num_bytes and (more := self._file.read(num_bytes - len(data))):  # zipfile takes a short one
            data += more  # for the end
        self._at += len(data)
        if self._packed is not None and self._at > max(RATIO_FLOOR_BYTES, MAX_RATIO * self._packed.tell()):
            raise ArchiveError("archive_bomb", f"{self._packed.tell()} bytes became {MAX_RATIO} times as many and more")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + (0, self._at, self.num_bytes or 0)[whence]
        if self.can_seek:
            if at < 0:
                raise OSError(f"a place before the start: {at}")
            self._at = at
        elif at < self._at:
            raise ArchiveError("damaged_archive", "a place in it lies before one that was read; pack it again")
        else:
            while self._at < at and self.read(min(2**20, at - self._at)):
                pass
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return self.can_seek

    def close(self) -> None:
        """Nothing: whoever opened the file closes it."""


class _Headers:
    """A part as tarfile and zipfile see it, which read whatever a header claims at once: `left_bytes` bounds that."""

    def __init__(self, part: _Part) -> None:
        self.left_bytes = 0
        self.last = b""
        self.seek, self.tell, self.seekable, self.close = part.seek, part.tell, part.seekable, part.close
        self.mode = "rb"
        self._part = part

    def read(self, num_bytes: int = -1) -> bytes:
        if num_bytes < 0:
            num_bytes = max(0, (self._part.num_bytes or 0) - self._part.tell())
        self.left_bytes -= num_bytes
        if self.left_bytes < 0:
            raise ArchiveError("damaged_archive", "a header or directory in it is larger than any archive needs")
        self.last = self._part.read(num_bytes)
        return self.last


def _decompressed(part: _Part, kind: str) -> _Part:
    if kind == "gz":
        unpacked: Any = gzip.GzipFile(fileobj=part, mode="rb")  # pyright: ignore[reportArgumentType]
    else:
        # A frame whose window is over 128 MiB is refused by Zstandard itself.
        unpacked = pa.CompressedInputStream(pa.PythonFile(part, mode="r"), "zstd")
    return _Part(unpacked, num_bytes=None, can_seek=False, packed=part)
