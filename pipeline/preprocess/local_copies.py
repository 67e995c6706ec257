"""A clip as a local file under a neutral name."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.records.clips import Clip
from pipeline.storage.archives.members import is_member
from pipeline.storage.contents import LocalContents, begins_with, is_md5
from pipeline.storage.remote import (
    RangedFile,
    fetch,
    local_path,
    open_filesystem,
    require_content,
)
from pipeline.storage.retry import StorageError, call

SCRATCH_PREFIX = "emotion-pipeline-clip-"
GROWN_BLOCK_BYTES = 2**23


@contextlib.contextmanager
def local_file(clip: Clip, *, copies: str, contents: LocalContents) -> Iterator[Path]:
    """The clip's bytes as a local file under a neutral name: a link to a local file, a copy of a remote one.

    FFmpeg reads patterns, protocols and playlists out of names; this one has none. copies: the folder for it, which the
    child may read.
    contents: what is known of local files. Raises ContentChangedError where it has other bytes than were listed, and
    OSError; of a remote file only what outlasted every try.
    """
    local = local_path(clip.url)
    with tempfile.TemporaryDirectory(dir=copies) as folder:
        neutral = Path(folder) / "clip"
        if local is not None:
            if not stat.S_ISREG(os.stat(local).st_mode):  # Opening a FIFO would wait for ever.
                raise IsADirectoryError(errno.EISDIR, "not a regular file")
            contents.verify(local, clip.content_id)  # Unreadable is said here, in the clip's own name.
            if may_read_without_capabilities(local):
                neutral.symlink_to(os.path.abspath(local))
            else:
                shutil.copyfile(local, neutral)
        else:
            # Some web servers tell no size.
            fetch(clip.url, neutral, size_bytes=clip.size_bytes or None, content_id=clip.content_id)
        yield neutral


def open_archive(url: str, num_bytes: int, block_bytes: int, content_id: str, *, contents: LocalContents) -> Any:
    """An archive for reading, a block at a time and without asking the store for its size.

    content_id: what it was listed with; "" where that is not known. Raises ContentChangedError where it has other
    bytes, and OSError.
    """
    local = local_path(url)
    if local is not None:
        if content_id:
            contents.verify(local, content_id)
        return open(local, "rb")
    filesystem, path = open_filesystem(url, is_listed=True)
    what = f"{url} cannot be read"
    require_content(filesystem, path, content_id, url=url)
    return RangedFile(filesystem, path, what=what, size_bytes=num_bytes, block_bytes=block_bytes, content_id=content_id)


def has_grown(clip: Clip) -> bool:
    """Whether the clip's file is longer than when it was listed, and begins with the bytes that it then had."""
    if is_member(clip.url) or not is_md5(clip.content_id):
        return False
    try:
        if (local := local_path(clip.url)) is not None:
            with open(local, "rb") as stream:
                is_longer = os.fstat(stream.fileno()).st_size > clip.size_bytes
                return is_longer and begins_with(stream, clip.content_id, size_bytes=clip.size_bytes)
        filesystem, path = open_filesystem(clip.url, is_listed=True)
        what = f"{clip.url} cannot be read"
        filesystem.invalidate_cache()
        if (call(filesystem, "info", path, what=what).get("size") or 0) <= clip.size_bytes:
            return False
        remote = RangedFile(filesystem, path, what=what, size_bytes=clip.size_bytes, block_bytes=GROWN_BLOCK_BYTES)
        return begins_with(remote, clip.content_id, size_bytes=clip.size_bytes)
    except OSError:
        return False


@contextlib.contextmanager
def for_a_child(path: str, *, copies: str) -> Iterator[Path]:
    """A local file where a child may read it: itself, or a copy in the folder `copies`."""
    if may_read_without_capabilities(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(dir=copies) as folder:
        yield Path(shutil.copyfile(path, Path(folder) / "clip"))


def may_read_without_capabilities(path: str) -> bool:
    """Whether this user's own rights open a file: root, whose decoder gives up the capability to read all, may not."""
    if os.geteuid():
        return True
    real = os.path.realpath(path)
    folders = [folder for folder in _above(real) if not _grants(folder, 0o1)]
    return not folders and _grants(real, 0o4)


def _above(path: str) -> Iterator[str]:
    while (folder := os.path.dirname(path)) != path:
        yield folder
        path = folder


def _grants(path: str, right: int) -> bool:
    status = os.stat(path)
    if status.st_uid == os.geteuid():
        return bool(status.st_mode & right << 6)
    is_of_group = status.st_gid in (os.getegid(), *os.getgroups())
    return bool(status.st_mode & (right << 3 if is_of_group else right))


def error_in_words(error: OSError) -> str:
    """What went wrong with a file, in one line without its path."""
    return str(error) if isinstance(error, StorageError) else f"{type(error).__name__}: {error.strerror or error}"
