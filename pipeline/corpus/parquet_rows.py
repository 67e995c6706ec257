"""The rows of a Parquet manifest, read in the sandbox: a few hundred bytes of it can stand for gigabytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from decimal import Decimal
from typing import Any

from pipeline.corpus.types import CorpusError
from pipeline.sandbox.limits import SandboxError, SandboxLimits, SandboxStartError
from pipeline.sandbox.supervisor import Sandbox

LIMITS = SandboxLimits(timeout_seconds=60.0, memory_bytes=2**30)
ROWS_AT_ONCE = 256
# A url has 4 KiB at most, and a cell of a column that is read is a url, a word or a number.
MAX_CELL_LETTERS = 2**14
# A row of a real manifest takes a byte at least; beyond these many, that is asked for.
FREE_ROWS = 1_000_000


class CellError(Exception):
    """A cell that is too long, or is no text, number or truth."""

    reason = "bad_cell"


def parquet_rows(content: bytes, columns: Sequence[str] | None, *, shown: str) -> Iterator[list[Any]]:
    """The names of the columns of a Parquet file, or its rows.

    Args:
        content: of the file.
        columns: to read, by their names in the file; None: one list, the names of all.
        shown: names the file in errors.

    Raises:
        CorpusError: where it is no Parquet, or takes more memory or time than a manifest may.
    """
    task = {"content": content, "columns": None if columns is None else list(columns)}
    with Sandbox(build_reader, {}, limits=LIMITS, preload=("pyarrow.parquet",), readable=[]) as sandbox:
        try:
            with closing(sandbox.stream(task)) as items:
                for item in items:
                    yield from json.loads(item)
        except SandboxError as error:
            cure = "write it again as Parquet or CSV with a header"
            if error.reason == "memory":
                cure = f"its rows take more than {LIMITS.memory_bytes / 2**20:.0f} MiB; give it as CSV"
            raise CorpusError(
                f"manifest {shown} is not a readable .parquet file ({error.detail[:160]}); {cure}"
            ) from None
        except (SandboxStartError, ValueError, TypeError) as error:
            raise CorpusError(f"manifest {shown} cannot be read in the sandbox ({str(error)[:160]})") from None


def build_reader() -> Callable[[Any, Callable[[str], None]], Generator[Any, None, None]]:
    """The work of the child: lists as JSON, some rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def read(task: Any, stage: Callable[[str], None]) -> Generator[Any, None, None]:
        stage("parquet")
        try:
            file = pq.ParquetFile(pa.BufferReader(task["content"]))
            if task["columns"] is None:
                yield json.dumps([file.schema_arrow.names]).encode()
                return
            number, max_rows = 0, FREE_ROWS + 8 * len(task["content"])
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=task["columns"]):
                cells = (batch[name].to_pylist() for name in task["columns"])
                rows = [
                    [float(cell) if isinstance(cell, Decimal) else cell for cell in row]
                    for row in zip(*cells, strict=True)
                ]
                for row in rows:
                    number += 1
                    if number > max_rows:
                        raise CellError(f"it has more than {max_rows} rows in {len(task['content'])} bytes")
                    if not all(map(_is_plain, row)):
                        raise CellError(f"row {number} has a cell that is no text, number or truth, or a very long one")
                yield json.dumps(rows).encode()
        except pa.ArrowMemoryError as error:
            raise MemoryError(str(error)[:100]) from None
        except (pa.ArrowException, OSError) as error:
            raise CellError(f"it is damaged, or no Parquet: {type(error).__name__}") from None

    return read


def _is_plain(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, bool | int | float)
        or (isinstance(value, str) and len(value) <= MAX_CELL_LETTERS)
    )
