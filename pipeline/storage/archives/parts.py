"""Readers of archives that are bounded in what they read and unpack."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

import pyarrow as pa

MAX_RATIO = 200  # video shrinks by some per cent; zeros by 1,000 in deflate, by 16,000 in zstd


RATIO_FLOOR_BYTES = 64 * 2**20


class ArchiveError(Exception):
    """A member or an archive that cannot be read: `reason` is a short stable word, the message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        return self.args[1]


class StoreFaultError(Exception):
    """The store failed under the archive: nothing is known against the archive."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")


class GuardedStream:
    """A file of the store or of this disk: its own failures are told apart from those of what it holds."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, num_bytes: int) -> bytes:
        return self._call(self._file.read, num_bytes)

    def write(self, data: bytes) -> None:
        self._call(self._file.write, data)

    def seek(self, offset: int) -> None:
        self._call(self._file.seek, offset)

    @staticmethod
    def _call(call: Callable[..., Any], argument: Any) -> Any:
        try:
            return call(argument)
        except Exception as error:  # whatever a store raises
            raise StoreFaultError(error) from error


class FilePart:
    """A part of a file as a file of its own; without `can_seek` it goes forwards only, by reading.

    num_bytes: its length, None where only its end will tell. packed: what it is decompressed from, for the ratio.
    """

    closed = False

    def __init__(
        self, file: Any, *, start: int = 0, num_bytes: int | None, can_seek: bool, packed: FilePart | None = None
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


class BoundedHeaders:
    """A part as tarfile and zipfile see it, which read whatever a header claims at once: `left_bytes` bounds that."""

    def __init__(self, part: FilePart) -> None:
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


def decompressed(part: FilePart, kind: str) -> FilePart:
    """What a part holds when it is unpacked; kind: gz or zst. It goes forwards only."""
    if kind == "gz":
        unpacked: Any = gzip.GzipFile(fileobj=part, mode="rb")  # pyright: ignore[reportArgumentType]
    else:
        # A frame whose window is over 128 MiB is refused by Zstandard itself.
        unpacked = pa.CompressedInputStream(pa.PythonFile(part, mode="r"), "zstd")
    return FilePart(unpacked, num_bytes=None, can_seek=False, packed=part)
