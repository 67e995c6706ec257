"""Record batches in any number: in memory while they are few, else in a file of a scratch folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pyarrow as pa

from pipeline.storage.scratch import PREFIX, ScratchFolder, sweep

MEMORY_BYTES = 32 * 2**20
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class BatchSpool:
    """Record batches in the order in which they were appended; their columns may differ in type. The file goes with
    the object."""

    def __init__(self, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self._memory_bytes = memory_bytes
        self._held: list[pa.RecordBatch] = []
        self._num_held_bytes = 0
        self._folder: ScratchFolder | None = None
        self._ends: list[int] = []
        self.num_rows = 0

    def append(self, batch: pa.RecordBatch) -> None:
        self.num_rows += batch.num_rows
        self._held.append(batch)
        self._num_held_bytes += batch.nbytes
        if self._num_held_bytes > self._memory_bytes:
            self._spill()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        if self._folder is not None:
            with open(self._folder.path / "batches", "rb") as file:
                start = 0
                for end in self._ends:
                    yield pa.ipc.open_stream(file.read(end - start)).read_next_batch()
                    start = end
        yield from self._held

    def __eq__(self, other: object) -> bool:
        """Whether another has the same rows in the same order."""
        if not isinstance(other, BatchSpool) or self.num_rows != other.num_rows:
            return False
        return self.num_rows == 0 or pa.Table.from_batches(self).equals(pa.Table.from_batches(other))

    __hash__ = None  # type: ignore[assignment] - it changes

    def _spill(self) -> None:
        if self._folder is None:
            sweep(f"{PREFIX}spool-")
            self._folder = ScratchFolder(f"{PREFIX}spool-")
        with open(self._folder.path / "batches", "ab") as file:
            for batch in self._held:
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, batch.schema, options=_OPTIONS) as writer:
                    writer.write_batch(batch)
                file.write(sink.getvalue())
                self._ends.append(file.seek(0, os.SEEK_END))
        self._held, self._num_held_bytes = [], 0


def spooled(table: pa.Table) -> BatchSpool:
    """The batches of a table."""
    spool = BatchSpool()
    for batch in table.to_batches():
        spool.append(batch)
    return spool
