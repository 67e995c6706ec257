"""Which frame of the index a decoded picture is."""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right

from pipeline.video.index import NO_TICK, FrameIndex


class FrameNumbers:
    """Numbers pictures as they come out of the decoder, by the packet that each came in.

    Where packets have presentation times, the time of the picture is that of its packet, whatever was lost before it.
    Where they have none (`FrameIndex.by_order`), the pictures that come out take the times of the packets that went in,
    in order; every key frame sets that right again, since all that went in before it comes out before it.
    """

    def __init__(self, index: FrameIndex) -> None:
        self._index = index
        self._ticks: list[int] = index.ticks.tolist()
        self._last = -1
        self._num_fed = 0
        self._waiting: list[int] = []  # packets that are in the decoder, by order
        self._keys: list[int] = []
        # A stub in an AVI gives a picture only where another packet holds two.
        self._skips_stubs = not (index.num_pictures > 1).any()

    @property
    def begins_without_key(self) -> bool:
        """Whether the packets before the first key frame are there and the key frame before them is not."""
        keys = self._index.key_packets
        return len(keys) > 0 and bool((self._index.packet_ticks[: keys[0]] != NO_TICK).any())

    @property
    def are_sure(self) -> bool:
        """Whether a picture's number is known even where one before it, that went in, does not come out."""
        return not self._index.by_order or self._index.has_presentation_times

    def feed(self, packet: int, *, is_key: bool) -> None:
        """A packet goes into the decoder."""
        self._num_fed = packet + 1
        tick = self._tick_of(packet)
        if not self._index.by_order or tick is None:
            return
        if self._index.num_pictures[bisect_left(self._ticks, tick)] or not self._skips_stubs:
            heapq.heappush(self._waiting, packet)
        if is_key:
            self._keys.append(packet)

    def lose(self, packet: int) -> None:
        """The decoder refused a packet."""
        if packet in self._waiting:
            self._waiting.remove(packet)
            heapq.heapify(self._waiting)

    def number_of(self, packet: int | None) -> tuple[int, bool]:
        """The frame that came in `packet`; whether it comes after all frames before (else its timestamp is damaged)."""
        tick = None if packet is None else self._tick_of(packet)
        if tick is None or packet is None:
            number = min(self._last + 1, len(self._ticks) - 1)
            return self._ended(number)
        if self._index.by_order:
            tick = self._in_order(packet, tick)
        first, past = bisect_left(self._ticks, tick), bisect_right(self._ticks, tick)
        number = self._last + 1 if first <= self._last + 1 < past else first
        return self._ended(number)

    def _ended(self, number: int) -> tuple[int, bool]:
        if number <= self._last or number >= self._num_fed:  # no frame comes out before its packet went in
            return number, False
        self._last = number
        return number, True

    def _tick_of(self, packet: int) -> int | None:
        ticks = self._index.packet_ticks
        return int(ticks[packet]) if 0 <= packet < len(ticks) and ticks[packet] != NO_TICK else None

    def _in_order(self, packet: int, tick: int) -> int:
        key = next((each for each in reversed(self._keys) if each <= packet), -1)
        self._keys = [each for each in self._keys if each >= key]
        num_before = sum(each < packet for each in self._waiting)
        while self._waiting and (self._waiting[0] < key or num_before > self._index.reorder_depth):
            heapq.heappop(self._waiting)
            num_before -= 1
        return int(self._index.packet_ticks[heapq.heappop(self._waiting)]) if self._waiting else tick
