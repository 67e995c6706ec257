"""A column is declared once: its schema, its rows, the sums over segments and the reading of older outputs follow."""

import io
from dataclasses import dataclass, fields

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ledgers import joined

from pipeline.records.clips import Clip
from pipeline.records.columns import column, schema_of, table_of
from pipeline.records.evolution import BEFORE, read_shard, with_columns, with_defaults
from pipeline.records.faces import (
    FRAME_SCHEMA,
    Box,
    ClipLabel,
    Example,
    FaceEmbedding,
    Prediction,
    Thumbnail,
    TrackLabel,
)
from pipeline.records.outcomes import COUNTED, Outcome, State, outcome_of
from pipeline.records.vocabulary import EMOTIONS

RECORDS = (Clip, ClipLabel, Example, FaceEmbedding, Outcome, Prediction, Thumbnail, TrackLabel)


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str = column("what it is called")
    weight: float = column("grams", default=1.5, arrow=pa.float32())
    note: str | None = column("for people, or null", default=None)


SCHEMA = schema_of(Row, "one row a thing")


def test_a_schema_follows_from_the_record():
    assert SCHEMA.names == ["name", "weight", "note"]
    assert SCHEMA.types == [pa.string(), pa.float32(), pa.string()]
    assert [field.nullable for field in SCHEMA] == [False, False, True]
    assert SCHEMA.field("weight").metadata == {b"meaning": b"grams"}
    assert table_of([Row(name="a")], SCHEMA).to_pylist() == [{"name": "a", "weight": 1.5, "note": None}]
    assert table_of([], SCHEMA).schema.equals(SCHEMA)


def test_a_table_that_is_older_than_a_column_reads_as_if_it_had_it():
    old = pa.table({"name": ["a", "b"], "gone": [1, 2]}, metadata={"of": "then"})
    read = with_columns(old, Row, SCHEMA)
    assert read.schema.equals(SCHEMA)
    assert read.schema.metadata == {b"of": b"then"}
    assert read.to_pylist() == [{"name": each, "weight": 1.5, "note": None} for each in "ab"]
    now = table_of([Row(name="a")], SCHEMA)
    assert with_columns(now, Row, SCHEMA) is now
    with pytest.raises(ValueError, match="no column 'name', which has no default"):
        with_columns(pa.table({"weight": [1.0]}), Row, SCHEMA)


def test_settings_that_are_older_than_a_field_count_as_its_default(monkeypatch):
    @dataclass(frozen=True)
    class Config:
        needed: str
        rate: float = 2.0
        mode: str = "new"

    assert with_defaults(Config, {"rate": 1.0, "other": 3}) == {"rate": 1.0, "mode": "new", "other": 3}
    monkeypatch.setitem(BEFORE, "mode", "as it was")
    assert with_defaults(Config, {"needed": "x"}) == {"rate": 2.0, "mode": "as it was", "needed": "x"}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_field_of_a_stored_record_is_a_column_with_a_meaning(record):
    assert all(field.metadata.get("meaning") for field in fields(record))


def test_what_segments_count_adds_up_in_every_column_that_counts():
    given = {name: number for number, name in enumerate(COUNTED.values(), 1)}
    parts = [
        Outcome(clip_id=f"a.{number:04d}", path="a", state=State.DONE, seconds=0.5, decode_integrity=0.5, **given)
        for number in range(3)
    ]
    (whole,) = joined(parts)
    assert {name: getattr(whole, name) for name in given} == {name: 3 * value for name, value in given.items()}
    assert (whole.clip_id, whole.seconds, whole.decode_integrity, whole.attempts) == ("a", 1.5, 0.5, 1)


def test_an_outcome_of_an_older_entry_has_the_defaults_of_younger_columns():
    assert outcome_of({"clip_id": "a", "path": "p", "state": "done", "removed_since": 1}) == Outcome(
        clip_id="a", path="p", state=State.DONE
    )


def test_probabilities_are_flat_columns_too_in_older_tables_as_well():
    now = table_of([predicted()], FRAME_SCHEMA)
    assert [name for name in now.column_names if name.startswith("p_")] == [f"p_{name}" for name in EMOTIONS]
    old = now.select([name for name in now.column_names if not name.startswith("p_")])
    assert with_columns(old, Prediction, FRAME_SCHEMA).to_pylist() == now.to_pylist()
    buffer = io.BytesIO()
    pq.write_table(old.drop_columns(["person", "stray", "path", "model"]), buffer)
    (row,) = read_shard(buffer.getvalue(), Prediction, FRAME_SCHEMA, columns=["p_Sad", "stray", "path"]).to_pylist()
    assert row == {"p_Sad": pytest.approx(0.4), "stray": False, "path": ""}


def test_a_column_that_was_nullable_once_has_its_default_there():
    old = pa.table({"name": ["a", "b"], "weight": pa.array([None, 2.0], pa.float64())})
    assert with_columns(old, Row, SCHEMA)["weight"].to_pylist() == [1.5, 2.0]


def predicted():
    where = {"clip_id": "a", "path": "x.mp4", "frame_index": 0, "pts_seconds": 0.0, "face_index": 0, "face_score": 1.0}
    values = {"track_index": 0, "emotion": "Sad", "reason": None, "entropy": 1.0, "person": 1, "model": "0123"}
    return Prediction(**where, **values, box=Box(0, 0, 1, 1), probabilities=(0.1, 0.1, 0.1, 0.1, 0.1, 0.4, 0.1))
