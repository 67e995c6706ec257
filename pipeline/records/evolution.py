"""Reads outputs that are older than a column or a setting as if they had it.

A column of a record and a field of a config that an output does not have count as their defaults. Where what an older
version did differs from today's default, `BEFORE` names what it did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

import pyarrow as pa

from pipeline.records.arrow import pc
from pipeline.records.columns import PER_CLASS, classes_of, columns_of, flat_columns, with_classes
from pipeline.records.documents import parquet_table

# Setting -> what every version did that did not have it yet, where that is not today's default.
BEFORE: dict[str, Any] = {}


# Kind of output -> settings that a later run may change: what they decide is looked at anew for each clip, or is only
# how the results are read.
MAY_CHANGE: dict[str, frozenset[str]] = {
    "labels": frozenset(
        {
            *("abstain_below", "faces", "upsample", "retry_upsample", "detect_every", "whole_every"),
            *("frames_per_clip", "sample_fps", "every_frame", "min_sample_fps", "min_face_px", "min_sharpness"),
            "max_yaw",
        }
    )
}


def fixed(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an output's settings that every run must have alike."""
    return {name: value for name, value in settings.items() if name not in MAY_CHANGE.get(kind, ())}


def with_defaults(config_class: type, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The saved settings, and for those that are younger what older versions did.

    Args:
        config_class: dataclass that declares the settings.
        saved: settings by name as an output holds them; names that the class does not have are kept.

    Returns:
        A mapping with every setting that has a default or is saved.
    """
    defaults = {each.name: each.default for each in fields(config_class) if each.default is not MISSING}
    return {**{name: BEFORE.get(name, default) for name, default in defaults.items()}, **saved}


def with_columns(table: pa.Table, record: type, schema: pa.Schema) -> pa.Table:
    """A stored table with exactly the columns of `schema`, in its order.

    Args:
        table: rows as they were written, by this version or an older one; its metadata is kept.
        record: dataclass that declares the columns (see `columns.column`).
        schema: columns wanted: those of the record, and further ones that the table must have.

    Raises:
        ValueError: for a column that the table lacks and that has no default.
    """
    if table.schema.equals(schema):
        return table
    defaults = {each.name: each.default for each in columns_of(record)}
    flat = flat_columns(classes_of(schema))
    columns = []
    for field in schema:
        if field.name in table.column_names:
            column = table[field.name].cast(field.type)
            if column.null_count and not field.nullable:
                column = column.fill_null(defaults[field.name])  # It was nullable once.
            columns.append(column)
        elif field.name in flat and "probabilities" in table.column_names:
            columns.append(pc.struct_field(table["probabilities"], flat[field.name]))
        elif (value := defaults.get(field.name, MISSING)) is MISSING:
            raise ValueError(f"the table has no column {field.name!r}, which has no default; it is not of this kind")
        else:
            columns.append(pa.repeat(pa.scalar(value, field.type), table.num_rows))
    found = pa.table(columns, schema=schema.remove_metadata())
    return found.replace_schema_metadata(table.schema.metadata)


def read_shard(
    data: bytes, record: type, schema: pa.Schema, *, columns: Sequence[str] | None = None, filters: Any = None
) -> pa.Table:
    """The rows of a stored shard with today's columns, and the classes of the model that it is of.

    Args:
        data: a Parquet file of this version or an older one.
        record: dataclass that declares the columns.
        schema: of the whole table today.
        columns: those wanted; by default all.
        filters: an Arrow expression over clip_id or same_as.

    Raises:
        DocumentError: where it is no Parquet, or decodes to more than a shard may have.
    """
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    is_flat = set(wanted.names) & flat_columns(classes_of(schema)).keys()
    needed = {*wanted.names, *(["probabilities"] if is_flat else [])}
    if filters is not None:
        needed |= {"clip_id", "same_as"}
    table = parquet_table(data, "a shard", columns=needed)
    if set(table.column_names) & set(PER_CLASS):
        wanted = with_classes(wanted, classes_of(table.schema))
    return with_columns(table if filters is None else table.filter(filters), record, wanted)


def from_first_frame(faces: pa.Table) -> pa.Table:
    """The faces with their times counted from the clip's first frame, as players and annotation tools count, in place
    of the file's clock; labels that are older than these times keep the file's. faces: rows of FRAME_SCHEMA, or some of
    its columns."""
    if "seconds" not in faces.column_names:
        return faces
    times = pc.coalesce(faces["seconds"], faces["pts_seconds"])
    return faces.set_column(faces.column_names.index("pts_seconds"), faces.schema.field("pts_seconds"), times)
