"""A DuckDB database for the questions about one run: bounded memory, and a file in scratch for what does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.storage.scratch import PREFIX, ScratchFolder, sweep

DEFAULT_MEMORY_BYTES = 2**30
# Python, Arrow and DuckDB's own buffers take this much beside the memory that DuckDB counts.
UNCOUNTED_BYTES = 400 * 2**20
ROWS_AT_ONCE = 2**15
DatabaseError = duckdb.Error


@cache
def named_queries() -> Mapping[str, str]:
    """The statements of queries.sql by the names above them (`-- name: x`)."""
    text = resources.files("pipeline.ledger").joinpath("queries.sql").read_text()
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@contextmanager
def interruptible() -> Iterator[None]:
    """An interrupt that DuckDB meets in a query as KeyboardInterrupt: it raises a RuntimeError in its place."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != "Query interrupted":
            raise
        raise KeyboardInterrupt from None


def _read(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    with interruptible():
        yield from batches


def batches_of(rows: Iterable[Sequence[Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows as record batches, of which only some are objects at a time."""
    rest = iter(rows)
    while some := list(islice(rest, ROWS_AT_ONCE)):
        yield pa.record_batch([list(column) for column in zip(*some, strict=True)], schema=schema)


class Database:
    """Tables and named queries. Its file is in a scratch folder that goes with the object or with its process.

    memory_bytes: about what this process may use for it in all; the rest lies in the file.
    """

    def __init__(self, *, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> None:
        sweep(f"{PREFIX}ledger-")
        self._scratch = ScratchFolder(f"{PREFIX}ledger-")
        limit = max(memory_bytes - UNCOUNTED_BYTES, 128 * 2**20)
        self._connection = duckdb.connect(
            str(self._scratch.path / "ledger.duckdb"),
            config={"memory_limit": f"{limit}B", "temp_directory": str(self._scratch.path), "threads": 2},
        )
        self._connection.execute("set enable_progress_bar = false")

    @property
    def folder(self) -> Path:
        """A scratch folder, for files that are read here; it goes with the database."""
        return self._scratch.path

    def close(self) -> None:
        """Remove the database and its file."""
        self._connection.close()
        self._scratch.close()

    def execute(self, sql: str, **values: Any) -> None:
        """Run statements of SQL; `values` are the parameters `$name` in it."""
        with interruptible():
            self._connection.execute(sql, values or None).fetchall()

    def run(self, name: str, rows: pa.Table | None = None, **values: Any) -> None:
        """Run a named query for its effect; in it `given_rows` are these rows."""
        self.value(name, rows, **values)

    def table(self, sql: str, **values: Any) -> pa.Table:
        """All rows of a query (SQL, or the name of a named query)."""
        with interruptible():
            return self._query(sql, values).to_arrow_table()

    def batches(self, sql: str, **values: Any) -> Iterator[pa.RecordBatch]:
        """The rows of a query (SQL, or the name of a named query), some at a time."""
        with interruptible():
            return _read(self._query(sql, values).to_arrow_reader(ROWS_AT_ONCE))

    def _query(self, sql: str, values: Mapping[str, Any]) -> Any:
        # A cursor of its own: another question may be asked before all its rows are taken.
        return self._connection.cursor().sql(named_queries().get(sql, sql), params=dict(values) or None)

    def rows(self, sql: str, **values: Any) -> Iterator[dict[str, Any]]:
        """The rows of a query as mappings, of which only some are objects at a time."""
        for batch in self.batches(sql, **values):
            yield from batch.to_pylist()

    def value(self, sql: str, rows: pa.Table | None = None, **values: Any) -> Any:
        """The first value of the first row of a query; None where there is none. In it `given_rows` are these rows."""
        if rows is not None:
            self._connection.register("given_rows", rows)
        try:
            with interruptible():
                found = self._connection.execute(named_queries().get(sql, sql), values or None).fetchall()
        finally:
            if rows is not None:
                self._connection.unregister("given_rows")
        return found[0][0] if found else None

    def create(self, name: str, schema: pa.Schema) -> None:
        """Create an empty table (in place of one of that name) with the columns of a schema."""
        self._connection.register("shape", schema.empty_table())
        self.execute(f'create or replace table "{name}" as select * from shape')
        self._connection.unregister("shape")

    def columns(self, name: str) -> dict[str, str]:
        """The columns of a table and their types."""
        return dict(self._connection.execute(f'select column_name, column_type from (describe "{name}")').fetchall())

    def insert(self, name: str, rows: pa.Table | pa.RecordBatchReader | Iterable[pa.RecordBatch]) -> None:
        """Append rows to a table, by the names of their columns."""
        for each in [rows] if isinstance(rows, pa.Table | pa.RecordBatchReader) else rows:
            self._connection.register("given_rows", pa.table(each) if isinstance(each, pa.RecordBatch) else each)
            self.execute(f'insert into "{name}" by name select * from given_rows')
            self._connection.unregister("given_rows")
