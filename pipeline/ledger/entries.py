"""Entries of committed units as bytes: one JSON object a unit, and copies of many of them in one Arrow object."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.ledger.files import arrow_bytes
from pipeline.records.evolution import with_columns
from pipeline.records.outcomes import OUTCOME_SCHEMA, Outcome, State

SizedEntry = tuple[Mapping[str, Any], int]  # An entry, and the bytes of its object.
UNIT = pa.field("unit", pa.string())
OUTCOME_ROWS = OUTCOME_SCHEMA.append(UNIT)
# The outcomes of many units; beside the first of each unit's the rest of its entry, as JSON.
COMPACT_ROWS = OUTCOME_ROWS.append(pa.field("head", pa.large_string()))
_SHARD = {"path": str, "table": str, "rows": int, "bytes": int, "sha256": str}
_OUTCOME = {"clip_id": str, "path": str, "state": str}
_STATES = frozenset(State)
_SEALED = re.compile(r"compact/([0-9a-f]{16})\.arrow")


def entry_of(unit_id: str, data: bytes) -> dict[str, Any]:
    """The entry of a unit. Raises ValueError, in words, where the bytes are not that."""
    entry = json.loads(data)
    if not isinstance(entry, dict) or entry.get("unit") != unit_id:
        raise ValueError(f"it is no entry of unit {unit_id}")
    if not isinstance(entry.get("facts"), dict):
        raise ValueError("it has no facts")
    for name, types in (("shards", _SHARD), ("outcomes", _OUTCOME)):
        rows = entry.get(name)
        if not isinstance(rows, list) or not all(_has(row, types) for row in rows):
            raise ValueError(f"its {name} are not whole")
    if any(row["state"] not in _STATES for row in entry["outcomes"]):
        raise ValueError("it has a state that is none")
    return entry


def _has(row: Any, types: Mapping[str, type]) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in types.items())


def compacted(entries: Iterable[SizedEntry]) -> tuple[str, bytes]:
    """The name and the bytes of an object with copies of these entries; the name tells whether it is whole."""
    rows = []
    for entry, num_bytes in entries:
        head = {name: value for name, value in entry.items() if name != "outcomes"}
        heads = [json.dumps({**head, "num_bytes": num_bytes}), *[None] * (len(entry["outcomes"]) - 1)]
        rows += (
            {**row, "unit": entry["unit"], "head": text} for row, text in zip(entry["outcomes"], heads, strict=True)
        )
    table = outcome_rows(rows).append_column("head", pa.array([row["head"] for row in rows], pa.large_string()))
    data = arrow_bytes(table)
    return f"compact/{hashlib.sha256(data).hexdigest()[:16]}.arrow", data


def uncompacted(name: str, data: bytes) -> pa.Table:
    """Rows of COMPACT_ROWS of such an object; none where it is damaged, since they are only copies."""
    sealed = _SEALED.fullmatch(name)
    if sealed and hashlib.sha256(data).hexdigest()[:16] != sealed[1]:
        return COMPACT_ROWS.empty_table()
    try:
        return with_columns(pa.ipc.open_file(data).read_all(), Outcome, COMPACT_ROWS)
    except (pa.ArrowInvalid, OSError, ValueError):
        return COMPACT_ROWS.empty_table()


def outcome_rows(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Outcomes with their units as a table; lone surrogates, of a name that is no UTF-8, are escaped."""
    columns = []
    for field in OUTCOME_ROWS:
        values = [row[field.name] for row in rows]
        if field.type == pa.string():
            values = [
                value if value is None or value.isascii() else value.encode("utf-8", "backslashreplace").decode()
                for value in values
            ]
        columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=OUTCOME_ROWS)
