"""Other tools read examples and labels by the lines that jobs/README.md gives."""

import duckdb
import pandas
import polars
import pyarrow.parquet as pq
import pytest
from example_shards import drawn_example
from made_labels import CLIPS, make_labels

from pipeline.dataset.card import examples_card, labels_card
from pipeline.records.columns import table_of
from pipeline.records.faces import EXAMPLE_SCHEMA
from pipeline.records.vocabulary import EMOTIONS


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
    assert all(clips[name].dtype == "int64" for name in clips.columns if name.startswith("num_"))


def test_examples_come_with_their_pictures(tmp_path, load_dataset):
    for split in ("train", "test"):
        folder = tmp_path / "examples" / split
        folder.mkdir(parents=True)
        examples = [drawn_example(number, label="Happy", split=split) for number in range(3)]
        pq.write_table(table_of(examples, EXAMPLE_SCHEMA), folder / "one.parquet")
    (tmp_path / "README.md").write_bytes(examples_card(["test", "train"]))
    (tmp_path / "summary.json").write_text("{}")
    found = load_dataset(str(tmp_path))
    assert {name: rows.num_rows for name, rows in found.items()} == {"train": 3, "test": 3}
    assert found["train"][0]["face_jpeg"].size == (32, 32)
    assert len(pandas.read_parquet(tmp_path / "examples")) == 6
    assert polars.scan_parquet(tmp_path / "examples").collect().height == 6
    assert duckdb.sql(f"from '{tmp_path}/examples/**/*.parquet'").fetchall()[0]
