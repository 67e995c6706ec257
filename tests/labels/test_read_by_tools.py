"""Other tools read examples and labels by the lines that jobs/README.md gives."""

import re
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pandas
import polars
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from example_shards import drawn_example
from made_labels import CLIPS, make_labels

from pipeline.dataset.card import examples_card, labels_card
from pipeline.records.columns import table_of
from pipeline.records.faces import EXAMPLE_SCHEMA
from pipeline.records.vocabulary import EMOTIONS

JOBS_README = Path(__file__).resolve().parents[2] / "jobs" / "README.md"


@pytest.fixture(scope="module")
def load_dataset(tmp_path_factory):
    """datasets.load_dataset, which asks no network and keeps its copies here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("huggingface")))
        import datasets

        yield datasets.load_dataset


@pytest.fixture(scope="module")
def labels(made, tmp_path_factory):
    """An output with the labels of two models."""
    output = tmp_path_factory.mktemp("labels")
    for digit in "01":
        folder = make_labels(made.videos, output, CLIPS, sha256=digit * 64, draw=False)
        (folder / "README.md").write_bytes(labels_card())
    return output


@pytest.mark.lengthy
def test_the_labels_of_one_model_and_of_all(labels, load_dataset):
    one = labels / f"model={'0' * 12}"
    for name in ("clips", "tracks", "frames"):
        read = pandas.read_parquet(one / name)
        num_rows = len(read)
        assert num_rows > 2
        assert set(read["model"]) == {"0" * 12}
        assert {f"p_{emotion}" for emotion in EMOTIONS} <= set(read.columns)
        assert polars.scan_parquet(f"{labels}/*/{name}/**/*.parquet").collect().height == 2 * num_rows
        rows = duckdb.sql(f"from '{labels}/*/{name}/**/*.parquet'").to_arrow_table().to_pylist()
        assert sorted({row["model"] for row in rows}) == ["0" * 12, "1" * 12]
        assert all(row["probabilities"] is None or row["p_Sad"] == row["probabilities"]["Sad"] for row in rows)
        assert load_dataset(str(one), name)["train"].num_rows == num_rows
        every = load_dataset("parquet", data_files=f"{labels}/*/{name}/**/*.parquet")
        assert every["train"].num_rows == 2 * num_rows
    assert "num_tracks" in load_dataset(str(one))["train"].column_names


def test_counts_are_whole_numbers_and_a_single_file_reads_too(labels):
    clips = pandas.read_parquet(next((labels / f"model={'0' * 12}" / "clips").rglob("*.parquet")))
    counts = [name for name in clips.columns if name.startswith("num_")]
    assert {name for name in counts if clips[name].dtype != "int64"} == {"num_persons"}  # Nobody linked them: null.


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """An output of preprocess with three examples in each of two splits."""
    output = tmp_path_factory.mktemp("data")
    for split in ("train", "test"):
        folder = output / "examples" / split
        folder.mkdir(parents=True)
        rows = [drawn_example(number, label="Happy", split=split) for number in range(3)]
        pq.write_table(table_of(rows, EXAMPLE_SCHEMA), folder / "one.parquet")
    (output / "README.md").write_bytes(examples_card(["test", "train"]))
    (output / "summary.json").write_text("{}")
    return output


def documented_lines():
    """Every line of code in the section for other tools, of examples and of labels."""
    section = JOBS_README.read_text().partition("\n## Read by other tools\n")[2].partition("\n## ")[0]
    return [code for line in section.splitlines() if line.startswith("|") for code in re.findall(r"`([^`]+)`", line)]


def num_rows(read):
    """Rows of what any of the libraries gives."""
    if isinstance(read, polars.LazyFrame):
        return read.collect().height
    if isinstance(read, duckdb.DuckDBPyRelation):
        return len(read.fetchall())
    if isinstance(read, dict):
        return sum(split.num_rows for split in read.values())
    return read.count_rows() if hasattr(read, "count_rows") else len(read)


def test_every_library_is_documented_for_both_outputs():
    lines = documented_lines()
    for library in ("pandas", "polars", "duckdb", "pyarrow", "datasets"):
        for output in ("out/data", "out/labels"):
            assert any(line.startswith(f"{library}.") and output in line for line in lines), (library, output)


@pytest.mark.parametrize("line", documented_lines())
def test_the_documented_lines_read_every_row(line, examples, labels, load_dataset):
    datasets = SimpleNamespace(load_dataset=load_dataset)
    code = line.replace("out/data", str(examples)).replace("out/labels", str(labels)).replace("0123456789ab", "0" * 12)
    libraries = {"pandas": pandas, "polars": polars, "duckdb": duckdb, "pyarrow": pyarrow, "datasets": datasets}
    found = num_rows(eval(code, libraries))
    if "out/data" in line:
        assert found == 6
        return
    (table,) = (name for name in ("clips", "tracks", "frames") if name in line)
    files = labels.glob(f"model={'0' * 12 if '0123456789ab' in line else '*'}/{table}/**/*.parquet")
    assert found == sum(pq.read_metadata(path).num_rows for path in files) > 2


def test_examples_come_with_their_pictures(examples, load_dataset):
    found = load_dataset(str(examples))
    assert {name: rows.num_rows for name, rows in found.items()} == {"train": 3, "test": 3}
    assert found["train"][0]["face_jpeg"].size == (32, 32)
