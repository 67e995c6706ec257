"""A folder at any fsspec URL in which every object is whole or absent, and whose faults are met in one place.

On a local disk: a temporary name, fsync, rename or link, fsync of the folder. On an object store: one PUT of the whole
body, because an exception inside `with fs.open(...)` still publishes what was written so far. What a store may have in
passing (5xx, throttling, a cut connection, a short answer) is tried again with a growing, random wait; what lasts is
one StorageError, in one line and without secrets.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import fsspec
import tenacity
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

TEMPORARY = ".writing-"
# 7 waits of at most 0.5, 1, 2, 4, 8, 16 and 20 s, half of that on average: an outage of half a minute is outlived.
TRIES = 8
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 20.0
# One request may take this long; without it a server that sends a byte now and then would be waited for for ever.
REQUEST_SECONDS = 60.0
SLOWEST_BYTES_PER_SECOND = 2**16

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_ABSENT_OR_THERE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_LASTING = (*_DISK, errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENAMETOOLONG, errno.EMSGSIZE)
_DAMAGED_IN_TRANSIT = ("BadDigest", "IncompleteBody")  # The body of a PUT; s3fs gives them EINVAL.
_BAD_CREDENTIALS = (
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
)

_T = TypeVar("_T")


class StorageError(OSError):
    """A store or disk did not do what was asked, after every try: the message names the object, the fault and the
    cure. `errno` is EACCES where it refuses this object."""


class StoreLostError(StorageError):
    """The same, for a fault that every other object would meet too: rejected credentials, a missing bucket (`errno` is
    ENOENT), a full or read-only disk."""


class _TruncatedError(OSError):
    pass


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

        def replace() -> None:
            os.replace(self._write_temporary(name, data), self.path(name))
            _sync_folder(Path(self.path(name)).parent)

        self._do(name, "written", "pipe_file", data, local=replace, size_bytes=len(data))

    def put_stream(self, name: str, parts: Iterable[bytes]) -> None:
        """Write `parts`, one after the other, as one object, at once. On their way they lie on a local disk, not in
        memory."""
        if self.is_local:

            def replace() -> None:
                os.replace(self._write_temporary(name, parts), self.path(name))
                _sync_folder(Path(self.path(name)).parent)

            self._do(name, "written", "", local=replace)
            return
        with tempfile.NamedTemporaryFile(prefix="emotion-pipeline-") as spool:
            spool.writelines(parts)
            spool.flush()
            what = f"{self.url}/{name} cannot be written"
            call(
                self.filesystem,
                "put_file",
                spool.name,
                self.path(name),
                what=what,
                size_bytes=spool.tell(),
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
            return _checked(bytes(data), size_bytes)

        return self._do(
            name,
            "read",
            "cat_file",
            local=lambda: whole(Path(self.path(name)).read_bytes()),
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
        if self.is_local:
            found = self._do(folder, "listed", "", local=lambda: _local_sizes(self.path(folder)))
        else:
            what = f"{self.url}/{folder} cannot be listed"
            listing = listed(self.filesystem, self.path(folder), what=what, num_tries=self._num_tries)
            found = ((path, int(info["size"] or 0)) for path, info in listing)
        start = len(self.path().rstrip("/")) + 1
        names = {path[start:]: num_bytes for path, num_bytes in found}
        return {name: names[name] for name in sorted(names) if TEMPORARY not in name}

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
            except _ABSENT_OR_THERE:
                raise
            except OSError as error:
                _raise_told(error, what, num_tries=1)
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


def absolute_url(url: str) -> str:
    """The URL as it reads from any folder: a relative local path becomes absolute. Ray's workers sit elsewhere."""
    return url.rstrip("/") if "://" in url else os.path.abspath(os.path.expanduser(url))


def open_filesystem(url: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The file system of a URL and the path in it. Raises ImportError, TypeError or ValueError where there is none.

    Not fsspec's `url_to_fs`: it takes "::" inside a name for a chain of stores.
    """
    if "://" not in url:
        return fsspec.filesystem("file"), url
    protocol = url.partition("://")[0]
    kind: Any = fsspec.get_filesystem_class(protocol)
    if protocol in ("s3", "s3a"):
        # botocore's 4 retries inside the 5 of s3fs inside ours would be 160 requests for one object. Those of s3fs
        # stay: they are over in 2 s, and go on with a body where it was cut. Concurrency within one object would ask
        # for its size first (HEAD), whose answer cannot say why it is refused.
        own = {"config_kwargs": {"retries": {"total_max_attempts": 1}}, "max_concurrency": 1}
        options = {**own, **(options or {})}
    return kind(**{**kind._get_kwargs_from_urls(url), **(options or {})}), kind._strip_protocol(url)


def read_url(url: str) -> bytes:
    """All bytes of one file at any fsspec URL. Raises FileNotFoundError, and StorageError for a fault that lasts."""
    filesystem, path = open_filesystem(absolute_url(url))
    return bytes(call(filesystem, "cat_file", path, what=f"{url} cannot be read"))


def fetch(url: str, to: Path, *, size_bytes: int | None) -> None:
    """Copy a remote file to the local path `to`, `size_bytes` of it where that is known.

    One GET: range reads made 10 to 300 requests a clip. Raises FileNotFoundError, and StorageError for a fault that
    lasts.
    """
    filesystem, path = open_filesystem(url)

    def check(_: Any) -> None:
        if size_bytes is not None and (found := to.stat().st_size) != size_bytes:
            raise _TruncatedError(f"{found} bytes came instead of {size_bytes}")

    call(
        filesystem,
        "get_file",
        path,
        str(to),
        what=f"{url} cannot be copied to {to.parent}",
        then=check,
        size_bytes=size_bytes or 2**33,
    )


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
    if not hasattr(filesystem, "call_s3"):
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

    Reading raises FileNotFoundError, and StorageError for a fault that lasts.
    """

    def __init__(self, filesystem: Any, path: str, *, what: str, size_bytes: int, block_bytes: int) -> None:
        self._filesystem = filesystem
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
            then=lambda data: _checked(bytes(data), end - self._at),
            size_bytes=end - self._at,
        )

    def close(self) -> None:
        """Nothing is held open between ranges."""

    def __enter__(self) -> RangedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def call(
    filesystem: Any,
    method: str,
    *arguments: Any,
    what: str,
    then: Callable[[Any], _T] = lambda found: found,
    size_bytes: int = 0,
    num_tries: int = TRIES,
    **options: Any,
) -> _T:
    """`then` of what a remote file system's method gives; a transient fault of either is tried again.

    what: begins the message, as in "s3://b/x cannot be read". size_bytes: about what will be moved, for the time
    limit of one try. Raises FileNotFoundError and its like as they are, and StorageError for a fault that lasts.
    """
    if isinstance(filesystem, AsyncFileSystem):
        options["timeout"] = REQUEST_SECONDS + size_bytes / SLOWEST_BYTES_PER_SECOND
    tries = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        stop=tenacity.stop_after_attempt(num_tries),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS),
        reraise=True,
    )
    try:
        return tries(lambda: then(getattr(filesystem, method)(*arguments, **options)))
    except store_errors() as error:
        if isinstance(error, _ABSENT_OR_THERE) and _code(error) != "NoSuchBucket":
            raise
        _raise_told(error, what, num_tries=num_tries)


def store_errors() -> tuple[type[Exception], ...]:
    """What stores raise besides OSError. Asked once an error is there: its module is loaded then."""
    names = (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
        ("google.auth.exceptions", "GoogleAuthError"),
        ("gcsfs.retry", "HttpError"),
        ("azure.core.exceptions", "AzureError"),
    )
    return (OSError, *_loaded(names))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    status = getattr(error, "status", None)  # of aiohttp's answers
    if isinstance(status, int) and status:
        return status >= 500 or status in (408, 425, 429)
    code = _code(error)
    if code in _DAMAGED_IN_TRANSIT:
        return True
    if code in _BAD_CREDENTIALS or isinstance(error, (*_ABSENT_OR_THERE, PermissionError)):
        return False
    if isinstance(error, OSError):
        return error.errno not in _LASTING
    passing = (
        ("botocore.exceptions", "HTTPClientError"),
        ("botocore.exceptions", "ConnectionError"),
        ("botocore.exceptions", "IncompleteReadError"),
        ("botocore.exceptions", "FlexibleChecksumError"),
        ("botocore.parsers", "ResponseParserError"),
        ("aiohttp", "ClientPayloadError"),
        ("aiohttp", "ServerConnectionError"),
    )
    return isinstance(error, _loaded(passing))


_SECRET_NAMES = (
    r"x-(?:amz|goog)-(?:signature|credential|security-token)|sig|signature|[\w-]*token|password|passwd|"
    r"[\w-]*secret[\w-]*|aws_?access_?key_?id|api_?key"
)


def redacted(text: str) -> str:
    """Text for people and files: no passwords, keys or tokens, and no query of a web address, which may be signed."""
    text = re.sub(r"(://)[^/\s'\"]*:[^/\s'\"]*@", r"\1…@", text)
    text = re.sub(r"(https?://)[^/@\s'\"…]+@", r"\1…@", text)
    text = re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1?…", text)
    text = re.sub(r"(%3A%2F%2F)[^\s&'\"]*%3A[^\s&'\"]*%40", r"\1…%40", text)  # in the address of an archive's member
    text = re.sub(r"(https?%3A%2F%2F[^\s&'\"]*?)%3F[^\s&'\"]*", r"\1%3F…", text)
    text = re.sub(rf"(?i)(?<![\w-])({_SECRET_NAMES})(=|['\"]\s*[:=]\s*['\"])[^\s&'\",;)…]+", r"\1\2…", text)
    return re.sub(r"\b(AKIA|ASIA)[A-Z0-9]{12,}", r"\1…", text)


def redacted_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config as it may be written down: each text without what `redacted` hides."""
    return {name: redacted(value) if isinstance(value, str) else value for name, value in values.items()}


def without_secrets(url: str) -> str:
    """The URL without its password and, on the web, without its query: what a plan may keep."""
    if "://" not in url:
        return url
    url = re.sub(r"(://)[^/]*:[^/]*@", r"\1", url)
    url = re.sub(r"(%3A%2F%2F)[^&]*%3A[^&]*%40", r"\1", url)  # An archive's member carries its archive's URL.
    url = re.sub(r"(https?%3A%2F%2F[^&]*?)%3F[^&]*", r"\1", url)
    return url.partition("?")[0] if url.startswith(("http://", "https://")) else url


def _loaded(names: tuple[tuple[str, str], ...]) -> tuple[type[Exception], ...]:
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)


def _code(error: BaseException) -> str:
    """The error code of an S3 answer, as far as s3fs keeps it; else the empty string."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _raise_told(error: BaseException, what: str, *, num_tries: int) -> NoReturn:
    """Raise a fault that lasts as one line: what cannot be done, why, and the cure."""
    code = _code(error)
    number = errno.ENOENT if code == "NoSuchBucket" else getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if code and code not in reason and not code.isdigit():
        reason = f"{reason} ({code})"
    is_lost = True
    if code in _BAD_CREDENTIALS or "Token" in type(error).__name__:
        cure = "renew the credentials"
    elif "redential" in type(error).__name__:
        cure = "check the credentials"
    elif code == "NoSuchBucket":
        cure = "create the bucket, or correct its name"
    elif number in (errno.ENOSPC, errno.EDQUOT):
        cure = "free space, or choose another place"
    elif number == errno.EFBIG:
        cure = "raise the limit of the size of files (ulimit -f)"
    elif number == errno.EROFS:
        cure = "make it writable, or choose another place"
    elif isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403):
        cure, is_lost, number = "check the permissions", False, errno.EACCES
    else:
        tried = f"tried {num_tries} times; " if num_tries > 1 and is_transient(error) else ""
        cure, is_lost = f"{tried}check the address, the network and the store", False
    line = " ".join(redacted(f"{what}: {reason}; {cure}").split())
    told = (StoreLostError if is_lost else StorageError)(line)
    told.errno = number
    # Not chained: the store's own traceback may hold credentials or signed URLs.
    raise told from None


def _checked(data: bytes, size_bytes: int | None) -> bytes:
    if size_bytes is not None and len(data) != size_bytes:
        raise _TruncatedError(f"{len(data)} bytes came instead of {size_bytes}")
    return data


def _local_sizes(folder: str) -> list[tuple[str, int]]:
    """Every file below a folder with its size in bytes. A folder that cannot be listed is an error: fsspec's `find`
    leaves it out, and what is in it would then count as not there."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    found = []
    for parent, _, names in os.walk(folder, onerror=fail):
        for path in (os.path.join(parent, name) for name in names):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                found.append((path, os.stat(path).st_size))
    return found


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
