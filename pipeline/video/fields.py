"""Tells the two fields of one picture, coded as packets of their own, from two pictures.

Field-coded H.264 (AVCHD camcorders, DVB) and MPEG-2 may store each picture as two fields; a decoder gives one frame for
both. H.264: ISO 14496-10, 7.3.2.1 (sequence parameters), 7.3.2.2 (picture parameters), 7.3.3 (slice header). MPEG-2:
ISO 13818-2, 6.2.3.1 (picture coding extension).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_WITH_CHROMA_FORMAT = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
_HEADER_BYTES = 64  # of a slice, more than its first fields take
_BOTH = 3


@dataclass(frozen=True)
class _Sequence:
    may_have_fields: bool
    has_colour_planes: bool
    frame_num_bits: int


class _Bits:
    """Reads the bits of a unit; past its end they are 0."""

    def __init__(self, data: bytes) -> None:
        data = re.sub(b"\x00\x00\x03", b"\x00\x00", data)  # emulation prevention
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    def take(self, count: int) -> int:
        """The next `count` bits as a number."""
        self._left -= count
        value = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return value & ((1 << count) - 1)

    def golomb(self) -> int:
        """The next exponential Golomb code, unsigned."""
        zeros = 0
        while self._left > 0 and zeros < 32 and not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


class FieldPairs:
    """Looks at every packet of a stream in order; knows which are the second field of the picture before."""

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self._codec = codec
        self._sequences: dict[int, _Sequence] = {}
        self._sequence_of_picture: dict[int, int] = {}
        self._waiting: tuple[int, int] | None = None  # parity (1 top, 2 bottom) and frame_num of a first field
        extradata = extradata or b""
        self._length_bytes = 0  # of the length before each unit; 0 where start codes part them
        if codec == "h264" and extradata[:1] == b"\x01":
            self._length_bytes = (extradata[4] & 3) + 1 if len(extradata) > 4 else 4
            for unit in _configured_units(extradata):
                self._note_parameters(unit)
        elif codec == "h264":
            for unit in _units_between_start_codes(extradata):
                self._note_parameters(unit)

    def is_second_field(self, data: memoryview) -> bool:
        """Whether this packet ends the picture that the packet before it began."""
        if self._codec == "h264":
            found = self._h264_field(data)
        elif self._codec == "mpeg2video":
            found = _mpeg2_field(bytes(data[: 2**16]))
        else:
            return False
        parity, number = found or (0, 0)
        if self._waiting is not None and parity in (1, 2) and self._waiting == (_BOTH - parity, number):
            self._waiting = None
            return True
        self._waiting = found if parity in (1, 2) else None
        return False

    def _h264_field(self, data: memoryview) -> tuple[int, int] | None:
        """The parity of the slices in a packet (3: both) and their frame_num; None without slices."""
        split = _units_after_lengths(data, self._length_bytes) if self._length_bytes else None
        parity, number = 0, None
        for unit in split or _units_between_start_codes(bytes(data)):
            kind = unit[0] & 31 if unit else 0
            if kind in (7, 8):
                self._note_parameters(bytes(unit[:1024]))
            elif kind in (1, 2, 5):
                if not any(each.may_have_fields for each in self._sequences.values()):
                    return None
                of_slice, number = self._slice_field(bytes(unit[1:_HEADER_BYTES]))
                parity |= of_slice
        return None if number is None else (parity, number)

    def _slice_field(self, header: bytes) -> tuple[int, int]:
        bits = _Bits(header)
        bits.golomb()  # first_mb_in_slice
        bits.golomb()  # slice_type
        sequence = self._sequences.get(self._sequence_of_picture.get(bits.golomb(), -1))
        if sequence is None:
            return _BOTH, 0
        if sequence.has_colour_planes:
            bits.take(2)
        number = bits.take(sequence.frame_num_bits)
        if not sequence.may_have_fields or not bits.take(1):
            return _BOTH, number
        return 1 + bits.take(1), number

    def _note_parameters(self, unit: bytes) -> None:
        if unit and unit[0] & 31 == 8:
            bits = _Bits(unit[1:32])
            picture = bits.golomb()
            self._sequence_of_picture[picture] = bits.golomb()
        elif unit and unit[0] & 31 == 7:
            number, sequence = _sequence_of(unit[1:])
            self._sequences[number] = sequence


def _sequence_of(data: bytes) -> tuple[int, _Sequence]:
    profile, bits = data[0] if data else 0, _Bits(data[3:])
    number, has_colour_planes = bits.golomb(), False
    if profile in _WITH_CHROMA_FORMAT:
        chroma = bits.golomb()
        has_colour_planes = chroma == 3 and bool(bits.take(1))
        bits.golomb()  # bit depths
        bits.golomb()
        bits.take(1)
        if bits.take(1):
            for matrix in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    _skip_scaling_list(bits, 16 if matrix < 6 else 64)
    frame_num_bits = 4 + min(bits.golomb(), 12)
    order = bits.golomb()  # pic_order_cnt_type
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.take(1)
        bits.golomb()
        bits.golomb()
        for _ in range(min(bits.golomb(), 255)):
            bits.golomb()
    bits.golomb()  # max_num_ref_frames
    bits.take(1)
    bits.golomb()  # width and height in macroblocks
    bits.golomb()
    may_have_fields = not bits.take(1)  # frame_mbs_only_flag
    return number, _Sequence(may_have_fields, has_colour_planes, frame_num_bits)


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.golomb()
            following = (last + ((code + 1) // 2 if code % 2 else -(code // 2))) % 256
        last = following or last


def _configured_units(extradata: bytes) -> Iterator[bytes]:
    """The parameter sets of an avcC header (ISO 14496-15, 5.3.3.1)."""
    at = 5
    for mask in (31, 255):
        count, at = (extradata[at] & mask if at < len(extradata) else 0), at + 1
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2])
            yield extradata[at + 2 : at + 2 + size]
            at += 2 + size


def _units_after_lengths(data: memoryview, length_bytes: int) -> list[memoryview] | None:
    units, at = [], 0
    while at + length_bytes < len(data):
        size = int.from_bytes(data[at : at + length_bytes])
        units.append(data[at + length_bytes : at + length_bytes + size])
        at += length_bytes + size
    return units if at == len(data) else None


def _units_between_start_codes(data: bytes) -> list[bytes]:
    return data.split(b"\x00\x00\x01")[1:]


def _mpeg2_field(data: bytes) -> tuple[int, int] | None:
    parity = 0
    for part in data.split(b"\x00\x00\x01\xb5")[1:]:
        if len(part) > 2 and part[0] >> 4 == 8:
            parity |= part[2] & 3  # picture_structure
    return (parity, 0) if parity else None
