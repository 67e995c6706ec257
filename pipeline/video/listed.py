"""When the pictures of an AVI are shown, from the index that the file carries: for players, which cannot wait until
every packet of a film was read."""

from __future__ import annotations

from itertools import islice
from typing import Any, BinaryIO

import numpy as np

from pipeline.video.container import packets_of
from pipeline.video.fields import FieldPairs
from pipeline.video.frames import MAX_PACKETS, MAX_PIXELS
from pipeline.video.index import identity_of, index_of, times_in_order

# Of so many packets at its beginning is seen whether FFmpeg puts the pictures in order.
NUM_SEEN = 64
_kept: list[tuple[tuple[Any, ...], np.ndarray | None]] = []


def times_of_pictures(file: BinaryIO, container: Any, stream: Any) -> np.ndarray | None:
    """The times of an AVI's pictures in seconds (N,), in the order in which they come out of the decoder.

    None where FFmpeg tells each its own. The container stands somewhere else afterwards. Raises VideoError.
    """
    key = (*identity_of(file), stream.index)
    if not _kept or _kept[0][0] != key:
        _kept[:] = [(key, _read(file, container, stream))]
    return _kept[0][1]


def _read(file: BinaryIO, container: Any, stream: Any) -> np.ndarray | None:
    entries = [each.timestamp for each in stream.index_entries if each.size]  # An empty one is a dropped frame.
    fields = FieldPairs(stream.codec_context.codec.canonical_name, stream.codec_context.extradata)
    seen = list(islice(packets_of(container, stream), NUM_SEEN))
    has_fields = any(fields.is_second_field(memoryview(packet)) for packet in seen)
    if len(entries) < len(seen) or has_fields or not seen:
        return _of_all_packets(file)
    presented, decoded = ([getattr(packet, name) for packet in seen] for name in ("pts", "dts"))
    first = times_in_order(presented, decoded)
    if first is None:
        return None
    ticks = np.array(entries, dtype=np.int64)
    ticks[: len(first)] = first
    return ticks * float(stream.time_base)


def _of_all_packets(file: BinaryIO) -> np.ndarray | None:
    """Of a file that was cut off before its index, or whose packets hold half a picture."""
    place = file.tell()
    index = index_of(file, max_pixels=MAX_PIXELS, max_packets=MAX_PACKETS)
    file.seek(place)
    return index.seconds if index.by_order else None
