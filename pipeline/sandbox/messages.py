"""Messages of a process that is not trusted: plain values become bytes and bytes plain values, and no code runs.

None, bool, int, float, str, bytes, lists, mappings with text as keys and numpy arrays of numbers, and of these what a
child may say (`Answer`), each a type with its checks. A pickle would let its sender run anything in its reader. A
message is 8 bytes of lengths, a part in msgpack, and the bytes and arrays, which lie behind it as they are: a small
part that is read value by value, and a large one that is not read at all.
"""

from __future__ import annotations

import math
import os
import re
import select
import struct
from typing import Annotated, Any

import msgpack
import msgspec
import numpy as np

# Read value by value, a byte may become 64 (an empty list); all else is taken as it is.
MAX_PLAIN_BYTES = 2**20


# A frame of 4096 x 4096 pixels has 48 MiB.
MAX_BYTES = 2**27


_LENGTHS = struct.Struct("<II")


_BYTES, _ARRAY = 1, 2


_NUMBERS = re.compile(r"[<|][biuf][1248]")


class MessageError(ValueError):
    """What came is no message, or a value is none that a message can hold."""


# What a child may call a stage or a reason.
Name = Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z_, ]{0,39}\Z")]


PeakBytes = Annotated[int, msgspec.Meta(ge=0, lt=2**48)]


class Ready(msgspec.Struct, tag="ready", array_like=True, forbid_unknown_fields=True):
    """The work is built. confinement: what the child gave up, by name."""

    confinement: dict[str, str]


class Failed(msgspec.Struct, tag="failed", array_like=True, forbid_unknown_fields=True):
    """The work cannot be built; is_forbidden: perhaps for want of a permission."""

    detail: str
    is_forbidden: bool


class Stage(msgspec.Struct, tag="stage", array_like=True, forbid_unknown_fields=True):
    """The task is in another stage."""

    name: Name


class Item(msgspec.Struct, tag="item", array_like=True, forbid_unknown_fields=True):
    """The task yielded a plain value."""

    value: Any


class Ask(msgspec.Struct, tag="ask", array_like=True, forbid_unknown_fields=True):
    """The task wants the bytes that its caller has for a plain value."""

    value: Any


class Result(msgspec.Struct, tag="result", array_like=True, forbid_unknown_fields=True):
    """The task returned a plain value; the most resident memory that the child has had (bytes)."""

    value: Any
    peak_bytes: PeakBytes


class Fault(msgspec.Struct, tag="error", array_like=True, forbid_unknown_fields=True):
    """The task raised; the most resident memory that the child has had (bytes)."""

    reason: Name
    detail: str
    peak_bytes: PeakBytes


Answer = Ready | Failed | Stage | Item | Ask | Result | Fault


def send(descriptor: int, value: Any) -> None:
    """Write one message to a socket or pipe. Raises MessageError for what is too large, and TypeError."""
    parts: list[Any] = []
    plain: Any = msgpack.packb(_packed(value, parts), unicode_errors="surrogatepass")
    num_bytes = sum(len(part) for part in parts)
    if len(plain) > MAX_PLAIN_BYTES or num_bytes > MAX_BYTES:
        raise MessageError(f"a message of {len(plain) + num_bytes} bytes is too large")
    left = [memoryview(part) for part in (_LENGTHS.pack(len(plain), num_bytes) + plain, *parts) if len(part)]
    while left:
        num_sent = os.writev(descriptor, left[:64])
        while left and num_sent >= len(left[0]):
            num_sent -= len(left.pop(0))
        if left:
            left[0] = left[0][num_sent:]


def _packed(value: Any, parts: list[Any]) -> Any:
    """The value for msgpack, its bytes and arrays moved to `parts`."""
    if isinstance(value, bytes):
        parts.append(value)
        return msgpack.ExtType(_BYTES, msgpack.packb(len(value)))
    if isinstance(value, np.ndarray):
        parts.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return msgpack.ExtType(_ARRAY, msgpack.packb([value.dtype.str, value.shape]))
    if isinstance(value, msgspec.Struct):
        return _packed([value.__struct_config__.tag, *msgspec.structs.astuple(value)], parts)
    if isinstance(value, dict):
        return {key: _packed(each, parts) for key, each in value.items()}
    return [_packed(each, parts) for each in value] if isinstance(value, list | tuple) else value


class Receiver:
    """Reads the messages that come from a socket or pipe, never waiting for one that stops in its middle."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self.num_last_bytes = 0
        self._begin()

    def _begin(self) -> None:
        self._num_plain = 0
        self._wanted, self._num_read = bytearray(_LENGTHS.size), 0

    def receive(self, *, timeout_seconds: float) -> tuple[bool, Any]:
        """Whether a message is whole, within the time or as long as bytes keep coming, and what it says.

        Raises EOFError where the other end is closed, ConnectionError, and MessageError for what is no message.
        """
        wait_ms = 1000 * timeout_seconds
        while self._poll.poll(wait_ms):
            wait_ms = 0
            num_read = os.readv(self._descriptor, [memoryview(self._wanted)[self._num_read :]])
            if not num_read:
                raise EOFError
            self._num_read += num_read
            if self._num_read < len(self._wanted):
                continue
            if self._num_plain:
                whole, num_plain = self._wanted, self._num_plain
                self.num_last_bytes = len(whole)
                self._begin()
                return True, _unpacked(whole, num_plain)
            self._num_plain, num_bytes = _LENGTHS.unpack(self._wanted)
            if not 0 < self._num_plain <= MAX_PLAIN_BYTES or num_bytes > MAX_BYTES:
                raise MessageError(f"it claims {self._num_plain} and {num_bytes} bytes")
            self._wanted, self._num_read = bytearray(self._num_plain + num_bytes), 0
        return False, None

    def receive_answer(self, *, timeout_seconds: float) -> Answer | None:
        """The next answer of a child, None where it is not whole yet. Raises what `receive` raises."""
        is_whole, plain = self.receive(timeout_seconds=timeout_seconds)
        try:
            return msgspec.convert(plain, Answer, builtin_types=(bytes,)) if is_whole else None
        except msgspec.ValidationError:
            raise MessageError("it is not what was asked for") from None


def _unpacked(whole: bytearray, num_plain: int) -> Any:
    at = num_plain

    def taken(code: int, data: bytes) -> Any:
        nonlocal at
        if code not in (_BYTES, _ARRAY):
            raise MessageError(f"it holds a value of type {code}")
        told = msgpack.unpackb(data)
        dtype, shape = told if code == _ARRAY else ("|u1", [told])
        if not _NUMBERS.fullmatch(dtype) or any(not isinstance(each, int) or each < 0 for each in shape):
            raise MessageError("it holds an array that is none")
        num_bytes = math.prod(shape) * int(dtype[-1])
        if num_bytes > len(whole) - at:
            raise MessageError(f"it ends before an array of {num_bytes} bytes")
        part = memoryview(whole)[at : at + num_bytes]
        at += num_bytes
        return bytes(part) if code == _BYTES else np.frombuffer(part, np.dtype(dtype)).reshape(shape)

    try:
        value = msgpack.unpackb(memoryview(whole)[:num_plain], ext_hook=taken, unicode_errors="surrogatepass")
    except MessageError:
        raise
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise MessageError(f"it is none: {type(error).__name__}") from None
    if at != len(whole):
        raise MessageError(f"{len(whole) - at} of its bytes belong to nothing")
    return value
