"""Reads files of web servers in bounded memory, disk and time, whatever a server says of their lengths and sends.

A server may claim a few bytes and send without end, unpack a few to gigabytes on the way, or send one a minute.
"""

from __future__ import annotations

import errno
import time
from collections.abc import AsyncIterator
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.implementations.http import HTTPFileSystem

from pipeline.storage.retry import REQUEST_SECONDS, SLOWEST_BYTES_PER_SECOND

_CHUNK_BYTES = 2**18
_MAX_TOLD_BYTES = 2**50
# Where nobody says what may come.
MAX_READ_BYTES, MAX_COPIED_BYTES = 2**31, 2**33


class EndlessError(OSError):
    """A server sends more than may come. `errno` is EACCES: the same of no other file, and another try is no use."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"it sends more than {max_bytes:,} bytes")
        self.errno = errno.EACCES


class WebFiles(HTTPFileSystem):
    """fsspec's files of web servers, read a bit at a time under a bound."""

    async def _info(self, url: str, **options: Any) -> dict[str, Any]:
        """As fsspec has it, but without a size that no file has, which no number of ours would hold."""
        found = await super()._info(url, **options)
        size_bytes = found.get("size")
        told = isinstance(size_bytes, int) and 0 <= size_bytes < _MAX_TOLD_BYTES
        return {**found, "size": size_bytes if told else None}

    async def _bits(self, url: str, options: dict[str, Any]) -> AsyncIterator[bytes]:
        """What a server sends. Raises ConnectionError where that is too slow."""
        session = await self.set_session()
        started, num_bytes = time.monotonic(), 0
        async with session.get(self.encode_url(url), **{**self.kwargs, **options}) as response:
            self._raise_not_found_for_status(response, url)
            while bit := await response.content.read(_CHUNK_BYTES):
                num_bytes += len(bit)
                yield bit
                if time.monotonic() - started > REQUEST_SECONDS + num_bytes / SLOWEST_BYTES_PER_SECOND:
                    raise ConnectionError(f"it sent {num_bytes:,} bytes in {time.monotonic() - started:.0f} s")

    async def _cat_file(
        self, url: str, start: int | None = None, end: int | None = None, max_bytes: int | None = None, **options: Any
    ) -> bytes:
        """As fsspec has it, but that of what is longer than it should be a byte more is read, and no other.

        max_bytes: that are wanted of a whole file; where nobody says, EndlessError is raised for a very long one.
        """
        wanted = max_bytes
        if start is not None or end is not None:
            if start == end:
                return b""
            options["headers"] = {**options.get("headers", {}), "Range": await self._process_limits(url, start, end)}
            if start is not None and end is not None and 0 <= start < end:
                wanted = end - start
        most = MAX_READ_BYTES if wanted is None else wanted
        found = bytearray()
        async for bit in self._bits(url, options):
            found += bit[: most + 1 - len(found)]
            if len(found) > most:
                break
        if wanted is None and len(found) > most:
            raise EndlessError(most)
        return bytes(found)

    async def _get_file(
        self,
        rpath: str,
        lpath: Any,
        chunk_size: int = _CHUNK_BYTES,
        callback: Any = DEFAULT_CALLBACK,
        max_bytes: int = MAX_COPIED_BYTES,
        **options: Any,
    ) -> None:
        del chunk_size, callback
        num_bytes = 0
        with open(lpath, "wb") as file:
            async for bit in self._bits(rpath, options):
                num_bytes += len(bit)
                if num_bytes > max_bytes:
                    raise EndlessError(max_bytes)
                file.write(bit)
