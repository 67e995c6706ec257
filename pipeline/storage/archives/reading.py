"""Copies one member of an archive to a file."""

from __future__ import annotations

import contextlib
import hashlib
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.storage.archives.members import Place, Step, place_of
from pipeline.storage.archives.parts import ArchiveError, FilePart, GuardedStream, StoreFaultError, decompressed
from pipeline.storage.redaction import unquoted

STREAM_BLOCK_BYTES = 2**22


_LOCAL_HEADER = struct.Struct("<4s2xHH16xHH")  # signature, flags, method, length of the name, length of the extra field


_FAULTS = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, pa.ArrowException, EOFError, OSError, ValueError,
    NotImplementedError, OverflowError, IndexError, RecursionError,
)  # fmt: skip


class MemberReader:
    """Copies members out of archives; between members of one compressed stream it keeps its place in that stream.

    open_file: opens an archive by its URL, its size (bytes), what one request should fetch (bytes) and its content id.
    """

    def __init__(self, open_file: Callable[[str, int, int, str], Any]) -> None:
        self._open_file = open_file
        self._key: tuple[Any, ...] | None = None
        self._opened = contextlib.ExitStack()
        self._container: FilePart | None = None

    def copy(self, url: str, target: Path, *, content_id: str) -> None:
        """Write a member's bytes to a new file.

        Raises ArchiveError for what the archive is to blame for, OSError where its store or this disk fails.
        """
        place = place_of(url)
        if place.problem is not None:
            raise ArchiveError(*place.problem)
        with open(target, "xb") as sink:
            md5 = self._read(place, GuardedStream(sink).write)
        if is_hashed(place.steps) and md5 != content_id:
            self.close()
            raise _changed()

    def md5_of(self, url: str) -> str:
        """The MD5 of a member's bytes. Raises as `copy` does."""
        return self._read(place_of(url), lambda _: None)

    def _read(self, place: Place, write: Callable[[bytes], None]) -> str:
        try:
            with fault_in_words():
                return self._md5_of(place, write)
        except StoreFaultError as fault:
            self.close()
            raise fault.error from None
        except ArchiveError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the archive that is open."""
        self._opened.close()
        self._key = self._container = None

    def _md5_of(self, place: Place, write: Callable[[bytes], None]) -> str:
        kind, numbers = place.steps[-1]
        container = self._container_of(place)
        source = cut_error(container, (kind, numbers), is_last=True)
        md5 = hashlib.md5(usedforsecurity=False)
        size_bytes = numbers[2] if kind == "zip" else numbers[1]
        num_bytes = 0
        while chunk := source.read(min(2**20, size_bytes - num_bytes)):
            md5.update(chunk)
            num_bytes += len(chunk)
            write(chunk)
        if num_bytes != size_bytes:
            raise ArchiveError("truncated_archive", f"the member ends after {num_bytes} of {size_bytes} bytes")
        return md5.hexdigest()

    def _container_of(self, place: Place) -> FilePart:
        """What the member is cut from, standing before it."""
        key = (place.file, place.num_bytes, place.content_id, place.steps[:-1])
        kind, numbers = place.steps[-1]
        begin = numbers[0] - (tarfile.BLOCKSIZE if kind == "tar" else 0)
        if place.is_stream and key == self._key and self._container is not None and self._container.tell() <= begin:
            return self._container
        self.close()
        # A member in reach of a seek is fetched by one request of its size, with room for a zip's local header.
        reach = STREAM_BLOCK_BYTES if place.is_stream else min(STREAM_BLOCK_BYTES, numbers[1] + 4096)
        file = self._opened.enter_context(self._open(place, reach))
        part = FilePart(GuardedStream(file), num_bytes=place.num_bytes, can_seek=True)
        for step in place.steps[:-1]:
            part = cut_error(part, step, is_last=False)
        self._key, self._container = key, part
        return part

    def _open(self, place: Place, block_bytes: int) -> Any:
        try:
            return self._open_file(place.file, place.num_bytes, block_bytes, place.content_id)
        except Exception as error:  # whatever a store raises
            raise StoreFaultError(error) from error


def cut_error(part: FilePart, step: Step, *, is_last: bool) -> Any:
    """One step down: the file that lies in `part`."""
    kind, numbers = step
    if kind in ("gz", "zst"):
        return decompressed(part, kind)
    if kind == "tar":
        offset, size_bytes = numbers
        part.seek(offset - tarfile.BLOCKSIZE)
        try:
            header = tarfile.TarInfo.frombuf(part.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            raise _changed() from None
        if header.size != size_bytes:
            raise _changed()
        return FilePart(part, start=offset, num_bytes=size_bytes, can_seek=part.can_seek)
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
        return FilePart(part, start=start, num_bytes=packed_bytes, can_seek=part.can_seek)
    info = zipfile.ZipInfo()
    info.compress_type, info.compress_size, info.file_size, info.CRC = method, packed_bytes, size_bytes, crc
    packed = FilePart(part, start=start, num_bytes=packed_bytes, can_seek=False)
    unpacked: Any = zipfile.ZipExtFile(packed, "r", info)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return unpacked if is_last else FilePart(unpacked, num_bytes=size_bytes, can_seek=False)


def _changed() -> ArchiveError:
    return ArchiveError("damaged_archive", "the archive is damaged here, or is not the one that was listed; run again")


def without_quotes(error: BaseException) -> str:
    """What a library says of an archive, without what it quotes of it."""
    return f"{type(error).__name__}: {unquoted(' '.join(str(error).split()))}"[:200]


@contextlib.contextmanager
def fault_in_words() -> Iterator[None]:
    """Turns what readers of archives raise within into an ArchiveError with its reason and cure."""
    try:
        yield
    except _FAULTS as error:
        text = without_quotes(error)
        if isinstance(error, EOFError) or re.search(
            "truncated|unexpected end|empty file|not a zip file", text, re.IGNORECASE
        ):
            raise ArchiveError(
                "truncated_archive", f"the archive ends too early ({text}); what lies before is read; copy it again"
            ) from error
        raise ArchiveError(
            "damaged_archive", f"the archive cannot be read on ({text}); what lies before is read; pack it again"
        ) from error


def is_hashed(steps: Sequence[Step]) -> bool:
    """Whether a member of these steps lies in a compressed tar, whose bytes pass by when it is listed."""
    return len(steps) > 1 and steps[-2][0] in ("gz", "zst")
