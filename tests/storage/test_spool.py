import pyarrow as pa
import pytest

from pipeline.storage.spool import BatchSpool, spooled


def batches(count, *, rows=10):
    return [pa.record_batch({"n": pa.array(range(start, start + rows))}) for start in range(0, count * rows, rows)]


@pytest.mark.parametrize("memory_bytes", [0, 200, 10**6])
def test_batches_come_back_in_their_order_as_often_as_asked(memory_bytes):
    spool = BatchSpool(memory_bytes=memory_bytes)
    given = batches(7)
    for batch in given:
        spool.append(batch)
    assert spool.num_rows == 70
    for _ in range(2):
        assert list(spool) == given


def test_columns_may_differ_from_batch_to_batch():
    spool = BatchSpool(memory_bytes=0)
    given = [pa.record_batch({"a": [None, None]}), pa.record_batch({"a": ["x", None]}), pa.record_batch({"b": [1.0]})]
    for batch in given:
        spool.append(batch)
    assert list(spool) == given


def test_many_lie_in_a_folder_that_goes_with_the_spool(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spool = BatchSpool(memory_bytes=100)
    for batch in batches(2):
        spool.append(batch)
    (folder,) = tmp_path.iterdir()
    assert (folder / "batches").stat().st_size > 0
    del spool
    assert list(tmp_path.iterdir()) == []


def test_few_lie_in_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert list(spooled(pa.table({"a": [1, 2]}))) == [pa.record_batch({"a": [1, 2]})]
    assert list(tmp_path.iterdir()) == []


def test_two_are_equal_that_have_the_same_rows():
    one, same, other = (spooled(pa.table({"a": values})) for values in ([1, 2], [1, 2], [1, 3]))
    parts = BatchSpool(memory_bytes=0)
    for value in (1, 2):
        parts.append(pa.record_batch({"a": [value]}))
    assert one == same == parts
    assert one != other
    assert one != spooled(pa.table({"a": [1]}))
    assert BatchSpool() == BatchSpool()
