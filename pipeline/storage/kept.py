"""A large remote file of which what was read is kept on this machine: ranges of bytes in and out, in blocks.

For readers that jump about in a file and come back, such as a player: it is never copied whole. What is kept lies in a
sparse file, which may be deleted at any time; it is then read anew.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.storage.contents import is_on_the_web, stored_content_id
from pipeline.storage.remote import open_filesystem, while_unchanged
from pipeline.storage.retry import ContentChangedError, call, checked

BLOCK_BYTES = 2**18
# A reader that goes straight on gets ever more at once, so that a film takes few requests.
MAX_BLOCKS_AT_ONCE = 16
MAX_READERS = 8
# Room is asked for at once for so many bytes: to ask looks at every file that is kept.
ROOM_BYTES = 2**22


class KeptFile:
    """A remote file of `size_bytes`. For several threads.

    content_id: of today, under which every block is read (on S3). to: the sparse file. make_room: called with a number
    of bytes before so many are kept. is_stale: another file lies there by now, or none: it is to be opened anew.
    """

    def __init__(
        self,
        filesystem: Any,
        path: str,
        *,
        url: str,
        size_bytes: int,
        content_id: str,
        to: Path,
        make_room: Callable[[int], None],
    ) -> None:
        self.size_bytes, self.content_id = size_bytes, content_id
        self._filesystem, self._path = while_unchanged(filesystem, content_id), path
        self._what = f"{url} cannot be read"
        self._to, self._make_room = to, make_room
        self._kept: set[int] = set()
        self.is_stale = False
        self._room = 0
        self._ends: dict[int, int] = {}  # Where a reader would go on -> how many blocks it was given.
        self._lock = threading.Lock()

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`, fewer at the end of the file.

        Raises ContentChangedError where the file is another by now, as far as the store says so, FileNotFoundError, and
        StorageError for a fault that lasts.
        """
        start, end = max(0, start), min(end, self.size_bytes)
        if start >= end:
            return b""
        with self._lock:
            wanted = range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES))
            with self._opened() as file:
                if missing := [number for number in wanted if number not in self._kept]:
                    self._fetch(file.fileno(), missing[0], missing[-1] + 1)
                return checked(os.pread(file.fileno(), end - start, start), end - start)

    def _opened(self) -> Any:
        try:
            file = self._to.open("r+b")
            os.utime(self._to)  # What was used longest ago is deleted first.
        except FileNotFoundError:
            self._kept.clear()
            self._to.parent.mkdir(parents=True, exist_ok=True)
            file = self._to.open("w+b")
        return file

    def _fetch(self, descriptor: int, first: int, last: int) -> None:
        """Keep the blocks from `first` to before `last`, and more where the reader has come straight on."""
        before = self._ends.pop(first, 0)
        last = max(last, min(first + min(2 * before, MAX_BLOCKS_AT_ONCE), -(-self.size_bytes // BLOCK_BYTES)))
        start, end = first * BLOCK_BYTES, min(last * BLOCK_BYTES, self.size_bytes)
        if end - start > self._room:
            self._room = max(ROOM_BYTES, end - start)
            self._make_room(self._room)
        data = self._range(start, end)
        os.pwrite(descriptor, data, start)
        self._room -= len(data)
        self._kept.update(range(first, last))
        self._ends[last] = last - first
        while len(self._ends) > MAX_READERS:
            del self._ends[next(iter(self._ends))]

    def _range(self, start: int, end: int) -> bytes:
        options: dict[str, Any] = {"start": start, "end": end, "what": self._what, "size_bytes": end - start}
        try:
            return call(
                self._filesystem,
                "cat_file",
                self._path,
                then=lambda data: checked(bytes(data), end - start),
                **options,
            )
        except (ContentChangedError, FileNotFoundError):
            self.is_stale = True
            raise


def kept_file(url: str, to: Path, *, at_least: int, make_room: Callable[[int], None]) -> KeptFile | None:
    """A remote file that is read by ranges; None where it has fewer than `at_least` bytes or its store gives no ranges.

    Raises FileNotFoundError, and StorageError for a fault that lasts.
    """
    filesystem, path = open_filesystem(url, is_listed=True)
    filesystem.invalidate_cache()
    info = call(filesystem, "info", path, what=f"{url} cannot be read")
    size_bytes = info.get("size") or 0
    is_web = is_on_the_web(filesystem)
    if size_bytes < max(at_least, 2) or (is_web and not _gives_ranges(filesystem, path)):
        return None
    content_id = "" if is_web else stored_content_id(info)
    facts = {"url": url, "size_bytes": size_bytes, "content_id": content_id}
    return KeptFile(filesystem, path, to=to, make_room=make_room, **facts)


def content_id_at(url: str) -> str:
    """What the store of a remote file says of its bytes now; "" where it says nothing.

    Raises FileNotFoundError, and StorageError for a fault that lasts.
    """
    filesystem, path = open_filesystem(url)
    if is_on_the_web(filesystem):
        return ""
    filesystem.invalidate_cache()
    return stored_content_id(call(filesystem, "info", path, what=f"{url} cannot be read"))


def _gives_ranges(filesystem: Any, path: str) -> bool:
    """Whether a web server sends a part of a file where it is asked for one, and not all of it."""
    try:
        return len(call(filesystem, "cat_file", path, start=1, end=2, what="it cannot be read", num_tries=1)) == 1
    except OSError:
        return False
