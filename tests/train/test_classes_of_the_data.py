"""A network of other classes than CAER's seven: trained, evaluated, compared, exported, gone on from."""

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from example_shards import drawn_example, write_corpus, write_shards

from pipeline import report
from pipeline.dataset.dataset import ExampleDataset
from pipeline.dataset.shards import read_manifest
from pipeline.evaluate.compare import compare
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.job import write_evaluation
from pipeline.models.build import MODELS, build_model
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.checkpoint_info import read_checkpoint_info
from pipeline.models.claims import model_classes
from pipeline.models.export_onnx import export_onnx
from pipeline.models.predict import Predictor
from pipeline.records.vocabulary import BACKBONES, EMOTIONS, UsageError
from pipeline.score.model import model_record
from pipeline.train.card import run_card
from pipeline.train.config import TrainConfig
from pipeline.train.job import summary_of
from pipeline.train.learner import TrainingStopped
from pipeline.train.network import check_model, load_initial, new_model, with_readings
from pipeline.train.worker import saved_run, train_worker

pytestmark = pytest.mark.usefixtures("one_thread")

EIGHT = ("Anger", "Contempt", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Very surprised")


def write(folder, classes=EIGHT, *, splits=(("train", 96), ("validation", 24), ("test", 24)), named=None):
    """named: what the manifest calls the classes."""
    shards = [
        [drawn_example(i, label=classes[i % len(classes)], split=split, classes=classes) for i in range(count)]
        for split, count in splits
    ]
    write_shards(folder, shards, classes=named or classes)


def config_of(folder, run="run", **changes):
    fields = {"cache_dir": str(folder / "cache"), "model": "se-af", "input_px": 16, "batch_size": 16, "epochs": 3}
    own = {"data": str(folder / "data"), "output": str(folder / run), "lr": 0.03, "input": "face"}
    return TrainConfig(**(own | fields | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    write(folder / "data")
    train_worker(config_of(folder, class_weights="balanced", label_smoothing=0.1, flooding=0.0))
    return folder


@pytest.mark.parametrize("name", [name for name in MODELS if name not in BACKBONES])
def test_every_network_has_an_output_a_class(name):
    model, px = build_model(name, num_classes=11).eval(), 32
    assert model(torch.zeros(2, 3, px, px), torch.zeros(2, 3, px, px)).shape == (2, 11)


@pytest.mark.lengthy
def test_a_training_learns_the_classes_of_its_data(made):
    info = read_checkpoint_info(str(made / "run"))
    assert model_classes(info["config"]) == EIGHT
    assert list(info["data"]["per_class"]) == list(EIGHT)
    assert info["metrics"]["top1_accuracy"] > 0.4  # chance is 1 in 8
    assert np.shape(info["metrics"]["confusion_matrix"]) == (8, 8)
    with (made / "run" / "metrics.csv").open(newline="") as file:
        assert {f"validation_accuracy_{name}" for name in EIGHT} < set(next(csv.DictReader(file)))
    last = read_checkpoint_info(str(made / "run"), "last")
    assert "| Very surprised | 12 |" in run_card(summary_of(last), last, info["metrics"]).decode()
    page = report.training_page(
        summary_of(last), last["history"], title="Training", best=info["metrics"], classes=EIGHT, settings={}
    )
    assert "guessing gets 12.5" in page
    assert "Contempt" in page
    assert "Beside the paper" not in page


def test_an_evaluation_speaks_of_the_models_classes(made, capsys):
    config = EvaluateConfig(
        data=str(made / "data"),
        checkpoint=str(made / "run"),
        output=str(made / "evaluation"),
        cache_dir=str(made / "cache"),
        splits=("test",),
    )
    evaluation = write_evaluation(config)
    assert evaluation["classes"] == list(EIGHT)
    metrics = evaluation["splits"]["test"]
    assert list(metrics["per_class_accuracy"]) == list(metrics["clip_level"]["per_class_accuracy"]) == list(EIGHT)
    low, high = metrics["intervals"]["top1_accuracy"]
    assert low <= metrics["top1_accuracy"] <= high
    told = (made / "evaluation" / "evaluation.md").read_text()
    assert re.search(r"^\| Very surprised \| – \| – \|", told, re.MULTILINE)
    assert "macro-F1 of 8" in told
    page = (made / "evaluation" / "report.html").read_text()
    assert "Guessing gets 12.5" in page
    assert "if this data is CAER-S" not in page
    assert "Contempt" in capsys.readouterr().out


def test_runs_of_other_classes_are_compared(made):
    comparison, _ = compare(
        EvaluateConfig(
            compare=(str(made / "run"),),
            data=str(made / "data"),
            output=str(made / "compared"),
            cache_dir=str(made / "cache"),
        )
    )
    assert comparison["classes"] == list(EIGHT)
    (table,) = (each for each in comparison["tables"] if each["title"].startswith("Table 3"))
    assert [row[0] for row in table["rows"]] == list(EIGHT)
    assert "Very surprised" in report.comparison_page(comparison, [], title="Compared")


@pytest.mark.lengthy
def test_the_run_and_its_onnx_label_by_these_classes(made):
    url, _ = export_onnx(str(made / "run"), str(made / "onnx"))
    examples = [drawn_example(i, label=None, split="test") for i in range(8)]
    one, other = (Predictor(each, which="best", device="cpu", batch_size=8) for each in (str(made / "run"), url))
    assert one.classes == other.classes == EIGHT
    np.testing.assert_allclose(one.predict(examples), other.predict(examples), atol=1e-4)
    assert "labels are Anger, Contempt" in " ".join(model_record(read_checkpoint_info(url)).facts()["words"])


def test_data_with_a_label_that_the_model_does_not_know_is_refused_with_both(made, tmp_path):
    write_corpus(tmp_path / "data", train=14, validation=7)
    examples = ExampleDataset(str(tmp_path / "data"), split="train", classes=(*EMOTIONS, "Contempt"))
    assert examples.labels.tolist() == [row % 7 for row in range(14)]
    with pytest.raises(UsageError, match=r"has the labels Contempt, Very surprised, and the classes are Anger"):
        ExampleDataset(str(made / "data"), split="train", classes=EMOTIONS)
    # The same emotion under another name is the same class.
    renamed = ("anger", "disgust", "fear", "happiness", "neutrality", "sadness", "surprise")
    assert ExampleDataset(str(tmp_path / "data"), split="train", classes=renamed).classes == renamed


def test_the_order_of_outputs_can_be_given(made):
    order = tuple(reversed(EIGHT))
    train_worker(config_of(made, "reversed", classes=order, epochs=1))
    config = load_checkpoint(str(made / "reversed")).config
    assert model_classes(config) == order
    assert ExampleDataset(str(made / "data"), split="train", classes=order).labels[:3].tolist() == [7, 6, 5]
    sha256 = read_manifest(str(made / "data")).sha256
    assert saved_run(config_of(made, "reversed"), sha256) is not None  # left open, it is as it was
    with pytest.raises(UsageError, match=r"--classes is Anger,.* here and Very surprised,.* there"):
        saved_run(config_of(made, "reversed", classes=EIGHT), sha256)


def test_classes_that_leave_out_one_of_the_data_are_refused(made):
    config = config_of(made, classes=EIGHT[:7])
    with pytest.raises(UsageError, match="the data has the classes Very surprised too; name them"):
        check_model(config, read_manifest(config.data))
    with pytest.raises(UsageError, match="--classes has 'a,b'"):
        config_of(made, classes=("a,b", "c"))


def test_a_class_without_an_example_stops_a_training(made, tmp_path):
    write(tmp_path / "data", EIGHT[:7], named=EIGHT, splits=(("train", 14), ("validation", 7)))
    config = config_of(tmp_path, epochs=1, batch_size=7)
    with pytest.raises(TrainingStopped, match="no example of Very surprised among 14"):
        train_worker(config)
    # One that the run of --init has learned is no fault.
    train_worker(replace(config, init=str(made / "run")))
    assert model_classes(read_checkpoint_info(config.output)["config"]) == EIGHT


def test_other_classes_go_on_from_what_a_run_knows(made):
    theirs = load_checkpoint(str(made / "run")).model.state_dict()
    others = ("Boredom", "happiness", *EIGHT[:4], *EIGHT[5:])
    config = with_readings(config_of(made, init=str(made / "run"), classes=others))
    model = new_model(config)
    before = model.state_dict()["classify.3.weight"].clone()
    load_initial(model, config)
    own = model.state_dict()
    assert torch.equal(own["classify.0.weight"], theirs["classify.0.weight"])
    assert torch.equal(own["classify.3.weight"][1:3], theirs["classify.3.weight"][[4, 0]])
    assert torch.equal(own["classify.3.weight"][0], before[0])


def test_baseline_can_be_gone_on_from_with_other_classes(tmp_path):
    write(tmp_path / "data", splits=(("train", 16), ("validation", 8)))
    options = {"model": "face-resnet", "input": "face", "input_px": 48, "epochs": 1, "batch_size": 8}
    train_worker(config_of(tmp_path, init="baseline", **options))
    info = read_checkpoint_info(str(tmp_path / "run"))
    assert model_classes(info["config"]) == EIGHT
    assert json.loads((tmp_path / "run" / "best.json").read_text())["epoch"] == 1
    assert info["pretrained_from"].startswith("checkpoint sha256")
