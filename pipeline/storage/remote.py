"""Reads files at any URL, whole or by ranges."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.records.documents import read_at_most, too_long
from pipeline.storage.contents import UNKNOWN, IfMatch, is_on_the_web, stored_content_id
from pipeline.storage.retry import TRIES, ContentChangedError, FileGrewError, TruncatedError, call, checked
from pipeline.storage.web import listed_client, typed_client


def local_path(url: str) -> str | None:
    """The local path of a clip's url, or None where the url is in a remote store.

    A local url is the path as it is, except for a name that is not valid UTF-8, which is a percent-encoded `file:` URL.
    """
    if not (match := re.match(r"([A-Za-z][\w+.-]*)://", url)):
        return url
    if match[1] not in ("file", "local"):
        return None
    path = url[match.end() :]
    return path if os.path.lexists(path) else os.fsdecode(unquote_to_bytes(path))


def absolute_url(url: str) -> str:
    """The URL as it reads from any folder: a relative local path becomes absolute. Ray's workers sit elsewhere."""
    return url.rstrip("/") if "://" in url else os.path.abspath(os.path.expanduser(url))


def open_filesystem(url: str, *, is_listed: bool = False) -> tuple[Any, str]:
    """The file system of a URL and the path in it. Raises ImportError, TypeError or ValueError where there is none.

    is_listed: a manifest may have given the URL, and not the user: then it may lead to no private host (`web`).
    Not fsspec's `url_to_fs`: it takes "::" inside a name for a chain of stores.
    """
    if "://" not in url:
        return fsspec.filesystem("file"), url
    protocol = url.partition("://")[0]
    if protocol.lower() in ("http", "https"):
        from pipeline.storage.web_files import WebFiles  # with aiohttp, which what is here does without

        return WebFiles(get_client=listed_client if is_listed else typed_client), url
    kind: Any = fsspec.get_filesystem_class(protocol)
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        # botocore's 4 retries inside the 5 of s3fs inside ours would be 160 requests for one object. Those of s3fs
        # stay: they are over in 2 s, and go on with a body where it was cut. Concurrency within one object would ask
        # for its size first (HEAD), whose answer cannot say why it is refused.
        options = {"config_kwargs": {"retries": {"total_max_attempts": 1}}, "max_concurrency": 1}
    return kind(**{**kind._get_kwargs_from_urls(url), **options}), kind._strip_protocol(url)


def read_url(url: str, *, max_bytes: int | None = None, what: str = "", num_tries: int = TRIES) -> bytes:
    """All bytes of one file at any fsspec URL. Raises FileNotFoundError, and StorageError for a fault that lasts.

    max_bytes: of a longer file no more is read, and DocumentError raised. what: names it there; default: its URL.
    num_tries: of each request to a store.
    """
    filesystem, path = open_filesystem(absolute_url(url))
    asked: dict[str, Any] = {"what": f"{url} cannot be read", "num_tries": num_tries}
    if max_bytes is None:
        return bytes(call(filesystem, "cat_file", path, **asked))
    what = what or url
    if isinstance(filesystem, LocalFileSystem):
        with open(local_path(path) or path, "rb") as stream:  # What is no file may have no end, and no size.
            return read_at_most(stream, max_bytes, what)
    if (call(filesystem, "info", path, **asked).get("size") or 0) > max_bytes:
        raise too_long(what, max_bytes)
    if is_on_the_web(filesystem):  # which may send more than it says
        asked["max_bytes"] = max_bytes
    data = bytes(call(filesystem, "cat_file", path, size_bytes=max_bytes, **asked))
    if len(data) > max_bytes:
        raise too_long(what, max_bytes)
    return data


def fetch(url: str, to: Path, *, size_bytes: int | None, content_id: str = "") -> None:
    """Copy a remote file to the local path `to`.

    One GET: range reads made 10 to 300 requests a clip. Raises FileNotFoundError, ContentChangedError where the file
    is not the one of `size_bytes` and `content_id` that was listed, as far as these are known (FileGrewError where it
    is longer and nothing else is known), and StorageError for a fault that lasts.
    """
    filesystem, path = open_filesystem(url, is_listed=True)
    reader = while_unchanged(filesystem, content_id)

    def check(_: Any) -> None:
        if size_bytes is not None and (found := to.stat().st_size) != size_bytes:
            told = call(filesystem, "info", path, what=f"{url} cannot be read").get("size")
            if told == size_bytes or told != found:
                raise TruncatedError(f"{found} bytes came instead of {size_bytes}")
            if content_id in UNKNOWN and found > size_bytes:
                raise FileGrewError(f"it has {found:,} bytes, and had {size_bytes:,} when it was listed")
            if content_id not in UNKNOWN:
                raise ContentChangedError(f"it has {found} bytes, and had {size_bytes} when it was listed")

    what = f"{url} cannot be copied to {to.parent}"
    options = {}
    if is_on_the_web(filesystem) and size_bytes is not None:  # with room for one that grew
        options = {"max_bytes": max(2 * size_bytes, size_bytes + 2**26)}
    call(reader, "get_file", path, str(to), what=what, then=check, size_bytes=size_bytes or 2**33, **options)
    require_content(filesystem, path, content_id, url=url)


def while_unchanged(filesystem: Any, content_id: str) -> Any:
    """What reads an object only while it has the content that was listed: on S3; elsewhere the file system itself."""
    return IfMatch(filesystem, content_id) if _is_s3(filesystem) and content_id not in UNKNOWN else filesystem


def require_content(filesystem: Any, path: str, content_id: str, *, url: str) -> None:
    """Raise ContentChangedError where the store says now that a file has other content than was listed.

    S3 is not asked, whose reads say so themselves (`while_unchanged`), and no web server: their etags mean nothing.
    """
    if content_id in UNKNOWN or _is_s3(filesystem) or is_on_the_web(filesystem):
        return
    filesystem.invalidate_cache()
    found = stored_content_id(call(filesystem, "info", path, what=f"{url} cannot be read"))
    if found and found != content_id:
        raise ContentChangedError("it has other bytes than when it was listed")


def _is_s3(filesystem: Any) -> bool:
    return hasattr(filesystem, "call_s3")


def listed(
    filesystem: Any, path: str, *, what: str, is_deep: bool = True, num_tries: int = TRIES
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object below `path`, as it is there now: its path and what the store says of it, as fsspec's `find` gives
    them. is_deep: also those in folders below it.

    S3 is asked page by page, each of which may be tried again, and no page is kept: `find` would hold some 3 KB an
    object, and all of it would have to come within the time of one request. Raises as `call` does, and ValueError for
    what has no listing.
    """
    filesystem.invalidate_cache()
    options: dict[str, Any] = {"what": what, "num_tries": num_tries}
    if not _is_s3(filesystem):
        depth = {} if is_deep else {"maxdepth": 1}
        yield from call(filesystem, "find", path, detail=True, **depth, **options).items()
        return
    bucket, key, _ = filesystem.split_path(path)
    if not bucket:
        raise ValueError("a listing needs a bucket")
    asked = {"Bucket": bucket, "Prefix": f"{key.lstrip('/')}/" if key else "", **filesystem.req_kw}
    if not is_deep:
        asked["Delimiter"] = "/"
    while True:
        page = call(filesystem, "call_s3", "list_objects_v2", **asked, **options)
        for found in page.get("Contents", ()):
            found |= {"type": "file", "size": found["Size"]}
            yield f"{bucket}/{found['Key']}", found
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


class RangedFile:
    """A remote file of `size_bytes`, read by ranges of `block_bytes` and more, each asked for like any other request.

    Reading raises FileNotFoundError, ContentChangedError where an object of S3 has other content than `content_id`, as
    far as it is known, and StorageError for a fault that lasts.
    """

    def __init__(
        self, filesystem: Any, path: str, *, what: str, size_bytes: int, block_bytes: int, content_id: str = ""
    ) -> None:
        self._filesystem = while_unchanged(filesystem, content_id)
        self._path = path
        self._what = what
        self._size_bytes = size_bytes
        self._block_bytes = block_bytes
        self._at = 0
        self._start, self._block = 0, b""

    def seek(self, offset: int) -> int:
        self._at = offset
        return offset

    def read(self, num_bytes: int) -> bytes:
        """Up to `num_bytes` from here: fewer at the end of the block that is held, none at the end of the file."""
        if not self._start <= self._at < self._start + len(self._block):
            end = min(self._size_bytes, self._at + max(num_bytes, self._block_bytes))
            self._block = b""  # else both would be held
            self._start, self._block = self._at, self._range(end) if self._at < end else b""
        data = self._block[self._at - self._start : self._at - self._start + num_bytes]
        self._at += len(data)
        return data

    def _range(self, end: int) -> bytes:
        return call(
            self._filesystem,
            "cat_file",
            self._path,
            start=self._at,
            end=end,
            what=self._what,
            then=lambda data: checked(bytes(data), end - self._at),
            size_bytes=end - self._at,
        )

    def close(self) -> None:
        """Nothing is held open between ranges."""

    def __enter__(self) -> RangedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
