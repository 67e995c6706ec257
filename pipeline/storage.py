"""A folder at any fsspec URL in which every object is whole or absent.

On a local disk: a temporary name, fsync, rename or link, fsync of the folder. On an object store: one PUT of the whole
body, because an exception inside `with fs.open(...)` still publishes what was written so far.
"""

from __future__ import annotations

import errno
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

TEMPORARY = ".writing-"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Storage:
    """The folder at `url`, with names relative to it and forward slashes. Pickles as its URL."""

    def __init__(self, url: str) -> None:
        self.url = absolute_url(url)

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return fsspec.core.url_to_fs(self.url)

    @property
    def filesystem(self) -> Any:
        return self._opened[0]

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    def path(self, name: str = "") -> str:
        """The path of `name` as the file system knows it."""
        root = self._opened[1]
        return f"{root.rstrip('/')}/{name}" if name else root

    def put(self, name: str, data: bytes) -> None:
        """Write `data` under `name`, replacing what was there, at once."""
        if self.is_local:
            os.replace(self._write_temporary(name, data), self.path(name))
            _sync_folder(Path(self.path(name)).parent)
        else:
            self.filesystem.pipe_file(self.path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write `data` under `name` if nothing is there; False if something is."""
        if not self.is_local:
            try:
                self.filesystem.pipe_file(self.path(name), data, mode="create")
            except FileExistsError:
                return False
            return True
        temporary = self._write_temporary(name, data)
        try:
            os.link(temporary, self.path(name))
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # exFAT and some network mounts have no hard links; there two writers at one instant could both win.
            if os.path.exists(self.path(name)):
                return False
            os.rename(temporary, self.path(name))
        finally:
            Path(temporary).unlink(missing_ok=True)
        _sync_folder(Path(self.path(name)).parent)
        return True

    def read(self, name: str) -> bytes:
        """All bytes of `name`. Raises FileNotFoundError."""
        return bytes(self.filesystem.cat_file(self.path(name)))

    def exists(self, name: str) -> bool:
        self.filesystem.invalidate_cache()
        return self.filesystem.exists(self.path(name))

    def sizes(self, folder: str) -> dict[str, int]:
        """Every object under `folder` (recursively) with its size in bytes, sorted by name; {} if there is none."""
        self.filesystem.invalidate_cache()
        found = self.filesystem.find(self.path(folder), detail=True)
        start = len(self.path().rstrip("/")) + 1
        names = {path[start:]: int(info["size"] or 0) for path, info in found.items()}
        return {name: names[name] for name in sorted(names) if TEMPORARY not in name}

    def read_many(self, names: list[str]) -> dict[str, bytes]:
        """All bytes of each of `names`, fetched side by side where the store can. Raises on the first failure."""
        # Not filesystem.cat(list): it expands names with brackets as patterns.
        with ThreadPoolExecutor(max_workers=16) as threads:
            return dict(zip(names, threads.map(self.read, names), strict=True))

    def delete(self, name: str) -> None:
        """Remove `name`; nothing happens if it is absent."""
        try:
            self.filesystem.rm_file(self.path(name))
        except FileNotFoundError:
            return

    def _write_temporary(self, name: str, data: bytes) -> str:
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return str(temporary)


def absolute_url(url: str) -> str:
    """The URL as it reads from any folder: a relative local path becomes absolute. Ray's workers sit elsewhere."""
    return url.rstrip("/") if "://" in url else os.path.abspath(os.path.expanduser(url))


def read_url(url: str) -> bytes:
    """All bytes of one file at any fsspec URL. Raises FileNotFoundError."""
    filesystem, path = cast(tuple[Any, str], fsspec.core.url_to_fs(url))
    return bytes(filesystem.cat_file(path))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
