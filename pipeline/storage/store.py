"""One output folder: objects that are whole or absent."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.remote import absolute_url, listed, open_filesystem
from pipeline.storage.retry import ABSENT_OR_THERE, TRIES, call, checked, raise_storage_error
from pipeline.storage.scratch import scratch

TEMPORARY = ".writing-"
# What stores tell of an object that changes when it is written.
MARKS = ("size", "ETag", "etag", "generation", "updated", "LastModified", "last_modified", "mtime")


_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Storage:
    """The folder at `url`, with names relative to it and forward slashes. Pickles as its URL.

    num_tries: of every request to a remote store. All methods raise StorageError for a fault that lasts.
    """

    def __init__(self, url: str, *, num_tries: int = TRIES) -> None:
        self.url = absolute_url(url)
        self._num_tries = num_tries

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_num_tries": self._num_tries}

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return open_filesystem(self.url)

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

        self._do(name, "written", "pipe_file", data, local=lambda: self._replace(name, data), size_bytes=len(data))

    def put_stream(self, name: str, parts: Iterable[bytes]) -> None:
        """Write `parts`, one after the other, as one object, at once. On their way they lie on a local disk, not in
        memory."""
        if self.is_local:
            self._do(name, "written", "", local=lambda: self._replace(name, parts))
            return
        with scratch("put") as folder:
            spool = folder / "object"
            with spool.open("xb") as file:
                file.writelines(parts)
            call(
                self.filesystem,
                "put_file",
                str(spool),
                self.path(name),
                what=f"{self.url}/{name} cannot be written",
                size_bytes=spool.stat().st_size,
                num_tries=self._num_tries,
            )

    def create(self, name: str, data: bytes) -> bool:
        """Write `data` under `name` if nothing is there; False if something else is."""
        try:
            self._do(
                name,
                "written",
                "pipe_file",
                data,
                mode="create",
                local=lambda: self._link(name, data),
                size_bytes=len(data),
            )
        except FileExistsError:
            # The answer to a write that took effect may be lost, and the next try (which the HTTP library may make by
            # itself) then meets its own object.
            return not self.is_local and self.read(name) == data
        return True

    def read(self, name: str, *, size_bytes: int | None = None) -> bytes:
        """All bytes of `name`, `size_bytes` of them where that is known. Raises FileNotFoundError."""

        def whole(data: Any) -> bytes:
            return checked(bytes(data), size_bytes)

        return self._do(
            name,
            "read",
            "cat_file",
            local=lambda: whole(_read_regular(self.path(name))),
            then=whole,
            size_bytes=size_bytes or 0,
        )

    def exists(self, name: str) -> bool:
        self.filesystem.invalidate_cache()
        try:
            self._do(name, "looked up", "info", local=lambda: os.stat(self.path(name)))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def sizes(self, folder: str) -> dict[str, int]:
        """Every object under `folder` (recursively) with its size in bytes, sorted by name; {} if there is none."""
        return dict(sorted(self.listing(folder)))

    def listing(self, folder: str) -> Iterator[tuple[str, int]]:
        """Every object under `folder` (recursively) and its size in bytes, in any order, a few of them at a time."""
        if self.is_local:
            found = self._local_listing(folder)
        else:
            what = f"{self.url}/{folder} cannot be listed"
            listing = listed(self.filesystem, self.path(folder), what=what, num_tries=self._num_tries)
            found = ((path, int(info["size"] or 0)) for path, info in listing)
        start = len(self.path().rstrip("/")) + 1
        return ((path[start:], num_bytes) for path, num_bytes in found if TEMPORARY not in path[start:])

    def stamps(self, folder: str) -> Iterator[tuple[str, str]]:
        """Every object under `folder` and a text that changes whenever it is written, in any order."""
        if self.is_local:
            for path, _ in self._local_listing(folder):
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    status = os.stat(path)
                    yield self._name_of(path), f"{status.st_size} {status.st_mtime_ns}"
            return
        what = f"{self.url}/{folder} cannot be listed"
        for path, info in listed(self.filesystem, self.path(folder), what=what, num_tries=self._num_tries):
            yield self._name_of(path), " ".join(str(info[name]) for name in MARKS if info.get(name) is not None)

    def _name_of(self, path: str) -> str:
        return path[len(self.path().rstrip("/")) + 1 :]

    def _local_listing(self, folder: str) -> Iterator[tuple[str, int]]:
        try:
            yield from _local_sizes(self.path(folder))
        except OSError as error:
            raise_storage_error(error, f"{self.url}/{folder} cannot be listed", num_tries=1)

    def read_many(self, names: Collection[str] | Mapping[str, int]) -> dict[str, bytes]:
        """All bytes of each of `names`, fetched side by side where the store can. Raises on the first failure.

        names: may map each name to its size in bytes, which is then checked.
        """
        num_bytes = names if isinstance(names, Mapping) else {}
        # Not filesystem.cat(list): it expands names with brackets as patterns.
        with ThreadPoolExecutor(max_workers=16) as threads:
            found = threads.map(lambda name: self.read(name, size_bytes=num_bytes.get(name)), names)
            return dict(zip(names, found, strict=True))

    def delete(self, name: str) -> None:
        """Remove `name`; nothing happens if it is absent."""
        try:
            self._do(name, "deleted", "rm_file", local=lambda: os.unlink(self.path(name)))
        except FileNotFoundError:
            return

    def delete_temporary(self) -> None:
        """Remove what a killed process left of files that it was writing. Only the holder of a lock on all may."""
        if self.is_local:
            for path, _ in self._local_listing(""):
                if Path(path).name.startswith(TEMPORARY):
                    Path(path).unlink(missing_ok=True)

    def _do(
        self,
        name: str,
        verb: str,
        method: str,
        *arguments: Any,
        local: Callable[[], Any],
        then: Callable[[Any], Any] = lambda found: found,
        size_bytes: int = 0,
        **options: Any,
    ) -> Any:
        """Call `local()` on a local disk, else the file system's `method` on the path of `name`, as often as needed."""
        what = f"{self.url}/{name} cannot be {verb}"
        if self.is_local:
            try:
                return local()
            except IsADirectoryError as error:
                raise_storage_error(error, what, num_tries=1)
            except ABSENT_OR_THERE:
                raise
            except OSError as error:
                raise_storage_error(error, what, num_tries=1)
        return call(
            self.filesystem,
            method,
            self.path(name),
            *arguments,
            what=what,
            then=then,
            size_bytes=size_bytes,
            num_tries=self._num_tries,
            **options,
        )

    def _replace(self, name: str, data: bytes | Iterable[bytes]) -> None:
        temporary = self._write_temporary(name, data)
        try:
            os.replace(temporary, self.path(name))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(Path(self.path(name)).parent)

    def _link(self, name: str, data: bytes) -> None:
        temporary = self._write_temporary(name, data)
        try:
            os.link(temporary, self.path(name))
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # exFAT and some network mounts have no hard links; there two writers at one instant could both win.
            if os.path.exists(self.path(name)):
                raise FileExistsError(name) from None
            os.rename(temporary, self.path(name))
        finally:
            Path(temporary).unlink(missing_ok=True)
        _sync_folder(Path(self.path(name)).parent)

    def _write_temporary(self, name: str, data: bytes | Iterable[bytes]) -> str:
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            with open(temporary, "xb") as file:
                file.writelines([data] if isinstance(data, bytes) else data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return str(temporary)


def _read_regular(path: str) -> bytes:
    """All bytes of a regular file. What else somebody put there may block for ever, or have no end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, "it is no regular file")
    with open(descriptor, "rb") as file:
        return file.read()


def _local_sizes(folder: str) -> Iterator[tuple[str, int]]:
    """Every file below a folder with its size in bytes. A folder that cannot be listed is an error: fsspec's `find`
    leaves it out, and what is in it would then count as not there."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if not entry.is_dir():
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    yield entry.path, entry.stat().st_size
            elif not entry.is_symlink():
                yield from _local_sizes(entry.path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
