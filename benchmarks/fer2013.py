"""Real expressions: a small face network on FER2013's official splits, chosen on PublicTest, told on PrivateTest once.

OUTPUT/run/          every epoch's checkpoint, as of any training; it goes on where it was stopped
OUTPUT/baseline/     the best one in half precision with its card: what `--checkpoint baseline` is made of
OUTPUT/fer2013.json  and fer2013.md: what was found
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from benchmarks.fer2013_card import ONE_LINE, card_of, markdown
from benchmarks.fer2013_images import SPLITS, Split, class_counts, read_splits, without_duplicates
from benchmarks.fer2013_training import Training, logits_of, train_faces
from benchmarks.tables import table
from pipeline.evaluate.calibration import expected_calibration_error, undecided_below
from pipeline.evaluate.metrics import confusion_matrix, metrics_of
from pipeline.evaluate.validation import fitted_temperature
from pipeline.models.checkpoint import LoadedCheckpoint, load_checkpoint, save_checkpoint
from pipeline.models.checkpoint_info import put, write_best
from pipeline.models.predict import softmax
from pipeline.preprocess.config import ExtractConfig
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import log_status
from pipeline.storage.store import Storage

# Of 120 of FER2013's pictures Dlib's box was 0.80 of the side (median; quartiles 0.80 and 0.95): 0.03 to 0.13 a side.
BOX_MARGIN = 0.1


@dataclass(frozen=True, kw_only=True)
class Fer2013Config:
    """Trains a small face network on FER2013 and measures it: 28,709 faces of the web, 48 px, grey, seven classes."""

    study: str
    """fer2013."""
    data: str
    """Folder with train/, validation/ and test/, each CLASS/NAME.jpg (48x48): the challenge's official splits."""
    output: str = "build/fer2013"
    """Local folder of the run, the baseline, fer2013.json and fer2013.md; a run that is there goes on."""
    epochs: int = Training.epochs
    """Passes over the training pictures."""
    minutes: float = Training.minutes
    """Longest time to train; the schedule shortens itself to it on a slow or busy machine."""
    seed: int = 0
    """Of the first weights, the order and the augmentation."""
    threads: int = 2
    """Threads of the training; on a busy machine one is faster than two."""

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("minutes", 0.01), ("threads", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name} {getattr(self, name)}: give {least} or more")
        if not Storage(self.output).is_local:
            raise UsageError(f"--output {self.output}: give a local folder")


def fer2013(config: Fer2013Config) -> dict[str, Any]:
    """Train what is missing, export the best epoch, measure that on test; what fer2013.json holds."""
    torch.set_num_threads(config.threads)
    storage = Storage(config.output)
    splits, first_in_test, duplicates = without_duplicates(read_splits(config.data))
    left_out = {name: count for name, count in asdict(duplicates).items() if name != "files"}
    log_status(f"pictures: {duplicates.files}; left out or counted: {left_out}")
    train, validation, test = (splits[name] for name in SPLITS)
    data = {
        "name": "FER2013",
        "synthetic": False,
        "num_examples": len(train),
        "per_class": class_counts(train.labels),
        "sha256": _sha256_of(train),
        "duplicates": asdict(duplicates),
    }
    run = f"{storage.path()}/run"
    training = Training(epochs=config.epochs, minutes=config.minutes, seed=config.seed)
    train_faces(run, train=train, validation=validation, training=training, data=data, announce=_announce)
    best = load_checkpoint(run, "best")
    baseline = f"{storage.path()}/baseline"
    export(best, baseline, validation=validation, data=data)
    found = measure(baseline, test, first=first_in_test, history=best.info["history"])
    put(config.output, "fer2013.json", content=(json.dumps(found, indent=1) + "\n").encode())
    put(config.output, "fer2013.md", content=markdown(found).encode())
    put(baseline, "card.md", content=card_of(found).encode())
    return found


def export(best: LoadedCheckpoint, baseline: str, *, validation: Split, data: dict[str, Any]) -> None:
    """A run of one checkpoint: half precision, calibrated on validation with the weights that are written."""
    model = best.model.half().float()
    logits = logits_of(model, validation.images)
    temperature = fitted_temperature(logits, validation.labels)
    probabilities = softmax(logits, temperature=temperature)
    metrics = {
        **metrics_of(confusion_matrix(validation.labels, logits.argmax(axis=1))),
        "temperature": temperature,
        "ece": expected_calibration_error(probabilities, validation.labels),
        "abstain_below": undecided_below(probabilities, validation.labels),
    }
    # The page shows the crops too, so they are kept larger than the 48 px that the network reads.
    reading = ExtractConfig(box_margin=BOX_MARGIN, retry_upsample=True)
    epoch = best.info["epoch"]
    save_checkpoint(
        baseline,
        epoch=epoch,
        step=best.info["step"],
        model=model.half(),
        optimizer_state={},
        config={
            **best.config,
            "preprocessing": {field.name: getattr(reading, field.name) for field in fields(reading)},
        },
        info={
            "metrics": metrics,
            "temperature": temperature,
            "manifest_sha256": best.info["manifest_sha256"],
            "data": data,
            "card": ONE_LINE,
            "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "history": best.info["history"],
        },
    )
    write_best(baseline, epoch=epoch, top1_accuracy=metrics["top1_accuracy"])


def measure(run_url: str, test: Split, *, first: np.ndarray, history: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of a run's best checkpoint on the whole test split, and on it without what is there twice (`first`)."""
    loaded = load_checkpoint(run_url, "best")
    logits = logits_of(loaded.model, test.images)
    probabilities = softmax(logits, temperature=loaded.info["temperature"])
    right = logits.argmax(axis=1) == test.labels
    return {
        "checkpoint_sha256": loaded.info["checkpoint_sha256"],
        "epoch": loaded.info["epoch"],
        "parameters": sum(weight.numel() for weight in loaded.model.parameters()),
        "temperature": loaded.info["temperature"],
        "validation": loaded.info["metrics"],
        "test": {
            **metrics_of(confusion_matrix(test.labels, logits.argmax(axis=1))),
            "ece": expected_calibration_error(probabilities, test.labels),
            "ece_without_temperature": expected_calibration_error(softmax(logits), test.labels),
            "top1_accuracy_without_repeated": float(right[first].mean()),
        },
        "data": loaded.info["data"],
        "training": loaded.config["training"],
        "history": history,
    }


def print_fer2013(found: dict[str, Any]) -> None:
    """The figures on a terminal."""
    from rich.console import Console

    rows = [
        (
            name,
            f"{100 * found[name]['top1_accuracy']:.2f}",
            f"{found[name]['ece']:.3f}",
            f"{found[name]['macro_f1']:.3f}",
        )
        for name in ("validation", "test")
    ]
    Console().print(table("FER2013, face-resnet", ("split", "top-1, %", "ECE", "macro-F1"), rows))
    accuracies = found["test"]["per_class_accuracy"]
    Console().print(
        table("test, each class", ("class", "right, %"), [(k, f"{100 * v:.1f}") for k, v in accuracies.items()])
    )


def _announce(row: dict[str, Any]) -> None:
    log_status(
        f"epoch {row['epoch']}: loss {row['loss']:.3f}, validation top-1 {row['validation_top1_accuracy']:.2%},"
        f" {row['images_per_second']:.0f} pictures/s, {row['seconds'] / 60:.1f} min",
    )


def _sha256_of(split: Split) -> str:
    return hashlib.sha256(split.images.tobytes() + split.labels.tobytes()).hexdigest()
