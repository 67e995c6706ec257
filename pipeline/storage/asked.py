"""A file of another process, for one that may not open it: what is read is asked of that process."""

from __future__ import annotations

import io
from typing import Any

MAX_PART_BYTES = 2**22


class AskedFile(io.RawIOBase):
    """A file of `size_bytes`, whose bytes come from `line.ask(["read", offset, num_bytes])`.

    name: says that it is the same file as one that was read before. num_read_bytes: how many were asked for.
    """

    def __init__(self, line: Any, size_bytes: int, *, name: str = "") -> None:
        self.name = name
        self.num_read_bytes = 0
        self._line, self._size_bytes, self._at = line, size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size_bytes)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), MAX_PART_BYTES, max(0, self._size_bytes - self._at))
        data = self._line.ask(["read", self._at, wanted]) if wanted else b""
        buffer[: len(data)] = data
        self._at += len(data)
        self.num_read_bytes += len(data)
        return len(data)
