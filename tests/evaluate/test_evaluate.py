"""Evaluation on real shards and a real checkpoint: exact counts, two levels, and the paper's numbers beside ours."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from example_shards import PX, write_shards
from rich.console import Console

from pipeline.dataset.dataset import ExampleDataset, normalised
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.job import clips_of_examples, evaluate, predict_examples, write_evaluation
from pipeline.evaluate.tables import markdown_of, print_evaluation, result_tables
from pipeline.faces.crops import encode_image
from pipeline.models.build import build_model
from pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.models.checkpoint_info import write_best
from pipeline.records.faces import Box, Example
from pipeline.records.vocabulary import EMOTIONS, UsageError
from pipeline.report.paper import PAPER_NETWORKS, PAPER_TABLE_2, PAPER_TABLE_3, PAPER_TABLE_4, network_of
from pipeline.storage.store import Storage
from tests.conftest import S3

pytestmark = pytest.mark.lengthy

LABELS = {"validation": ["Happy", "Sad"], "test": ["Happy", "Happy", "Anger", "Fear"]}  # of clips, two faces each


def example(split: str, clip: int, frame: int, label: str | None) -> Example:
    random = np.random.default_rng([len(split), clip, frame])
    face, context = (encode_image(random.integers(0, 256, (PX, PX, 3), dtype=np.uint8)) for _ in range(2))
    return Example(
        clip_id=f"{split}-{clip}",
        frame_index=frame,
        pts_seconds=frame / 25,
        face_index=0,
        box=Box(4, 4, 12, 12),
        face_score=1.0,
        frame_width=64,
        frame_height=64,
        face_jpeg=face,
        context_jpeg=context,
        label=label,
        split=split,
    )


def write_data(folder: Path, labels: Mapping[str, Sequence[str | None]]) -> str:
    """A preprocessed corpus of one shard per split, two faces a clip; its path."""
    write_shards(
        folder,
        [
            [example(split, clip, frame, label) for clip, label in enumerate(of_clips) for frame in range(2)]
            for split, of_clips in labels.items()
        ],
    )
    return str(folder)


def write_run(url: str, model: torch.nn.Module, name: str = "cahfw") -> None:
    """A run whose best checkpoint, epoch 1, holds `model`."""
    described = {"name": name, "options": {}, "face_px": PX, "context_px": PX}
    save_checkpoint(
        url,
        epoch=1,
        step=10,
        model=model,
        optimizer_state={},
        config={"model": described, "training": {}, "preprocessing": {}},
        info={"metrics": {}, "manifest_sha256": "0" * 64},
    )
    write_best(url, epoch=1, top1_accuracy=0.5)


def always(emotion: str) -> torch.nn.Module:
    """A network that says one emotion whatever it sees."""
    model = build_model("cahfw")
    last = model.fusion.classify[3]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    last.bias.data[EMOTIONS.index(emotion)] = 5.0
    return model


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_data(tmp_path / "data", LABELS)


@pytest.fixture
def run(tmp_path: Path) -> str:
    write_run(str(tmp_path / "run"), always("Happy"))
    return str(tmp_path / "run")


def test_counts_are_exact_for_examples_and_for_clips(data: str, run: str, tmp_path: Path):
    evaluation = evaluate(data, run, batch_size=3, device="cpu", cache_dir=str(tmp_path / "cache"))
    assert list(evaluation["splits"]) == ["validation", "test"]
    test = evaluation["splits"]["test"]
    happy = EMOTIONS.index("Happy")
    expected = np.zeros((7, 7), dtype=int)
    expected[happy, happy], expected[EMOTIONS.index("Anger"), happy], expected[EMOTIONS.index("Fear"), happy] = 4, 2, 2
    assert test["confusion_matrix"] == expected.tolist()
    assert (test["num_examples"], test["top1_accuracy"]) == (8, 0.5)
    assert test["per_class_accuracy"]["Happy"] == 1.0
    assert test["per_class_accuracy"]["Sad"] is None
    assert test["clip_level"]["confusion_matrix"] == (expected // 2).tolist()
    assert (test["clip_level"]["num_clips"], test["clip_level"]["top1_accuracy"]) == (4, 0.5)
    assert "num_examples" not in test["clip_level"]
    assert evaluation["splits"]["validation"]["num_examples"] == 4


def test_result_names_what_it_was_measured_on(data: str, run: str, tmp_path: Path):
    evaluation = evaluate(data, run, splits=["test"], device="cpu", cache_dir=str(tmp_path / "cache"))
    assert evaluation["manifest_sha256"] == hashlib.sha256(Storage(data).read("manifest.json")).hexdigest()
    assert evaluation["checkpoint_sha256"] == load_checkpoint(run).info["checkpoint_sha256"]
    assert (evaluation["model"]["name"], evaluation["epoch"]) == ("cahfw", 1)
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation


@pytest.mark.parametrize("loader_processes", [0, 2])
def test_probabilities_are_in_row_order_whoever_decodes(data: str, tmp_path: Path, loader_processes: int):
    torch.manual_seed(0)
    model = build_model("cahfw").eval()
    examples = ExampleDataset(data, split="test", cache_dir=tmp_path / "cache")
    probabilities, clip_ids = predict_examples(
        model, examples, batch_size=3, device=torch.device("cpu"), loader_processes=loader_processes
    )
    batch = examples.read_batch(np.arange(8))
    with torch.no_grad():
        expected = model(normalised(batch.face), normalised(batch.context)).softmax(dim=1)
    np.testing.assert_allclose(probabilities, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    assert clip_ids == [f"test-{clip}" for clip in (0, 0, 1, 1, 2, 2, 3, 3)]


def test_clip_takes_the_emotion_of_the_largest_mean_probability():
    probabilities = np.array([[0.6, 0.4], [0.1, 0.9], [0.6, 0.4], [0.7, 0.3]])
    # Two of clip b's three faces say 0, but the mean says 1.
    labels, predictions = clips_of_examples(["b", "b", "b", "a"], np.array([1, 1, 1, 0]), probabilities=probabilities)
    np.testing.assert_array_equal(labels, [0, 1])
    np.testing.assert_array_equal(predictions, [0, 1])


def test_network_that_diverged_is_an_error_and_not_a_score(data: str, tmp_path: Path):
    model = always("Happy")
    torch.nn.init.constant_(model.fusion.classify[3].bias, float("nan"))
    write_run(str(tmp_path / "diverged"), model)
    with pytest.raises(UsageError, match=r"split test: .*not finite"):
        evaluate(data, str(tmp_path / "diverged"), splits=["test"], device="cpu", cache_dir=str(tmp_path / "cache"))


def test_unlabelled_and_empty_splits_are_refused(run: str, tmp_path: Path):
    data = write_data(tmp_path / "data", {"test": ["Happy", None]})
    with pytest.raises(UsageError, match="2 unlabelled examples of split test"):
        evaluate(data, run, splits=["test"], device="cpu", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="split validation holds no examples"):
        evaluate(data, run, splits=["validation"], device="cpu", cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["cahfw", "se-ca-aa", "se-af", "caer-net-s", "resnet50"])
def test_our_accuracy_stands_in_the_papers_row_of_the_same_network(data: str, run: str, tmp_path: Path, name: str):
    evaluation = evaluate(data, run, splits=["test"], device="cpu", cache_dir=str(tmp_path / "cache"))
    evaluation["model"]["name"] = name
    pretrained = "finetune" if name == "resnet50" else "none"
    evaluation["network"] = network_of({"model": evaluation["model"], "training": {"pretrained": pretrained}})
    tables = {table.title.split(":")[0]: table for table in result_tables(evaluation)}
    assert tables["Table 3"].rows[3] == ["Happy", *["56.21"] * (name == "resnet50"), "63.15", "80.50", "100.00"]
    assert tables["Table 3"].rows[5][-3:] == ["74.11", "85.21", "–"]
    rows = {
        "cahfw": (["CAHFW-Net", "83.76", "50.00"], ["SE + CA + ER + AA", "83.76", "50.00"]),
        "se-ca-aa": (["se-ca-aa", "–", "50.00"], ["SE + CA + AA", "80.26", "50.00"]),
        "se-af": (["CAER-Net-S", "73.51", "50.00"], ["SE + AF", "73.51", "50.00"]),
        "caer-net-s": (["CAER-Net-S", "73.51", "50.00"], ["SE + AF", "73.51", "50.00"]),
        "resnet50": (["Fine-tuned ResNet", "68.46", "50.00"], ["resnet50", "–", "50.00"]),
    }
    for title, row in zip(("Table 2", "Table 4"), rows[name], strict=True):
        assert [found for found in tables[title].rows if found[2] != "–"] == [row]


def test_papers_numbers_agree_with_each_other():
    assert round(sum(PAPER_TABLE_3["CAHFW-Net"]) / 7, 2) == PAPER_TABLE_2["CAHFW-Net"] == 83.76
    assert list(PAPER_TABLE_4.values())[::2] == [PAPER_TABLE_2["CAER-Net-S"], PAPER_TABLE_2["CAHFW-Net"]]
    assert PAPER_TABLE_3.keys() == PAPER_TABLE_2.keys()
    assert {paper.table_2 for paper in PAPER_NETWORKS} - {None} == PAPER_TABLE_2.keys()
    assert {paper.table_4 for paper in PAPER_NETWORKS} - {None} == PAPER_TABLE_4.keys()


@pytest.mark.lengthy
def test_everything_is_written_to_object_storage_and_printed(data: str, s3: S3, tmp_path: Path, capsys):
    write_run(s3.url("run"), always("Happy"))
    s3.fs.put(data, f"{s3.bucket}/data", recursive=True)
    config = EvaluateConfig(
        data=s3.url("data"),
        checkpoint=s3.url("run"),
        output=s3.url("report"),
        device="cpu",
        cache_dir=str(tmp_path / "cache"),
    )
    evaluation = write_evaluation(config)
    written = Storage(config.output)
    assert json.loads(written.read("evaluation.json")) == evaluation
    assert EvaluateConfig(**yaml.safe_load(written.read("config.yaml"))) == config
    markdown = written.read("evaluation.md").decode()
    assert markdown == markdown_of(evaluation)
    assert "| CAHFW-Net | 83.76 | 50.00 | 50.00 |" in markdown
    assert written.read("report.html").lstrip().lower().startswith(b"<!doctype html>")
    printed = capsys.readouterr().out
    assert "Table 3: accuracy on each emotion" in printed
    assert "80.50" in printed


def test_the_page_shows_what_was_most_wrong_once_a_clip(data: str, run: str, tmp_path: Path):
    options = {"data": data, "checkpoint": run, "device": "cpu", "cache_dir": str(tmp_path / "cache")}
    pages = {}
    for name, more in {"shown": {}, "blurred": {"blur_faces": True}, "left out": {"no_thumbnails": True}}.items():
        write_evaluation(EvaluateConfig(output=str(tmp_path / name), **options, **more))
        pages[name] = (tmp_path / name / "report.html").read_text()
    wrong = [label for labels in LABELS.values() for label in labels if label != "Happy"]
    for name in ("shown", "blurred"):
        captions = re.findall(r"<figcaption>(.*?)<br>true (\w+) \(\d+%\); said Happy", pages[name])
        assert sorted(label for _, label in captions) == sorted(wrong)
        assert len({where for where, _ in captions}) == len(captions)
        assert pages[name].count("data:image/jpeg;base64") == 2 * len(captions)
    assert pages["shown"] != pages["blurred"]
    assert "data:image/jpeg" not in pages["left out"]
    assert "left out by --no-thumbnails" in pages["left out"]


def test_terminal_tables_show_the_confusion_matrix(data: str, run: str, tmp_path: Path):
    console = Console(record=True, width=120, file=io.StringIO())
    cache_dir = str(tmp_path / "cache")
    print_evaluation(evaluate(data, run, splits=["test"], device="cpu", cache_dir=cache_dir), console)
    text = console.export_text()
    assert "rows true, columns predicted" in text
    happy = next(line for line in text.splitlines() if line.count("│") == 9 and "Happy" in line)
    assert [cell.strip() for cell in happy.strip("│").split("│")] == ["Happy", "0", "0", "0", "4", "0", "0", "0"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": ""}, "data is empty"),
        ({"output": ""}, "output is empty"),
        ({"checkpoint": None}, "give either --checkpoint"),
        ({"compare": ("r",)}, "give either --checkpoint"),
        ({"splits": ()}, "name each of train, validation, test at most once"),
        ({"splits": ("test", "test")}, "at most once"),
        ({"splits": ("dev",)}, "splits dev"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"device": "gpu"}, "device 'gpu' is not known"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there"),
    ],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, object], message: str):
    with pytest.raises(UsageError, match=message):
        EvaluateConfig(**{"data": "a", "checkpoint": "b", "output": "c", **wrong})  # type: ignore[arg-type]
