"""Content ids: what says that a file still has the bytes that were listed, and the checks of it while it is read.

Of a local file it is the MD5 of its bytes, of an object what its store says of it (an etag, Google's MD5), and "" where
nothing is known: a web server may say what it likes, and a time says nothing about bytes.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsspec.asyn import sync

from pipeline.storage.retry import ContentChangedError, error_code, is_transient

CHUNK_BYTES = 2**20
# Content ids that say nothing about bytes: of a store that gives no hash, and of what could not be read when it was
# listed.
UNKNOWN = ("", "missing", "unreadable", "not-a-file")


def stored_content_id(info: Mapping[str, Any]) -> str:
    """The content id of a remote file, out of what fsspec's `info` says of it; "" where that is no hash of the store's.

    Not those of web servers (see `is_on_the_web`).
    """
    if info.get("type") == "directory":
        return "not-a-file"
    if info.get("md5Hash"):  # Google's MD5, in base64; its etag changes with the metadata
        return base64.b64decode(info["md5Hash"]).hex()
    for name in ("ETag", "etag", "generation", "checksum"):
        if info.get(name):
            return str(info[name]).removeprefix("W/").strip('"')
    return ""


def is_on_the_web(filesystem: Any) -> bool:
    """Whether a file system is of web servers, whose etags and times mean nothing to us."""
    protocols = filesystem.protocol
    return "https" in ((protocols,) if isinstance(protocols, str) else protocols)


# Regular expressions of what says that two files are alike: content ids that are an MD5 which was computed here, or an
# etag of S3's family. A web server, whose URLs the second finds, may say what it likes.
HASHED_ID, WEB_URL = "[0-9a-f]{32}(-[0-9]+)?", "^https?:|=https?%3A"
# Finds the URLs whose content ids say nothing: also those of members of a zip or tar whose store tells no content id.
UNTOLD_URL = f"{WEB_URL}|&content=&(?:tar|zip)="
MD5 = "[0-9a-f]{32}"


def is_md5(content_id: str) -> bool:
    """Whether a content id is the MD5 of the bytes, and not a store's own."""
    return re.fullmatch(MD5, content_id) is not None


def md5_of(path: str | Path) -> str:
    """The MD5 of a local file's bytes, in hexadecimal digits. Raises OSError."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def begins_with(stream: Any, content_id: str, *, size_bytes: int) -> bool:
    """Whether the first `size_bytes` of a file open for reading are those of the MD5 `content_id`. Raises OSError."""
    found, left = hashlib.md5(usedforsecurity=False), size_bytes
    while left and (chunk := stream.read(min(left, CHUNK_BYTES))):
        found.update(chunk)
        left -= len(chunk)
    return not left and found.hexdigest() == content_id


class LocalContents:
    """Which local files have been seen to hold which bytes; a file is hashed again once its inode or times differ."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, ...], str]] = {}

    def verify(self, path: str, content_id: str) -> None:
        """Raise ContentChangedError where the file's bytes are not those of `content_id`, and OSError.

        A file that could not be read when it was listed ("missing", ...) has other bytes once it can be.
        """
        if not is_md5(content_id) and content_id not in UNKNOWN[1:]:  # no listing of ours says so of a local file
            with open(path, "rb"):
                return
        status = _identity(path)
        known = self._known.get(path)
        if known is None or known[0] != status:
            known = status, md5_of(path)
            if _identity(path) != status:
                raise ContentChangedError("it is being written to")
            if len(self._known) >= 1000:
                self._known.clear()
            self._known[path] = known
        if known[1] != content_id:
            raise ContentChangedError("it has other bytes than when it was listed")

    def require_unchanged(self, path: str) -> None:
        """Raise ContentChangedError where a verified file is another by now, or was written to since."""
        known = self._known.get(path)
        try:
            status = _identity(path)
        except OSError:
            status = None
        if known is not None and known[0] != status:
            raise ContentChangedError("it was written to or taken away while it was read")


def _identity(path: str) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class IfMatch:
    """An S3 file system whose reads succeed only while an object has the etag that was listed.

    A read of other bytes raises ContentChangedError. It has those methods of a file system that reading needs.
    """

    takes_timeout = True

    def __init__(self, filesystem: Any, etag: str) -> None:
        self._filesystem = filesystem
        self._etag = etag

    def get_file(self, path: str, to: str, *, timeout: float | None = None) -> None:
        """Copy an object to a local file; where the body is cut, the rest is asked for."""
        sync(self._filesystem.loop, self._copy, path, to, timeout=timeout)

    def cat_file(
        self, path: str, *, start: int | None = None, end: int | None = None, timeout: float | None = None
    ) -> bytes:
        """The bytes of an object, from `start` to before `end`."""
        data: Any = sync(self._filesystem.loop, self._read, path, start or 0, end, timeout=timeout)
        return data

    async def _copy(self, path: str, to: str) -> None:
        with open(to, "wb") as sink:
            while True:
                start = sink.tell()
                try:
                    body = await self._body(path, start, None)
                    try:
                        while chunk := await body.read(CHUNK_BYTES):
                            sink.write(chunk)
                    finally:
                        body.close()
                    return
                except Exception as error:
                    if sink.tell() == start or not is_transient(error):
                        raise

    async def _read(self, path: str, start: int, end: int | None) -> bytes:
        body = await self._body(path, start, end)
        try:
            return await body.read()
        finally:
            body.close()

    async def _body(self, path: str, start: int, end: int | None) -> Any:
        bucket, key, _ = self._filesystem.split_path(path)
        asked = {} if (start, end) == (0, None) else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        try:
            answer = await self._filesystem._call_s3(
                "get_object", Bucket=bucket, Key=key, IfMatch=f'"{self._etag}"', **asked, **self._filesystem.req_kw
            )
        except OSError as error:
            if error_code(error) in ("PreconditionFailed", "412"):
                raise ContentChangedError("it has other bytes than when it was listed") from None
            raise
        return answer["Body"]
