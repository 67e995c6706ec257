"""A folder at any fsspec URL in which every object is whole or absent, and whose faults are met in one place.

On a local disk: a temporary name, fsync, rename or link, fsync of the folder. On an object store: one PUT of the whole
body, because an exception inside `with fs.open(...)` still publishes what was written so far. What a store may have in
passing (5xx, throttling, a cut connection, a short answer) is tried again with a growing, random wait; what lasts is
one StorageError, in one line and without secrets.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import tenacity
from fsspec.asyn import AsyncFileSystem

from pipeline.storage.redaction import redacted

# 7 waits of at most 0.5, 1, 2, 4, 8, 16 and 20 s, half of that on average: an outage of half a minute is outlived.
TRIES = 8


FIRST_WAIT_SECONDS = 0.5


LONGEST_WAIT_SECONDS = 20.0


# One request may take this long; without it a server that sends a byte now and then would be waited for for ever.
REQUEST_SECONDS = 60.0


SLOWEST_BYTES_PER_SECOND = 2**16


class ContentChangedError(OSError):
    """A file has other bytes than when it was listed; the next listing has them as an input of their own."""


class FileGrewError(ContentChangedError):
    """A file begins with the bytes that were listed and goes on: it is still being written."""


# What is told as it is: it says something about one object, and no other try would give another answer.
ABSENT_OR_THERE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
TOLD_AS_IT_IS = (*ABSENT_OR_THERE, ContentChangedError)


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


class TruncatedError(OSError):
    pass


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
    limit of one try. Raises FileNotFoundError, ContentChangedError and their like as they are, and StorageError for a
    fault that lasts.
    """
    if isinstance(filesystem, AsyncFileSystem) or getattr(filesystem, "takes_timeout", False):
        options["timeout"] = REQUEST_SECONDS + size_bytes / SLOWEST_BYTES_PER_SECOND
    tries = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        stop=tenacity.stop_after_attempt(num_tries),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS),
        reraise=True,
    )
    try:
        return tries(lambda: then(_asked(filesystem, method, *arguments, **options)))
    except store_errors() as error:
        if isinstance(error, TOLD_AS_IT_IS) and error_code(error) != "NoSuchBucket":
            raise
        raise_storage_error(error, what, num_tries=num_tries)


def _asked(filesystem: Any, method: str, *arguments: Any, **options: Any) -> Any:
    try:
        return getattr(filesystem, method)(*arguments, **options)
    except FileNotFoundError as error:  # which fsspec makes of all that a web server's `info` raises
        if getattr(error.__cause__, "errno", None) == errno.EACCES and error.__cause__ is not None:
            raise error.__cause__ from None
        raise


def store_errors() -> tuple[type[Exception], ...]:
    """What stores raise besides OSError. Asked once an error is there: its module is loaded then."""
    names = (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
        ("google.auth.exceptions", "GoogleAuthError"),
        ("gcsfs.retry", "HttpError"),
        ("azure.core.exceptions", "AzureError"),
        ("huggingface_hub.errors", "HfUriError"),
        ("httpx", "HTTPError"),
        ("httpx2", "HTTPError"),
    )
    return (OSError, *_loaded(names))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    status = getattr(error, "status", None)  # of aiohttp's answers
    if isinstance(status, int) and status:
        return status >= 500 or status in (408, 425, 429)
    code = error_code(error)
    if code in _DAMAGED_IN_TRANSIT:
        return True
    if code in _BAD_CREDENTIALS or isinstance(error, (*TOLD_AS_IT_IS, PermissionError)):
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


def _loaded(names: tuple[tuple[str, str], ...]) -> tuple[type[Exception], ...]:
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)


def error_code(error: BaseException) -> str:
    """The error code of an S3 answer, as far as s3fs keeps it; else the empty string."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def raise_storage_error(error: BaseException, what: str, *, num_tries: int) -> NoReturn:
    """Raise a fault that lasts as one line: what cannot be done, why, and the cure."""
    code = error_code(error)
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
    elif isinstance(error, IsADirectoryError):
        reason = reason.replace("Is a directory", "a folder lies there")
        cure, is_lost = "move it away", False
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


def checked(data: bytes, size_bytes: int | None) -> bytes:
    """The data. Raises TruncatedError where it is not of the size that was told (bytes; None: any)."""
    if size_bytes is not None and len(data) != size_bytes:
        raise TruncatedError(f"{len(data)} bytes came instead of {size_bytes}")
    return data
