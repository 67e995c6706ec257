"""The studies of training, at a tiny budget: what they write, that they resume, and that the comparison is fair."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from ledgers import audited

from benchmarks.attention_use import attention_use
from benchmarks.ingest import IngestConfig, ingest, print_ingested
from benchmarks.learn import LearnConfig, learn, learn_markdown, print_learned
from benchmarks.made_examples import write_made_examples
from pipeline.dataset.dataset import ExampleDataset
from pipeline.dataset.shards import read_manifest
from pipeline.ledger.ledger import Ledger
from pipeline.models.build import build_model
from pipeline.models.cahfw import CrossAttention
from pipeline.models.predict import predict
from pipeline.records.vocabulary import EMOTIONS, UsageError

pytestmark = pytest.mark.ray

pytest.importorskip("skimage", reason="the face comes from scikit-image")

JOB = str(Path(__file__).resolve().parents[2] / "jobs" / "benchmark.py")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A drawn corpus of 42 training and 21 test examples at 32 px."""
    folder = str(tmp_path_factory.mktemp("made") / "data")
    write(folder, px=32)
    return folder


def write(folder: str, *, px: int) -> str:
    counts = {"train": 2, "validation": 1, "test": 1}
    return write_made_examples(folder, frames_per_pair=counts, num_people=2, places_per_scene=1, px=px, seed=0)


def test_drawn_examples_are_a_preprocessed_corpus_with_every_class_equally_often(made: str, tmp_path: Path):
    examples = ExampleDataset(made, split="train", cache_dir=tmp_path)
    np.testing.assert_array_equal(np.bincount(examples.labels), [42 // len(EMOTIONS)] * len(EMOTIONS))
    batch = examples.read_batch(np.arange(42))
    assert batch.face.shape == batch.context.shape == (42, 3, 32, 32)
    assert (batch.context == 0).all(dim=1).any(dim=(1, 2)).all()  # each has its masked face
    assert audited(Ledger(made)).holds


def test_a_corpus_that_is_there_is_kept_and_one_of_other_settings_refused(made: str):
    assert write(made, px=32) == read_manifest(made).sha256
    with pytest.raises(UsageError, match="px"):
        write(made, px=16)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> LearnConfig:
    return LearnConfig(
        study="learn",
        output=str(tmp_path_factory.mktemp("learn")),
        networks=("se-af", "face-only"),
        seeds=1,
        train_examples=42,
        validation_examples=21,
        test_examples=21,
        people=2,
        places_per_scene=1,
        px=16,
        epochs=1,
        batch_size=16,
        processes=1,
    )


def test_every_network_is_trained_tested_and_told_and_nothing_is_done_twice(config: LearnConfig, capsys):
    results = learn(config)
    rows = {row["network"]: row for row in results["rows"]}
    assert list(rows) == ["se-af", "face-only"]
    assert rows["face-only"]["bound"] == pytest.approx(1 / 7)
    # The face's crop has no bearing on the class: a network that sees nothing else is right once in seven.
    assert rows["face-only"]["mean"] <= 2 / 7
    runs = sorted((Path(config.output) / "runs").iterdir())
    assert [run.name for run in runs] == ["face-only-seed-0.json", "se-af-seed-0.json"]
    written = [run.stat().st_mtime_ns for run in runs]
    assert sum(map(sum, json.loads(runs[0].read_text())["confusion_matrix"])) == 21
    assert (Path(config.output) / "learn.md").read_text() == learn_markdown(results)
    again = learn(replace(config, processes=2))
    assert again["rows"] == results["rows"]
    assert [run.stat().st_mtime_ns for run in runs] == written
    print_learned(again)
    assert "2 trainings, 2 of them done already" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_that_is_stopped_leaves_no_training_behind(tmp_path: Path):
    sizes = ("--train-examples", "42", "--validation-examples", "21", "--test-examples", "21", "--px", "16")
    flags = ("--networks", "cahfw", "--epochs", "100000", "--batch-size", "16", "--processes", "2", *sizes)
    log = tmp_path / "log"
    with log.open("w") as told:
        study = subprocess.Popen([sys.executable, JOB, "learn", "--output", tmp_path / "out", *flags], stderr=told)
    deadline = time.monotonic() + 120
    children = []
    while "0 of them done already" not in log.read_text() or len(children) < 3:  # two trainings and their tracker
        assert time.monotonic() < deadline, log.read_text()
        assert study.poll() is None, log.read_text()
        children = psutil.Process(study.pid).children(recursive=True)
        time.sleep(0.1)
    study.terminate()
    assert study.wait(timeout=60) == 130
    assert not psutil.wait_procs(children, timeout=60)[1]


def test_a_result_of_another_budget_is_not_taken_for_this_one(config: LearnConfig):
    results = learn(replace(config, epochs=2, networks=("face-only",)))
    (row,) = results["rows"]
    run = json.loads((Path(config.output) / "runs/face-only-seed-0.json").read_text())
    assert len(run["history"]) == 2
    assert row["top1_accuracies"] == [run["top1_accuracy"]]


def test_the_corpus_of_cues_has_bounds_and_results_of_its_own(config: LearnConfig):
    results = learn(replace(config, corpus="cues", networks=("context-only", "se-ca-aa")))
    assert results["settings"]["corpus"] == "cues"
    # No run of the other corpus, which lies in the same output, is among its rows.
    rows = {row["network"]: row for row in results["rows"]}
    assert {name: row["bound"] for name, row in rows.items()} == {"context-only": pytest.approx(11 / 18), "se-ca-aa": 1}
    assert not rows["context-only"]["cross_attention"]
    assert len(rows["se-ca-aa"]["cross_attention"]) == 1


def test_the_use_of_cross_attention_is_told(made: str, tmp_path: Path):
    examples = ExampleDataset(made, split="test", cache_dir=tmp_path)
    torch.manual_seed(0)
    model = build_model("se-ca-aa")
    keys = [module.key for module in model.modules() if isinstance(module, CrossAttention)]
    for parameter in (parameter for key in keys for parameter in key.parameters()):
        torch.nn.init.zeros_(parameter)  # no key anywhere: the plain mean, whosever they are
    ((batch, plain),) = predict(model, [examples.read_batch(np.arange(21))], device="cpu")
    right = (plain.argmax(1) == batch.labels.numpy()).mean()
    use = attention_use(model, examples, device="cpu")
    assert use == {"channels_mixed": pytest.approx(256), "top1_with_other_keys": right}
    for key in keys:
        torch.nn.init.normal_(key.weight, std=1e6)
    use = attention_use(model, examples, device="cpu")
    assert use is not None
    assert 1 <= use["channels_mixed"] < 64
    assert attention_use(build_model("se-af"), examples, device="cpu") is None


@pytest.mark.slow
def test_reading_is_measured_beside_a_cached_batch_and_the_plain_script(tmp_path: Path, capsys):
    config = IngestConfig(
        study="ingest", output=str(tmp_path), model="se-af", px=16, examples=42, batch_size=16, rounds=2, device="cpu"
    )
    results = ingest(config)
    assert json.loads((tmp_path / "ingest.json").read_text()) == results
    loops = {"training", "cached batch", "plain DDP", "loader alone", "decoded cache"}
    assert set(results["examples_per_second"]) == loops
    for name, values in results["examples_per_second"].items():
        assert len(values["values"]) == 2, name
        assert values["min"] > 0
    found = results["examples_per_second"]
    expected = np.divide(found["training"]["values"], found["plain DDP"]["values"])
    np.testing.assert_allclose(results["ratios"]["training / plain DDP"]["values"], expected)
    # se-af at 224 px is 1.77 GMAC a pair, two operations each, three passes.
    assert results["gflop_per_example"] == pytest.approx(1.77 * 2 * 3 * (16 / 224) ** 2, rel=0.02)
    print_ingested(results)
    assert "training / cached batch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config_class", "fields", "said"),
    [
        (LearnConfig, {"train_examples": 22}, "--train-examples 22: give a multiple of 21"),
        (LearnConfig, {"networks": ("cahfw", "other")}, "--networks other"),
        (LearnConfig, {"corpus": "places"}, "--corpus places: give one of scenes, cues"),
        (LearnConfig, {"output": "s3://bucket/x"}, "give a local folder"),
        (IngestConfig, {"px": 20}, "multiple of 16"),
        (IngestConfig, {"batch_size": 64, "examples": 42}, "at least --batch-size"),
    ],
)
def test_wrong_budgets_are_refused(config_class: type, fields: dict[str, object], said: str):
    with pytest.raises(UsageError, match=said):
        config_class(study="learn", **fields)


def test_the_job_knows_the_flags_of_each_study():
    ended = subprocess.run([sys.executable, JOB, "learn", "--px", "20"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "give a multiple of 16 pixels" in ended.stderr
