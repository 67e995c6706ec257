"""Small operations on Arrow columns and tables that several modules need."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.json

pc: Any = pyarrow.compute  # Its functions are made when it is imported, where no type checker sees them.


def combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def is_among(column: pa.ChunkedArray | pa.Array, values: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Whether each value of `column` is one of `values`."""
    return pc.is_in(column, value_set=combined(values))


def only_rows(table: pa.Table, mask: pa.ChunkedArray | pa.Array) -> pa.Table:
    """The rows where `mask` is true: the table itself, and no copy of it, where all are."""
    return table if pc.all(mask, skip_nulls=False).as_py() else table.filter(mask)


def runs_of(column: pa.ChunkedArray) -> list[range]:
    """The ranges of rows of equal neighbours."""
    ends = pc.run_end_encode(combined(column)).run_ends.to_pylist() if len(column) else []
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
