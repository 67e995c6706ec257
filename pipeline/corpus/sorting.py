"""Rows in any number in, the same rows by path out: in parts that fit into memory, then merged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import pyarrow as pa

from pipeline.corpus.types import ROWS_AT_ONCE
from pipeline.records.arrow import pc
from pipeline.storage.spool import BatchSpool

# So many rows are sorted in memory at a time.
BATCHES_PER_RUN = 8


def sorted_tables(
    rows: Iterable[pa.RecordBatch], schema: pa.Schema, *, sort: Callable[[pa.Table], pa.Table]
) -> Iterator[pa.Table]:
    """The rows of the schema in the order of `sort`, some at a time; its first key is the column path."""
    streams = [iter(run) for run in _sorted_runs(rows, sort)]
    held = [schema.empty_table() for _ in streams]
    ended = [False for _ in streams]
    while not all(ended):
        bounds = [table["path"][-1].as_py() if table.num_rows else "" for table in held]
        bound = min(path for path, has_ended in zip(bounds, ended, strict=True) if not has_ended)
        for number, stream in enumerate(streams):
            if ended[number] or bounds[number] > bound:
                continue
            if (batch := next(stream, None)) is None:
                ended[number] = True
            else:
                held[number] = pa.concat_tables([held[number], pa.Table.from_batches([batch])])
        # Those before the first path at which a run goes on.
        going_on = [table["path"][-1].as_py() for table, has_ended in zip(held, ended, strict=True) if not has_ended]
        is_before = [pc.less(table["path"], min(going_on)) if going_on else None for table in held]
        ready = [t if mask is None else t.filter(mask) for t, mask in zip(held, is_before, strict=True)]
        held = [t.slice(r.num_rows) for t, r in zip(held, ready, strict=True)]
        if sum(table.num_rows for table in ready):
            yield sort(pa.concat_tables(ready))


def _sorted_runs(rows: Iterable[pa.RecordBatch], sort: Callable[[pa.Table], pa.Table]) -> Sequence[BatchSpool]:
    """The rows in parts, each of which is sorted and fits into memory."""
    runs, batches = [], iter(rows)
    while some := list(islice(batches, BATCHES_PER_RUN)):
        table, run = sort(pa.Table.from_batches(some)).combine_chunks(), BatchSpool(memory_bytes=0)
        for batch in table.to_batches(max_chunksize=max(1, ROWS_AT_ONCE // 8)):
            run.append(batch)
        runs.append(run)
    return runs
