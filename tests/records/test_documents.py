"""What users and strangers wrote is read in bounded memory, and no error quotes a file that is something else."""

import contextlib
import io
import json
import struct
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.read import read_corpus
from pipeline.corpus.types import CorpusError
from pipeline.dataset.shards import read_manifest
from pipeline.faces.given_boxes import read_boxes
from pipeline.models.checkpoint_info import read_checkpoint_info
from pipeline.models.claims import check_claims
from pipeline.models.sidecar import read_onnx
from pipeline.models.tensors import read_tensors
from pipeline.preprocess.config import extract_config_of
from pipeline.records.documents import (
    MAX_DEPTH,
    DocumentError,
    arrow_table,
    mapping_of,
    parquet_table,
    parse_json,
    parse_xml,
    parse_yaml,
    read_at_most,
    shown_value,
)
from pipeline.records.vocabulary import UsageError
from pipeline.storage.remote import read_url

LAUGHS = "a0: &a0 [x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
ENTITIES = (
    '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 9))
    + "]><a>&a8;</a>"
)


@pytest.mark.parametrize(
    ("parse", "text", "told"),
    [
        (parse_json, "[" * 10**6, "nests more than 32 deep"),
        (parse_json, "[" * 900 + "]" * 900, "nests more than 32 deep"),
        (parse_json, '{"a":' * 200 + "1" + "}" * 200, "nests more than 32 deep"),
        (parse_json, "9" * 5000, "too many digits"),
        (parse_json, "hunter2", r"is not JSON \(line 1, column 1\)"),
        (parse_json, b'"\xff"', r"is not JSON \(byte 1 is not UTF-8\)"),
        (parse_json, " " * 2**23, "longer than 4 MiB"),
        (parse_yaml, LAUGHS, "line 2: aliases"),
        (parse_yaml, "&a [*a]", "line 1: aliases"),
        (parse_yaml, "[" * 10**6, "nests more than 32 deep"),
        (parse_yaml, "- " * 10**5, "nests more than 32 deep"),
        (parse_yaml, "a: !!python/object/apply:os.system ['hunter2']", r"is not YAML \(line 1\)"),
        (parse_yaml, "root:x\nhunter2: [", r"is not YAML \(line \d\)"),
        (parse_yaml, bytes(range(256)), "is not YAML"),
        (parse_yaml, "#" * 2**23, "longer than 4 MiB"),
        (parse_xml, ENTITIES, "declares entities"),
        (parse_xml, ENTITIES.encode("utf-16"), "declares entities"),
        (parse_xml, "<a>" * 10**6, "nests more than 32 deep"),
        (parse_xml, "hunter2", r"is not XML \(line 1\)"),
    ],
)
def test_what_nests_aliases_or_lies_ends_in_one_line_that_quotes_nothing(parse, text, told):
    with pytest.raises(DocumentError, match=told) as caught:
        parse(text if isinstance(text, bytes) else text.encode(), "file x")
    assert str(caught.value).startswith("file x")
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_what_people_write_is_read():
    deep = json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert parse_json(json.dumps(deep).encode(), "x") == deep
    assert parse_yaml(b"a: [1, 2.5, yes]\nday: 2026-11-22\nb: {c: null}\n", "x") == {
        "a": [1, 2.5, True],
        "day": "2026-11-22",
        "b": {"c": None},
    }
    assert parse_xml(b"<a><b>1</b></a>", "x").findtext("b") == "1"


def test_an_unknown_field_is_quoted_only_where_it_is_nearly_a_known_one():
    assert mapping_of({"actors": 1}, ["actors", "input"], "x") == {"actors": 1}
    with pytest.raises(DocumentError, match="x: actor is not known; did you mean actors"):
        mapping_of({"actor": 1}, ["actors", "input"], "x")
    for value in ({"hunter2": 1, "swordfish": 2}, ["hunter2"], "hunter2", None):
        with pytest.raises(DocumentError) as caught:
            mapping_of(value, ["actors", "input"], "x")
        assert "hunter2" not in str(caught.value)


def test_a_value_is_shown_only_where_it_is_short_and_plain():
    assert [shown_value(value) for value in (3, 1.5, None, True, "jpeg", [1, 2])] == [
        *("3", "1.5", "None", "True", "'jpeg'", "[1, 2]")
    ]
    assert shown_value("a secret") == "a text of 8 letters"
    assert shown_value("x" * 99) == "a text of 99 letters"
    assert shown_value({"a": 1}) == "an object"
    assert shown_value(10**99) == "a number of many digits"


def test_a_file_without_an_end_is_read_up_to_its_bound(tmp_path):
    with pytest.raises(DocumentError, match="/dev/zero is longer than 1 MiB"):
        read_url("/dev/zero", max_bytes=2**20)
    (tmp_path / "x").write_bytes(b"12345")
    assert read_url(str(tmp_path / "x"), max_bytes=5) == b"12345"
    with pytest.raises(DocumentError, match="the file is longer than 4 bytes"):
        read_url(str(tmp_path / "x"), max_bytes=4, what="the file")
    with pytest.raises(FileNotFoundError):
        read_url(str(tmp_path / "y"), max_bytes=4)
    assert read_at_most(io.BytesIO(b"12"), 2, "x") == b"12"


def parquet_bomb(num_rows, num_letters):
    """A few hundred bytes of Parquet in which every row is the same long text."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), pa.array(["a" * num_letters]))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"url": text}), buffer, compression="brotli", store_schema=False, write_statistics=False)
    return buffer.getvalue()


def test_a_parquet_file_that_grows_is_given_up_half_way():
    content = parquet_bomb(4000, 2**17)
    assert len(content) < 1000
    with pytest.raises(DocumentError, match="decodes to more than 64 MiB"):
        parquet_table(content, "shard x", max_bytes=2**26)
    with pytest.raises(DocumentError, match="has 4000 rows, not 5"):
        parquet_table(content, "shard x", num_rows=5)
    with pytest.raises(DocumentError, match="shard x is not Parquet"):
        parquet_table(b"PAR1 hunter2 PAR1", "shard x")
    assert parquet_table(parquet_bomb(3, 2), "x")["url"].to_pylist() == ["aa"] * 3


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (parquet_bomb(100, 2**17), "row 1 has a cell that is no text, number or truth, or a very long one"),
        (parquet_bomb(48, 2**25), "its rows take more than 1024 MiB; give it as CSV"),
        (b"PAR1" + b"hunter2" * 9 + b"PAR1", "damaged, or no Parquet"),
    ],
)
def test_a_manifest_of_a_few_bytes_costs_a_child_at_most(content, told, tmp_path):
    (tmp_path / "m.parquet").write_bytes(content)
    with pytest.raises(CorpusError, match=told) as caught:
        read_corpus(str(tmp_path / "m.parquet"))
    assert "hunter2" not in str(caught.value)


SECRETS = {
    "shadow": b"root:$6$hunter2$x:19000:0:99999:7:::\ndaemon:hunter2:19000::::::\n",
    "token": b"hunter2\n",
    "ini": b"[default]\naws_secret_access_key = hunter2\n",
    "pairs": b"password: hunter2\nhunter2: x\n",
    "json": b'{"hunter2": "hunter2"}',
    "table": b"user,hunter2\nbob,hunter2\n",
    "boxes": b"hunter2,a,b,c,d,e\n",
    "key": b"-----BEGIN PRIVATE KEY-----\nhunter2\n",
    "binary": bytes(range(128, 256)) + b"hunter2",
}


def as_checkpoint(path):
    folder = path.parent / "run" / "checkpoints" / "epoch-0001"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").symlink_to(path)
    read_checkpoint_info(str(path.parent / "run"), "last")


def as_sidecar(path):
    (path.parent / "m.onnx").write_bytes(b"x")
    (path.parent / "m.json").symlink_to(path)
    read_onnx(str(path.parent / "m.onnx"))


def as_manifest(path):
    for ending in ("csv", "tsv", "parquet"):
        (path.parent / f"m.{ending}").symlink_to(path)
    for ending in ("tsv", "parquet"):
        with pytest.raises(UsageError, match=r"m\.\w+") as caught:
            read_corpus(str(path.parent / f"m.{ending}"))
        assert "hunter2" not in str(caught.value)
    read_corpus(str(path.parent / "m.csv"))


def as_data(path):
    (path.parent / "manifest.json").symlink_to(path)
    read_manifest(str(path.parent))


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_boxes(str(path)),
        lambda path: read_tensors(path.read_bytes(), "weights", cure="give others"),
        as_checkpoint,
        as_sidecar,
        as_data,
        *([as_manifest]),
    ],
    ids=["boxes", "weights", "checkpoint", "sidecar", "data", "manifest"],
)
def test_no_option_prints_a_file_that_it_was_pointed_at(read, name, tmp_path):
    if read is as_manifest and name not in ("shadow", "token", "table", "binary"):
        return  # each costs two children
    path = tmp_path / "secret"
    path.write_bytes(SECRETS[name])
    with pytest.raises(UsageError) as caught:
        read(path)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


CLAIMS = {
    "epoch": 1,
    "step": 10,
    "config": {
        "model": {"name": "cahfw", "options": {}, "face_px": 224, "context_px": 224},
        "training": {},
        "preprocessing": {},
    },
    "metrics": {"top1_accuracy": 0.5, "num_examples": 10, "confusion_matrix": [[1, 2], [3, 4]]},
    "data": {"name": "CAER-S", "num_examples": 3},
    "history": [{"epoch": 1}],
    "trained_at": None,
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("config.model.face_px", 10**6),
        ("config.model.context_px", "224"),
        ("config.model.face_px", True),
        ("config.model.name", ["cahfw"]),
        ("config.model.flip_at_test", "yes"),
        ("config.preprocessing", [1]),
        ("config.model", None),
        ("step", 10**15),
        ("epoch", -1),
        ("epoch", 1.5),
        ("metrics", "good"),
        ("metrics.top1_accuracy", float("nan")),
        ("metrics.top1_accuracy", 17),
        ("metrics.confusion_matrix", [["hunter2"]]),
        ("data.name", "x" * 10**6),
        ("history", ["hunter2"]),
        ("trained_at", 5),
    ],
)
def test_what_a_checkpoint_claims_is_bounded(path, value):
    check_claims(CLAIMS, "run x")
    claimed = json.loads(json.dumps(CLAIMS))
    *above, last = path.split(".")
    place = claimed
    for name in above:
        place = place[name]
    place[last] = value
    with pytest.raises(UsageError, match=rf"^run x: {path} is .*, not .*; it is damaged or foreign") as caught:
        check_claims(claimed, "run x")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"face_px": 10**6}, "--face-px is 1000000; give 8 or more, up to 2048"),
        ({"context_px": 2}, "--context-px is 2; give 8 or more"),
        ({"frames_per_clip": 10**12}, "--frames-per-clip is"),
        ({"sample_fps": 1e12}, "--sample-fps is"),
        ({"sample_fps": float("nan")}, "--sample-fps is nan"),
        ({"box_margin": 1e9}, "--box-margin is"),
        ({"face_px": "224"}, "face_px is '224', which is of another type"),
        ({"every_frame": 1}, "every_frame is 1, which is of another type"),
        ({"detector": {"a": 1}}, "detector is an object"),
    ],
)
def test_how_clips_are_read_is_bounded_whoever_says_it(values, told):
    assert extract_config_of({"face_px": 224, "box_margin": 1, "sample_fps": None}).face_px == 224
    with pytest.raises(ValueError, match=told):
        extract_config_of(values)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (struct.pack("<Q", 2**40) + b"{}", "is not safetensors"),
        (struct.pack("<Q", 2**25) + b"{" + b" " * 2**25, "its header claims 33554432 bytes"),
        (b"\x80\x02}q\x00.", "is not safetensors"),
        (b"", "is not safetensors"),
        (struct.pack("<Q", 8) + b"{" * 8, "is not safetensors"),
    ],
)
def test_weights_whose_header_lies_are_refused(content, told):
    with pytest.raises(UsageError, match=f"^file x.*{told}.*; give others$"):
        read_tensors(content, "file x", cure="give others")


@pytest.mark.parametrize("change", [{"path": "../x"}, {"path": "/x"}, {"sha256": "../x"}, {"rows": -1}, {"rows": "1"}])
def test_a_shard_that_leads_out_of_its_data_is_refused(change, tmp_path):
    shard = {"path": "examples/train/a.parquet", "split": "train", "rows": 1, "bytes": 5, "sha256": "ab" * 32}
    config = {"face_px": 32, "context_px": 32}

    def manifest(**values):
        told = {"kind": "examples", "schema_version": 1, "config": config, "shards": [{**shard, **values}]}
        (tmp_path / "manifest.json").write_text(json.dumps(told))
        return read_manifest(str(tmp_path))

    assert manifest().shards == (shard,)
    with pytest.raises(UsageError, match="a shard in it is not one of ours"):
        manifest(**change)


def test_a_table_of_few_bytes_that_decodes_to_many_is_refused():
    schema = pa.schema([("text", pa.string())])
    row = pa.record_batch([["a" * 2**20]], schema=schema)
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for _ in range(64):
            writer.write_batch(row)
    assert len(sink.getvalue()) < 2**16
    assert arrow_table(sink.getvalue(), "it").num_rows == 64
    with pytest.raises(DocumentError, match="decodes to more than 8 MiB"):
        arrow_table(sink.getvalue(), "it", max_bytes=2**23)
    with pytest.raises(DocumentError, match="it is not Arrow"):
        arrow_table(b"SECRETSAUCE" * 9, "it")


def arrow_file(table, *, codec="zstd"):
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def parquet_file(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("read", "content", "told"),
    [
        # One batch, buffer, page or dictionary that would be there whole before anything of it could be counted.
        (arrow_table, arrow_file(pa.table({"jpeg": [b"\0" * 2**26]})), "decodes to more than 8 MiB"),
        (arrow_table, arrow_file(pa.table({"jpeg": [b"\0" * 2**26]}), codec="lz4"), "decodes to more than 8 MiB"),
        (arrow_table, arrow_file(pa.table({"n": pa.array([0] * 2**21)})), "decodes to more than 8 MiB"),
        (arrow_table, arrow_file(pa.table({"n": pa.nulls(2**30)}), codec=None), "a kind that is not written here"),
        (arrow_table, arrow_file(pa.table({"a": pa.array(["a" * 2**20] * 99).dictionary_encode()})), "a kind that"),
        (parquet_table, parquet_bomb(256, 2**22), "decodes to more than 8 MiB"),
        (parquet_table, parquet_bomb(3, 2**25), "decodes to more than 8 MiB"),
        (parquet_table, parquet_file(pa.table({"a": ["a" * 2**24]}), use_dictionary=False), "more than 8 MiB"),
        (parquet_table, parquet_file(pa.table({"s": [{"bytes": b"a" * 2**20}] * 99})), "decodes to more than 8 MiB"),
        (parquet_table, parquet_file(pa.table({"l": [[0] * 2**20]})), "a kind that is not written here"),
    ],
)
def test_what_decodes_to_much_at_once_is_refused_before_it_is_there(read, content, told):
    before = pa.total_allocated_bytes()
    peak = max(before, pa.default_memory_pool().max_memory() or 0)
    with pytest.raises(DocumentError, match=told):
        read(content, "it", max_bytes=2**23)
    assert (pa.default_memory_pool().max_memory() or 0) - peak < 2**27
    assert pa.total_allocated_bytes() - before < 2**22


def test_a_damaged_table_is_read_or_refused_and_never_ends_the_process():
    rows = {"id": [f"{n:020x}" for n in range(300)], "n": list(range(300)), "x": [None, 0.5, 2.0] * 100}
    table = pa.table({**rows, "jpeg": [bytes([n % 256]) * 20 for n in range(300)]})
    repeated = table.append_column("label", pa.array(["Happy", "Sad"] * 150).dictionary_encode())
    wholes = [(arrow_table, arrow_file(table)), (parquet_table, parquet_file(repeated))]
    for read, whole in wholes:
        assert read(whole, "it").num_rows == 300
    random = Random(7)
    for _ in range(3000):
        read, whole = random.choice(wholes)
        mutant = bytearray(whole)
        for _ in range(random.choice([1, 1, 4])):
            at = random.randrange(len(mutant))
            mutant[at : at + random.choice([1, 8])] = random.choice([b"\xff" * 8, random.randbytes(1), b"\0" * 8, b""])
        with contextlib.suppress(DocumentError):
            read(bytes(mutant), "it", max_bytes=2**24).to_pylist()


def test_of_a_parquet_file_only_the_columns_that_are_asked_for_are_decoded():
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}).replace_schema_metadata({"k": "v"}), sink)
    table = parquet_table(sink.getvalue(), "it", columns=("b", "c"))
    assert table.to_pydict() == {"b": ["x", "y"]}
    assert table.schema.metadata[b"k"] == b"v"
