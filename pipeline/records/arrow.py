"""Small operations on Arrow columns and tables that several modules need."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.json

pc: Any = pyarrow.compute  # Its functions are made when it is imported, where no type checker sees them.


def combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column of chunks as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
