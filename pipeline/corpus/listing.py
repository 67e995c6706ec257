"""Lists the files of an input, on a disk or in a store."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any, TypeVar
from urllib.parse import quote

from fsspec import AbstractFileSystem
from fsspec.utils import glob_translate

from pipeline.corpus.types import CorpusError, Ignored, ListedFile
from pipeline.storage.contents import is_on_the_web, stored_content_id
from pipeline.storage.redaction import redacted, without_query, without_secrets
from pipeline.storage.remote import listed, local_path, open_filesystem
from pipeline.storage.retry import StorageError, call, store_errors

_TIMES = ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "modified", "created")


# What fsspec makes of other places than it says: of files here, of other stores, of code that runs elsewhere. Whoever
# writes a manifest could else have them read.
_NO_STORES = frozenset(
    (
        *("arrow_hdfs", "async_wrapper", "asynclocal", "asyncwrapper", "blockcache", "cached", "dask", "data", "dbfs"),
        *("dir", "filecache", "generic", "gist", "git", "github", "jlab", "jupyter", "libarchive", "pyscript"),
        *("reference", "root", "simplecache", "tar", "zip"),
    )
)


_THREADS = 8


NUM_TRIES = 5  # of one request: a person waits, 4 s on average


_Item = TypeVar("_Item")


_Result = TypeVar("_Result")


def locate(url: str, *, is_listed: bool = False) -> tuple[str, AbstractFileSystem | None]:
    """The absolute local path and None, or the name in a store and the store.

    is_listed: a manifest gives the URL, from another host than its own.
    Raises CorpusError for a URL of no store that is installed.
    """
    if (path := local_path(url)) is not None:
        return os.path.abspath(path), None
    protocol = url.partition("://")[0]
    if protocol.lower() in _NO_STORES:
        raise CorpusError(
            f"input {shown_url(url)}: {protocol}:// is no store of files; give the address of the file itself "
            "(archives are read as they are)"
        )
    try:
        store, name = open_filesystem(url, is_listed=is_listed)
    except (ImportError, TypeError, ValueError) as error:
        raise CorpusError(
            f"input {shown_url(url)}: {shown_url(str(error))}; install the fsspec package of {protocol!r}, "
            "or use another URL"
        ) from None
    store.invalidate_cache()  # a listing kept from an earlier read of this process may be old
    return name, store


def ask_store(store: AbstractFileSystem, method: str, place: str, **options: Any) -> Any:
    """What a store's method says of a place; what may pass is asked again."""
    return call(store, method, place, what=f"{url_of(place, store)} cannot be read", num_tries=NUM_TRIES, **options)


def info_of(place: str, store: AbstractFileSystem) -> Mapping[str, Any] | None:
    """What a store says of a place; None where nothing is there. Raises what the store raises else."""
    try:
        return ask_store(store, "info", place)
    except FileNotFoundError:
        return None


def url_of(place: str, store: AbstractFileSystem | None) -> str:
    """A place as a URL that any reader understands; a local path as it is, if it is UTF-8."""
    if store is not None:
        return store.unstrip_protocol(place)
    return place if _is_utf8(place) else "file://" + quote(os.fsencode(place))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable_path(path: str) -> str:
    r"""A path as valid UTF-8: undecodable bytes of a local name are shown as \xNN."""
    return path if _is_utf8(path) else os.fsencode(path).decode("utf-8", "backslashreplace")


def shown_url(text: str) -> str:
    """Text for people, in one line: no credentials, no signed query strings."""
    return re.sub(r"\s*[\r\n]+\s*", " ", redacted(printable_path(text)))


@contextmanager
def one_line_errors(input_url: str) -> Iterator[None]:
    """Turns what a store raises within into a CorpusError of one line, with the cure and without secrets."""
    try:
        yield
    except store_errors() as error:
        if isinstance(error, StorageError) and error.errno != errno.ENOENT:
            raise CorpusError(f"input {error}") from None
        detail = shown_url(f"{type(error).__name__}: {error}")[:300]
        fault, cure = f"cannot be read: {detail}", "check the address, the network and the store"
        if isinstance(error, FileNotFoundError | StorageError):
            fault, cure = "does not exist", "check the path"
        elif isinstance(error, PermissionError) or "redential" in detail or "Forbidden" in detail:
            cure = "check the credentials, and that they may list and read it"
        # Not chained: the store's own traceback may hold credentials or signed URLs.
        raise CorpusError(f"input {shown_url(input_url)} {fault}; {cure}") from None


def map_in_threads(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """`work` of each item, in order; only a few are waited for at a time, so that a million need no more memory."""
    pool, items = ThreadPoolExecutor(_THREADS), iter(items)
    try:
        waiting = deque(pool.submit(work, item) for item in islice(items, 4 * _THREADS))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(items, 1))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the running files, not for all that are queued


def list_input(
    place: str, store: AbstractFileSystem | None, *, shown: str, follow_links: bool = False
) -> tuple[str, Iterator[ListedFile | Ignored], bool]:
    """The root, its files with what is no file, and whether the input was a single file.

    Raises CorpusError for a glob that is none, and for what cannot be listed.
    """
    wildcard = re.search(r"[^/]*[*?[]", place)
    if wildcard and not (os.path.lexists(place) if store is None else info_of(place, store)):
        # The folder before the first wildcard is the root, so that ids are those of the whole folder.
        root = place[: wildcard.start()].rstrip("/") or "/"
        pattern = place.removeprefix(root).lstrip("/")
        try:
            matches = re.compile(glob_translate(pattern)).match
        except ValueError as error:
            raise CorpusError(f"glob {shown}: {error}; write ** alone between slashes") from None
        depth = None if "**" in pattern else pattern.count("/")
        items = (
            _local_files(root, depth=depth, follow_links=follow_links) if store is None else _remote_files(root, store)
        )
        return root, (item for item in items if item.path.endswith("/") or matches(item.path)), False
    if store is not None:
        items = _remote_files(place, store)
        first = list(islice(items, 2))
        single = [item.place for item in first if isinstance(item, ListedFile)] == [place]
        return (posixpath.dirname(place) if single else place), chain(first, items), single
    if os.path.isdir(place):
        return place, _local_files(place, depth=None, follow_links=follow_links), False
    status = os.stat(place)
    if not stat.S_ISREG(status.st_mode):
        raise CorpusError(f"input {shown} is neither a folder nor a regular file; give one of these")
    file = ListedFile(path=os.path.basename(place), place=place, size_bytes=status.st_size, modified=status.st_mtime)
    return os.path.dirname(place), iter([file]), True


def _local_files(root: str, *, depth: int | None, follow_links: bool) -> Iterator[ListedFile | Ignored]:
    """All regular files below a local folder, following each linked folder once; `depth` limits the levels below.

    follow_links: also where a link leads out of the folder. Who may put a link into it could else have any file of this
    user read.
    """

    def ignored(path: str, reason: str) -> Ignored:
        return Ignored(path=printable_path(path), reason=reason)

    read: dict[tuple[int, int], str] = {}
    above = inside = os.path.realpath(root)
    while (parent := os.path.dirname(above)) != above:
        status = os.stat(parent)
        read[status.st_dev, status.st_ino] = "the input's own parent"
        above = parent
    folders, links = [""], []
    while folders or links:
        # Links wait until the tree itself is read, so that a file keeps its own name whatever links lead to it.
        if not folders:
            links.sort(reverse=True)
        folder = folders.pop() if folders else links.pop()
        try:
            status = os.stat(os.path.join(root, folder))
            with os.scandir(os.path.join(root, folder)) as entries:
                sorted_entries = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not folder:
                raise
            yield ignored(f"{folder}/", f"a folder that cannot be listed: {error.strerror}")
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in read:
            yield ignored(f"{folder}/", f"a link to a folder already read: {read[identity]}")
            continue
        read[identity] = printable_path(folder or "the input itself")
        for entry in sorted_entries:
            path = posixpath.join(folder, entry.name)
            try:
                status = entry.stat()
            except OSError as error:
                kind = "a link that leads nowhere" if entry.is_symlink() else "it cannot be looked at"
                yield ignored(path, f"{kind}: {error.strerror}")
                continue
            is_folder = stat.S_ISDIR(status.st_mode)
            identity = (status.st_dev, status.st_ino)
            if entry.name.startswith("."):
                yield ignored(path + "/" * is_folder, "hidden: its name begins with a dot")
            elif (is_folder or stat.S_ISREG(status.st_mode)) and not (
                follow_links or identity in read or not entry.is_symlink() or _is_within(inside, entry.path)
            ):
                yield ignored(path + "/" * is_folder, "a link that leads out of the input; --follow-links takes it")
            elif is_folder:
                if depth is None or path.count("/") < depth:
                    (links if entry.is_symlink() else folders).append(path)
            elif stat.S_ISREG(status.st_mode):
                place, modified = os.path.join(root, path), status.st_mtime
                yield ListedFile(path=path, place=place, size_bytes=status.st_size, modified=modified)
            else:
                yield ignored(path, "not a regular file: a FIFO, device or socket")


def _is_within(folder: str, path: str) -> bool:
    return os.path.commonpath((folder, os.path.realpath(path))) == folder


def _remote_files(root: str, store: AbstractFileSystem) -> Iterator[ListedFile | Ignored]:
    """All objects below a name in a store, by one listing; a name that is itself an object gives that object."""
    start = root.rstrip("/") + "/"
    for place, info in _objects(root, store):
        if place.endswith("/"):
            continue  # the empty object that stands for a folder
        path = posixpath.basename(without_query(without_secrets(place))) if place == root else place.removeprefix(start)
        if place != root and (path.startswith(".") or "/." in path):
            yield Ignored(path=path, reason="hidden: its name begins with a dot")
        else:
            yield ListedFile(
                path=path,
                place=place,
                size_bytes=info.get("size") or 0,
                store=store,
                content_id=remote_content_id(info, store),
                modified=remote_modified(info),
            )


def _objects(root: str, store: AbstractFileSystem) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if "://" in root and not root.endswith("/"):
        # On the web: to list it, the whole file would be read for its links.
        yield root, ask_store(store, "info", root)
        return
    url = url_of(root, store)
    objects = listed(store, root, what=f"{url} cannot be read", num_tries=NUM_TRIES)
    try:
        first = next(objects, None)
    except ValueError as error:
        raise CorpusError(f"input {shown_url(url)}: {shown_url(str(error))}; name a bucket or folder") from None
    if first is not None:
        yield first
        yield from objects
    elif root and (info := info_of(root, store)) and info["type"] == "file":
        yield root, info


def remote_content_id(info: Mapping[str, Any], store: AbstractFileSystem) -> str:
    """What a store says of the bytes of a file that is there; "" for a web server, which may say what it likes."""
    return "" if is_on_the_web(store) else stored_content_id(info)


def remote_modified(info: Mapping[str, Any]) -> float | None:
    """When an object was modified, seconds of the epoch: stores give a datetime, its text, or a number."""
    value = next((info[name] for name in _TIMES if info.get(name)), None)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return float(value) if isinstance(value, int | float) else None
