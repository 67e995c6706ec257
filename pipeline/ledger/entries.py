"""Entries of committed units as text: one JSON object a unit, and copies of many of them in one Arrow object."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

import pyarrow as pa

from pipeline.ledger.files import arrow_bytes
from pipeline.records.columns import columns_of
from pipeline.records.documents import DocumentError, arrow_table, parse_json
from pipeline.records.outcomes import Outcome

UNIT = pa.field("unit", pa.string())
# num_bytes: of the object in ledger/ whose text this is.
ENTRY_TEXTS = pa.schema([UNIT, ("num_bytes", pa.int64()), ("entry", pa.large_binary())])
# What an entry that is older than a column counts as.
_DEFAULTS = {each.name: each.default for each in columns_of(Outcome) if each.default is not MISSING}
# A clip's outcome takes half a kilobyte.
MAX_ENTRY_BYTES = 2**28
_KEYS = {"unit", "facts", "shards", "outcomes"}
_SEALED = re.compile(r"compact/([0-9a-f]{16})\.arrow")
_SURROGATE = re.compile(r"(\\\\|\\ud[89ab]..\\ud[c-f]..)|(\\ud[89a-f]..)")


def entry_of(data: bytes) -> dict[str, Any]:
    """An entry, its values unchecked. Raises ValueError, in words, where the bytes are none."""
    entry = parse_json(data, "it", max_bytes=MAX_ENTRY_BYTES)
    if not isinstance(entry, dict) or not entry.keys() >= _KEYS:
        raise ValueError("it is no entry of a unit")
    return entry


def entry_texts(objects: Mapping[str, bytes]) -> pa.Table:
    """Rows of ENTRY_TEXTS of the objects of these units."""
    return pa.table([list(objects), list(map(len, objects.values())), list(objects.values())], schema=ENTRY_TEXTS)


def as_of_today(objects: Mapping[str, bytes]) -> pa.Table:
    """Like `entry_texts`: outcomes get the columns that they are older than, and lone surrogates (of a name that is no
    UTF-8) are escaped. Raises ValueError where one is no entry."""
    texts = []
    for data in objects.values():
        entry = entry_of(data)
        if isinstance(rows := entry["outcomes"], list):
            entry["outcomes"] = [{**_DEFAULTS, **row} if isinstance(row, dict) else row for row in rows]
        texts.append(_SURROGATE.sub(lambda found: found[1] or f"\\{found[2]}", json.dumps(entry)).encode())
    return entry_texts(objects).set_column(2, ENTRY_TEXTS.field(2), pa.array(texts, pa.large_binary()))


def compacted(texts: pa.Table) -> tuple[str, bytes]:
    """The name and the bytes of an object with these entries; the name tells whether it is whole."""
    data = arrow_bytes(texts)
    return f"compact/{hashlib.sha256(data).hexdigest()[:16]}.arrow", data


def uncompacted(name: str, data: bytes) -> pa.Table | None:
    """Rows of ENTRY_TEXTS of such an object; None where it is damaged, or of an older version: they are only copies."""
    sealed = _SEALED.fullmatch(name)
    if sealed and hashlib.sha256(data).hexdigest()[:16] == sealed[1]:
        try:
            table = arrow_table(data, name)
        except DocumentError:
            return None
        return table if table.schema.equals(ENTRY_TEXTS) else None
    return None
