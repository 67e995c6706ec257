"""The study of real faces, on drawn ones: what is left out, that it learns, goes on, and what it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.fer2013 import Fer2013Config, fer2013, print_fer2013
from benchmarks.fer2013_images import SPLITS, read_splits, without_duplicates
from benchmarks.fer2013_training import augmented
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.checkpoint_info import committed_epochs, read_checkpoint_info
from pipeline.records.vocabulary import EMOTIONS, UsageError


def drawn(emotion: int, seed: int) -> np.ndarray:
    """(48, 48) uint8: bars whose direction is the class, and noise that makes every picture another."""
    y, x = np.mgrid[:48, :48] / 48
    angle = np.pi * emotion / len(EMOTIONS)
    bars = np.sin(18 * (np.cos(angle) * x + np.sin(angle) * y))
    return np.clip(128 + 70 * bars + np.random.default_rng(seed).normal(0, 25, (48, 48)), 0, 255).astype(np.uint8)


def write(image: np.ndarray, folder: Path, split: str, emotion: str, name: str) -> None:
    path = folder / split / emotion / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path.with_suffix(".jpg"), quality=95)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    seed = 0
    for split, count in zip(SPLITS, (24, 6, 6), strict=True):
        for index, emotion in enumerate(EMOTIONS):
            for number in range(count):
                write(drawn(index, seed), folder, split, emotion, f"{number:03d}")
                seed += 1
    return folder


@pytest.fixture(scope="module")
def studied(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fer2013Config, dict]:
    output = str(tmp_path_factory.mktemp("study") / "out")
    config = Fer2013Config(study="fer2013", data=str(data), output=output, epochs=2)
    return config, fer2013(config)


def test_a_picture_of_two_splits_stays_in_the_later_one_and_one_of_two_labels_goes(data: Path, tmp_path: Path):
    folder = Path(shutil.copytree(data, tmp_path / "faces"))
    in_test, own = drawn(0, 9001), drawn(2, 9002)
    write(in_test, folder, "test", "Anger", "x")
    write(in_test, folder, "train", "Anger", "x")
    write(in_test[:, ::-1], folder, "train", "Anger", "mirrored")
    write(in_test, folder, "validation", "Anger", "x")
    write(own, folder, "train", "Fear", "x")
    write(own, folder, "train", "Fear", "again")
    write(drawn(3, 9003), folder, "train", "Happy", "x")
    write(drawn(3, 9003), folder, "train", "Sad", "x")
    write(np.full((48, 48), 7, np.uint8), folder, "train", "Sad", "blank")
    before, (kept, first, counts) = read_splits(folder), without_duplicates(read_splits(folder))
    clean = without_duplicates(read_splits(data))[0]
    assert counts.train_blank == 1
    assert counts.train_seen_in_validation_or_test == 2
    assert counts.train_repeated == 1
    assert counts.train_under_two_labels == 2
    assert counts.validation_seen_in_test == 1
    assert counts.equal_files_in_two_splits == counts.equal_files_under_two_labels == 1
    assert len(kept["train"]) == len(clean["train"]) + 1  # one of the two equal ones
    assert len(kept["validation"]) == len(clean["validation"])
    assert len(kept["test"]) == len(before["test"])
    assert first.all()


@pytest.mark.lengthy
def test_the_study_learns_what_the_pictures_show_and_its_baseline_is_a_checkpoint_like_any_other(studied):
    config, found = studied
    baseline = f"{config.output}/baseline"
    loaded, run = load_checkpoint(baseline), load_checkpoint(f"{config.output}/run")
    face = torch.randn(4, 3, 48, 48)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(face, face), run.model(face, face), atol=0.05, rtol=0.05)
    assert loaded.info["metrics"]["num_examples"] == 42
    assert loaded.info["data"]["per_class"] == dict.fromkeys(EMOTIONS, 24)
    assert loaded.config["preprocessing"]["detector"] == "dlib-cnn"
    assert Path(baseline, "checkpoints").stat().st_size < 5_000_000
    assert sum(map(sum, found["test"]["confusion_matrix"])) == 42
    assert found == json.loads(Path(config.output, "fer2013.json").read_text())


def test_what_is_written_names_the_figures_and_their_limits(studied, capsys: pytest.CaptureFixture):
    config, found = studied
    card = Path(config.output, "baseline", "card.md").read_text()
    for said in ("web faces of 2013", "research", "Not for", f"{100 * found['test']['top1_accuracy']:.1f} %"):
        assert said.lower() in card.lower()
    assert all(f"| {emotion} | 6 |" in card for emotion in EMOTIONS)
    print_fer2013(found)
    assert f"{100 * found['test']['top1_accuracy']:.2f}" in capsys.readouterr().out


@pytest.mark.lengthy
def test_a_run_that_was_stopped_goes_on_at_its_last_epoch(studied, tmp_path: Path):
    config, _ = studied
    output = tmp_path / "out"
    shutil.copytree(config.output, output)
    again = Fer2013Config(study="fer2013", data=config.data, output=str(output), epochs=3)
    before = read_checkpoint_info(str(output / "run"), "last")["history"]
    fer2013(again)
    after = read_checkpoint_info(str(output / "run"), "last")["history"]
    assert committed_epochs(str(output / "run"))[-1] == 3
    assert after[:2] == before


@pytest.mark.lengthy
def test_more_time_than_allowed_is_not_taken(data: Path, tmp_path: Path):
    found = fer2013(
        Fer2013Config(study="fer2013", data=str(data), output=str(tmp_path / "out"), epochs=500, minutes=0.01)
    )
    assert len(found["history"]) < 500


@pytest.mark.parametrize("px", [32, 40, 48])
def test_augmented_faces_are_standardised_whatever_their_light(px: int):
    images = torch.from_numpy(np.stack([drawn(1, 1) // 8, drawn(1, 2), drawn(1, 3) // 3 + 150])).unsqueeze(1)
    seen = augmented(images, px=px, random=torch.Generator().manual_seed(0))
    assert seen.shape == (3, 1, px, px)
    assert seen.isfinite().all()
    assert seen.mean(dim=(1, 2, 3)).abs().max() < 0.5


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: shutil.rmtree(folder / "test" / "Disgust"), "Disgust"),
        (lambda folder: (folder / "train" / "Sad" / "000.jpg").write_bytes(b"no picture"), "000.jpg"),
        (lambda folder: Image.new("L", (64, 48)).save(folder / "train" / "Sad" / "000.jpg"), "64x48"),
    ],
)
def test_a_folder_that_is_not_fer2013_is_refused_by_name(data: Path, tmp_path: Path, spoil, named: str):
    folder = Path(shutil.copytree(data, tmp_path / "faces"))
    spoil(folder)
    with pytest.raises(UsageError, match=named):
        read_splits(folder)
