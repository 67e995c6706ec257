"""Messages of a process that is not trusted: values come back as they were, and no bytes hurt who reads them."""

import os
import socket
import struct

import msgpack
import numpy as np
import pytest

from pipeline.sandbox.messages import (
    MAX_BYTES,
    MAX_PLAIN_BYTES,
    Answer,
    Ask,
    Failed,
    Fault,
    Item,
    MessageError,
    Ready,
    Receiver,
    Result,
    Stage,
    send,
)


@pytest.fixture
def ends():
    """A way in and its reader."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield theirs.fileno(), Receiver(ours.fileno())


def framed(plain, *, rest=b"", num_bytes=None):
    return struct.pack("<II", len(plain), len(rest) if num_bytes is None else num_bytes) + plain + rest


@pytest.mark.parametrize(
    "value",
    [
        None,
        ["item", {"a": [True, -1, 2.5, 2**63], "b": {"c": "\udcff é"}}],
        {"face": b"\xff" * 100, "none": b"", "context": b"\x00" * 70},
        float("inf"),
    ],
)
def test_plain_values_come_back_as_they_were(ends, value):
    send(ends[0], value)
    send(ends[0], "the next")
    assert ends[1].receive(timeout_seconds=5) == (True, value)
    assert ends[1].receive(timeout_seconds=5) == (True, "the next")
    assert ends[1].receive(timeout_seconds=0) == (False, None)


@pytest.mark.parametrize("dtype", ["uint8", "<f4", "<i8", "bool"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (0, 3), ()])
def test_arrays_come_back_as_they_were(ends, dtype, shape):
    array = np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape), dtype)
    send(ends[0], [array, array.T, "and text"])
    _, (found, transposed, text) = ends[1].receive(timeout_seconds=5)
    for one, other in ((found, array), (transposed, array.T)):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert (one == other).all()
    assert text == "and text"


def test_what_is_no_plain_value_and_what_is_too_large_is_not_sent(ends):
    for value in ({1, 2}, object(), np.array([object()]), 2**70):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            send(ends[0], value)
    with pytest.raises(MessageError, match="is too large"):
        send(ends[0], "x" * (MAX_PLAIN_BYTES + 1))
    assert ends[1].receive(timeout_seconds=0) == (False, None)


ARRAY = msgpack.ExtType(2, msgpack.packb(["|u1", [4]]))


@pytest.mark.parametrize(
    "data",
    [
        framed(b""),
        framed(b"\xc1"),
        framed(b"\x93\x01\x02"),
        framed(b"\x91" * 5000),
        framed(b"\xc0\xc0"),
        framed(b"\xdd\xff\xff\xff\xff"),
        framed(b"\xc0", num_bytes=MAX_BYTES + 1),
        framed(b"\xc0", rest=b"belongs to nothing"),
        framed(msgpack.packb(ARRAY), rest=b"abc"),
        framed(msgpack.packb(ARRAY), rest=b"abcde"),
        framed(msgpack.packb(msgpack.ExtType(3, b"")), rest=b""),
        framed(msgpack.packb(msgpack.ExtType(1, b"\xa1x"))),
        framed(msgpack.packb(msgpack.ExtType(1, msgpack.packb(-1)))),
        framed(msgpack.packb(msgpack.ExtType(2, msgpack.packb(["|O8", [1]]))), rest=bytes(8)),
        framed(msgpack.packb(msgpack.ExtType(2, msgpack.packb(["|u1", [1] * 100]))), rest=bytes(1)),
        framed(msgpack.packb(msgpack.ExtType(2, msgpack.packb(["<u8", [2**62, 2**62]]))), rest=bytes(8)),
        framed(msgpack.packb(msgpack.ExtType(2, msgpack.packb({"a": 1}))), rest=bytes(8)),
        struct.pack("<II", MAX_PLAIN_BYTES + 1, 0),
    ],
)
def test_what_is_no_message_is_told_and_nothing_else(ends, data):
    os.write(ends[0], data)
    with pytest.raises(MessageError):
        ends[1].receive(timeout_seconds=5)


def test_random_bytes_are_no_message_or_a_plain_value():
    chance = np.random.default_rng(5)
    for _ in range(2000):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            os.write(theirs.fileno(), framed(chance.bytes(int(chance.integers(1, 40)))))
            try:
                is_whole, value = Receiver(ours.fileno()).receive(timeout_seconds=5)
            except MessageError:
                continue
            assert is_whole
            assert isinstance(
                value, type(None) | bool | int | float | str | bytes | list | dict | np.ndarray | msgpack.Timestamp
            )


def test_half_a_message_is_waited_for_without_waiting_in_it(ends):
    os.write(ends[0], framed(msgpack.packb("whole"))[:-3])
    assert ends[1].receive(timeout_seconds=0.01) == (False, None)
    os.write(ends[0], b"ole")
    assert ends[1].receive(timeout_seconds=5) == (True, "whole")


def test_a_closed_end_is_told():
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(EOFError):
        Receiver(ours.fileno()).receive(timeout_seconds=5)


NUM_MUTANTS = int(os.environ.get("FUZZ_MESSAGES", "5000"))


@pytest.mark.timeout(7200)  # of 200,000 mutants
def test_mutants_of_answers_are_answers_or_are_told():
    """`make fuzz-messages N=200000` tries more of them."""
    image = np.zeros((4, 4, 3), np.uint8)
    known = [
        Ready({"network": "none"}), Failed("no weights", True), Stage("decode"), Ask(["read", 0, 512]),
        Item({"face_jpeg": image, "box": [0, 0, 4, 4], "score": 1.5}), Result({"num_frames": 3, "detail": None}, 2**20),
        Fault("odd_file", "an odd file", 2**20),
    ]  # fmt: skip
    whole = []
    for answer in known:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            send(theirs.fileno(), answer)
            whole.append(ours.recv(2**16))
    chance, num_answers = np.random.default_rng(19), 0
    for number in range(NUM_MUTANTS):
        data = bytearray(whole[number % len(whole)])
        for at in chance.integers(0 if number % 4 == 0 else 8, len(data), chance.integers(1, 4)).tolist():
            data[at] = int(chance.integers(256))
        if number % 3 == 0:
            at = int(chance.integers(8, len(data)))
            data[at:at] = chance.bytes(int(chance.integers(1, 9)))
            data[:8] = struct.pack("<II", max(1, len(data) - 8 - 48 * (number % 2)), 48 * (number % 2))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            os.write(theirs.fileno(), data)
            try:
                answer = Receiver(ours.fileno()).receive_answer(timeout_seconds=0)
            except MessageError:
                continue
            assert answer is None or isinstance(answer, Answer)
            num_answers += answer is not None
    print(f"\n{NUM_MUTANTS} mutants, {num_answers} of them were answers")
    assert 0 < num_answers < NUM_MUTANTS
