"""Declares the columns of a table as the fields of a record: each once, with its meaning and its rules.

A record is a frozen dataclass whose fields are made by `column`. From it follow the Arrow schema of its table
(`schema_of`), the rows (`table_of`), what an output that is older than a column counts as (`evolution`), and for
outcomes how segments add up to their clip, what the sandboxed child reports and what the summary counts.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, field, fields
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

from pipeline.records.vocabulary import EMOTIONS, SCHEMA_VERSION

# How the values of a clip's segments become the clip's: of the first segment in the state that decides, their sum,
# the largest, or their mean weighted by sampled frames.
SegmentRule = Literal["first", "sum", "max", "mean"]

# The type of a field that is a share, 0 to 1; what a sandboxed child tells is held to it.
Share = Annotated[float, "0 to 1"]

BOX_TYPE = pa.struct([pa.field(name, pa.int32(), nullable=False) for name in ("x_min", "y_min", "x_max", "y_max")])


def _shares_type(classes: tuple[str, ...]) -> pa.DataType:
    return pa.struct([pa.field(name, pa.float32(), nullable=False) for name in classes])


# A value for each class; other models than those of the seven have `with_classes`.
PROBABILITIES_TYPE = _shares_type(EMOTIONS)
PER_CLASS = ("probabilities", "emotion_shares")
# Of few values, and of the type that readers of a folder `NAME=value` give its column, so that the two are one.
REPEATED_TYPE = pa.dictionary(pa.int32(), pa.string())


def flat_columns(classes: Sequence[str]) -> dict[str, str]:
    """Columns beside `probabilities`, one a class, for tools that read no nested ones: name -> class."""
    return {f"p_{name}": name for name in classes}


# Those of the seven.
FLAT_COLUMNS = flat_columns(EMOTIONS)
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bytes: pa.binary(), bool: pa.bool_()}


def column(
    meaning: str,
    *,
    default: Any = MISSING,
    arrow: pa.DataType | None = None,
    segments: SegmentRule = "first",
    from_child: bool = False,
) -> Any:
    """Declare one field of a record as a column of its table.

    Args:
        meaning: what the value is, with its unit, for the reader of the table.
        default: value of rows that do not give one, and of every output that is older than the column.
        arrow: type of the column; by default that of the annotation (int64, float64, string, binary).
        segments: how the values of segments combine into their clip's (outcomes only).
        from_child: whether the sandboxed child reports the value (outcomes only).
    """
    metadata = {"meaning": meaning, "arrow": arrow, "segments": segments, "from_child": from_child}
    return field(default=default, metadata=metadata) if default is not MISSING else field(metadata=metadata)


def columns_of(record: type) -> tuple[Field[Any], ...]:
    """The columns of a record, in order."""
    return tuple(each for each in fields(record) if "meaning" in each.metadata)


def schema_of(record: type, content: str) -> pa.Schema:
    """The Arrow schema of a record's table.

    Args:
        record: a dataclass whose fields are made by `column`.
        content: one line on what a row is; stored in the metadata with the meaning of each column, because readers
            that know Parquet but not Arrow see the file's metadata and nothing of a column's.
    """
    hints = get_type_hints(record)
    arrow_fields = []
    for each in columns_of(record):
        arrow_fields.append(_arrow_field(each, hints[each.name]))
        arrow_fields += _flat_fields(EMOTIONS) if each.name == "probabilities" else []
    meanings = {field.name: field.metadata[b"meaning"].decode() for field in arrow_fields}
    metadata = {"schema_version": str(SCHEMA_VERSION), "content": content, "columns": json.dumps(meanings)}
    return pa.schema(arrow_fields, metadata=metadata)


def _flat_fields(classes: Sequence[str]) -> list[pa.Field]:
    return [
        pa.field(flat, pa.float32(), metadata={"meaning": f"the same as probabilities.{name}"})
        for flat, name in flat_columns(classes).items()
    ]


def classes_in(info: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes of labels, in the order of their model. info: what the ledger says of their run."""
    return tuple(info["config"].get("classes", EMOTIONS))


def classes_of(schema: pa.Schema) -> tuple[str, ...]:
    """The classes of a table of labels, in their order; the seven where it has no column of them."""
    for name in PER_CLASS:
        if name in schema.names and pa.types.is_struct(schema.field(name).type):
            return tuple(each.name for each in schema.field(name).type)
    return EMOTIONS


@lru_cache(maxsize=64)
def with_classes(schema: pa.Schema, classes: tuple[str, ...]) -> pa.Schema:
    """A schema of labels, for the classes of another model."""
    old = classes_of(schema)
    if classes == old:
        return schema
    flat = flat_columns(old)
    kept, is_flat = list[pa.Field](), False
    for each in schema:
        if each.name in flat:
            kept += [] if is_flat else _flat_fields(classes)
            is_flat = True
        else:
            kept.append(each.with_type(_shares_type(classes)) if each.name in PER_CLASS else each)
    metadata = dict(schema.metadata or {})
    if b"columns" in metadata:
        meanings = {each.name: each.metadata[b"meaning"].decode() for each in kept}
        metadata[b"columns"] = json.dumps(meanings).encode()
    return pa.schema(kept, metadata=metadata or None)


def _arrow_field(declared: Field[Any], hint: Any) -> pa.Field:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    nullable = type(None) in kinds
    (kind,) = (each for each in kinds if each is not type(None))
    metadata = {"meaning": declared.metadata["meaning"]}
    return pa.field(
        declared.name, declared.metadata["arrow"] or _arrow_type(kind), nullable=nullable, metadata=metadata
    )


def _arrow_type(kind: Any) -> pa.DataType:
    if get_origin(kind) is tuple:
        return PROBABILITIES_TYPE
    if issubclass(kind, StrEnum):
        return pa.string()
    return _TYPES.get(kind, BOX_TYPE)


def table_of(records: Iterable[Any], schema: pa.Schema) -> pa.Table:
    """Records as an Arrow table of exactly `schema`; an empty list gives an empty table with the same columns.

    What has a value for each class has them in the order of the schema's.
    """
    classes = classes_of(schema)
    flat = flat_columns(classes)
    rows = [asdict(record) for record in records]
    for row in rows:
        if row.get("probabilities") is not None:
            row.update(zip(flat, row["probabilities"], strict=True))
        for name in PER_CLASS:
            if row.get(name) is not None:
                row[name] = dict(zip(classes, row[name], strict=True))
    return pa.Table.from_pylist(rows, schema=schema)
