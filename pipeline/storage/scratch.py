"""Temporary folders that only this user may enter, removed when they are closed, or by the next run if that was killed.

Whether the owner of a folder still lives is told by a lock that it holds on the folder's lock file, not by a process
id: ids are used again, and mean nothing in another container that shares the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

PREFIX = "emotion-pipeline-"


# Ray's Unix sockets lie deep in its folder, and their paths end at 107 bytes.
MAX_PARENT_LETTERS = 24


_LOCK = "lock"


class ScratchFolder:
    """A folder of mode 0700 in the temporary folder of this machine; `path` is it.

    parent: where it is made, in place of the temporary folder. prefix: of its name; `sweep` of the same prefix removes
    what dead owners left. Removed by `close`, at exit, or with the object.
    """

    def __init__(self, prefix: str = PREFIX, *, parent: str | None = None) -> None:
        # Made under another name: a sweep between making and locking would take it for a dead owner's.
        made = Path(tempfile.mkdtemp(prefix=f".{prefix}", dir=parent))
        self._descriptor = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.path = made.rename(made.with_name(made.name.removeprefix(".")))
        self._remove = weakref.finalize(self, _remove, self.path, self._descriptor)

    def close(self) -> None:
        """Remove the folder and all in it."""
        self._remove()


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A `ScratchFolder` for as long as the block runs; what dead owners left of this name is removed first."""
    sweep(f"{PREFIX}{name}-")
    folder = ScratchFolder(f"{PREFIX}{name}-")
    try:
        yield folder.path
    finally:
        folder.close()


def sweep(prefix: str = PREFIX, *, parent: str | None = None) -> None:
    """Remove the folders of this prefix and this user whose owners are gone."""
    for folder in Path(parent or tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _remove(path: Path, descriptor: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.close(descriptor)
