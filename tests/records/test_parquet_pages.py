"""What a Parquet file takes once it is unpacked is read off its pages, whatever its footer says."""

import contextlib
import io
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.records import documents
from pipeline.records.documents import DocumentError, parquet_table
from pipeline.records.parquet_pages import page_sizes


def written(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def number_bytes(number):
    """A number as a footer has it: zigzag, seven bits a byte."""
    number, found = 2 * number, bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def footer_of(content):
    length = int.from_bytes(content[-8:-4], "little")
    return len(content) - 8 - length, len(content) - 8


def with_a_lie(content):
    """The same file, whose footer says of every group and column that it unpacks to a few bytes."""
    begin, end = footer_of(content)
    footer, facts = content[begin:end], pq.ParquetFile(io.BytesIO(content)).metadata
    for group in map(facts.row_group, range(facts.num_row_groups)):
        columns = map(group.column, range(group.num_columns))
        for told in (group.total_byte_size, *(each.total_uncompressed_size for each in columns)):
            true = number_bytes(told)
            if len(true) > 2:
                footer = footer.replace(true, b"\xc0" + b"\x80" * (len(true) - 2) + b"\x00")
    return content[:begin] + footer + content[end:]


LARGE = {
    "one page of one value": (["a" * 2**24], {"use_dictionary": False}),
    "one long dictionary": (["a" * 2**24] * 3, {}),
    "many pages": (["a" * 2**20] * 16, {"use_dictionary": False, "data_page_size": 2**20}),
    "pages of the second version": (["a" * 2**20] * 16, {"use_dictionary": False, "data_page_version": "2.0"}),
    "many groups": (["a" * 2**20] * 16, {"use_dictionary": False, "row_group_size": 4}),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("codec", ["zstd", "snappy"])
@pytest.mark.parametrize("kind", LARGE)
def test_a_footer_that_lies_makes_no_room(kind, codec):
    values, options = LARGE[kind]
    content = with_a_lie(written(pa.table({"a": [1] * len(values), "b": values}), compression=codec, **options))
    facts = pq.ParquetFile(io.BytesIO(content)).metadata
    assert sum(facts.row_group(each).total_byte_size for each in range(facts.num_row_groups)) < 2**10
    before = pa.total_allocated_bytes()
    peak = max(before, pa.default_memory_pool().max_memory() or 0)
    with pytest.raises(DocumentError, match="decodes to more than 8 MiB"):
        parquet_table(content, "it", max_bytes=2**23)
    assert (pa.default_memory_pool().max_memory() or 0) - peak < 2**22
    assert parquet_table(content, "it", columns=["a"], max_bytes=2**23).num_rows == len(values)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "none"},
        {"data_page_version": "2.0", "compression": "zstd"},
        {"row_group_size": 70, "data_page_size": 64},
        {"use_dictionary": False, "write_page_index": True, "write_page_checksum": True},
        {"store_decimal_as_integer": True, "version": "1.0"},
    ],
)
def test_the_pages_of_a_true_file_are_those_that_its_footer_counts(options):
    table = pa.table(
        {
            "id": [f"{n:020x}" for n in range(300)],
            "n": pa.array([None, *range(299)], pa.int16()),
            "s": [{"x": n / 2, "y": [None, True][n % 2]} for n in range(300)],
            "none": pa.nulls(300, pa.string()),
        }
    )
    content = written(table, **options)
    facts = pq.ParquetFile(io.BytesIO(content)).metadata
    sizes = page_sizes(content, table.column_names)
    assert len(sizes) == facts.num_row_groups
    for number, each in enumerate(sizes):
        # The footer counts the pages' heads too, of some 20 to 100 bytes.
        assert 0 < each.longest_bytes <= each.num_bytes < facts.row_group(number).total_byte_size
    assert sum(each.num_bytes for each in page_sizes(content, ["id"])) < sum(each.num_bytes for each in sizes)
    assert parquet_table(content, "it").num_rows == 300


def test_a_file_without_rows_has_no_pages():
    table = pa.table({"a": pa.array([], pa.string()), "b": pa.array([], pa.int64())})
    for group_size in (None, 5):
        content = written(table, row_group_size=group_size)
        assert sum(each.num_bytes for each in page_sizes(content, ["a", "b"])) == 0
        assert parquet_table(content, "it").num_rows == 0


def test_a_long_footer_is_not_read():
    content = written(pa.table({"a": [1]}).replace_schema_metadata({"k": "v" * 2**22}))
    with pytest.raises(DocumentError, match="its footer is longer than 4 MiB"):
        parquet_table(content, "it")


def test_what_is_packed_very_well_is_bounded_by_its_length(monkeypatch):
    monkeypatch.setattr(documents, "FREE_TABLE_BYTES", 2**22)
    table = pa.table({"a": ["a" * 2**20] * 5})
    packed = with_a_lie(written(table, use_dictionary=False, compression="zstd"))
    with pytest.raises(DocumentError, match="decodes to more than 4 MiB"):
        parquet_table(packed, "it")
    assert parquet_table(written(table, use_dictionary=False, compression="none"), "it").num_rows == 5


def test_heads_that_are_none_are_told():
    table = pa.table({"a": ["x"] * 300, "b": list(range(300))})
    content, random = written(table), Random(3)
    begin, end = footer_of(content)
    num_refused = 0
    for _ in range(2000):
        mutant = bytearray(content)
        at = random.choice([random.randrange(begin, end + 8), random.randrange(4, begin)])
        mutant[at : at + random.choice([1, 8])] = random.choice([b"\xff" * 8, random.randbytes(1), b"\0", b"\x9c" * 8])
        with contextlib.suppress(ValueError):
            page_sizes(bytes(mutant), ["a", "b"])
            num_refused -= 1
        num_refused += 1
    assert num_refused > 200
    for nested in (b"\x1c" * 10**5, b"\x19\x1c" * 10**5, b"\x19\xfc" + b"\xff" * 8 + b"\x01", b"\x15" + b"\xff" * 99):
        with pytest.raises(ValueError, match="head of it"):
            page_sizes(b"PAR1" + nested + len(nested).to_bytes(4, "little") + b"PAR1", ["a"])
