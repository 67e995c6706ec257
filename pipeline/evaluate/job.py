"""A checkpoint and examples come in; metrics, beside the paper's, go out as JSON, Markdown and a page.

Two levels, named apart: an *example* is one face of one frame, as the paper counts on CAER-S; a *clip* is labelled by
the mean probability over its faces, as `score` labels clips. Where each clip is one image the two are the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.progress import track
from torch import nn

from pipeline import report
from pipeline.dataset.batches import EvaluationBatches, load_batches, num_loader_processes
from pipeline.dataset.dataset import ExampleDataset
from pipeline.dataset.description import read_description
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.metrics import confusion_matrix, metrics_of
from pipeline.evaluate.tables import markdown_of, print_evaluation
from pipeline.faces.devices import resolve_device
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.predict import predict, reads_of, softmax
from pipeline.records.vocabulary import UsageError
from pipeline.report.paper import network_of
from pipeline.runtime.console import print_line
from pipeline.storage.redaction import redacted, redacted_values
from pipeline.storage.store import Storage


def evaluate(
    data_url: str,
    checkpoint_url: str,
    *,
    splits: Sequence[str] = ("validation", "test"),
    batch_size: int = 64,
    device: str = "auto",
    loader_processes: int | None = None,
    cache_dir: str | None = None,
) -> dict[str, Any]:
    """The metrics of a run's best checkpoint on each of `splits`, ready for JSON.

    `result["splits"][split]` is `metrics_of` the split's examples: num_examples, top1_accuracy, macro_f1,
    per_class_accuracy, confusion_matrix; and, as "clip_level", the same of its clips, with num_clips. Beside it: data,
    manifest_sha256, checkpoint, checkpoint_sha256, trained_on_manifest_sha256, epoch, model, network (`network_of`).
    Raises UsageError where the checkpoint or the data can't be used, and for a split that is empty or unlabelled.
    """
    checkpoint = load_checkpoint(checkpoint_url, which="best")
    chosen = resolve_device(device)
    loader_processes = num_loader_processes(loader_processes, device=chosen)
    model, description = checkpoint.model.to(chosen).eval(), checkpoint.config["model"]
    datasets = {
        split: ExampleDataset(
            data_url,
            split=split,
            cache_dir=cache_dir,
            **reads_of(description),
        )
        for split in splits
    }
    return {
        "data": redacted(data_url),
        "dataset": asdict(read_description(data_url)),
        "manifest_sha256": next(iter(datasets.values())).manifest.sha256,
        "checkpoint": redacted(checkpoint_url),
        "checkpoint_sha256": checkpoint.info["checkpoint_sha256"],
        "trained_on_manifest_sha256": checkpoint.info["manifest_sha256"],
        "epoch": checkpoint.info["epoch"],
        "model": description,
        "network": network_of(checkpoint.config),
        "splits": {
            split: _split_metrics(
                model,
                examples,
                batch_size=batch_size,
                device=chosen,
                loader_processes=loader_processes,
                flip=description.get("flip_at_test", False),
            )
            for split, examples in datasets.items()
        },
    }


def _split_metrics(model: nn.Module, examples: ExampleDataset, **options: Any) -> dict[str, Any]:
    probabilities, clip_ids = predict_examples(model, examples, **options)
    predictions = probabilities.argmax(axis=1)
    clip_labels, clip_predictions = clips_of_examples(clip_ids, examples.labels, probabilities=probabilities)
    clip_level = metrics_of(confusion_matrix(clip_labels, clip_predictions))
    clip_level = {"num_clips": clip_level.pop("num_examples"), **clip_level}
    return {**metrics_of(confusion_matrix(examples.labels, predictions)), "clip_level": clip_level}


def predict_examples(
    model: nn.Module,
    examples: ExampleDataset,
    *,
    batch_size: int,
    device: str,
    loader_processes: int = 0,
    flip: bool = False,
) -> tuple[np.ndarray, list[str]]:
    """Probabilities `(num_examples, 7)` float64 and the clip of each example, in the order of the rows.

    Raises UsageError where a probability is not finite.
    """
    batches = EvaluationBatches(examples, batch_size=batch_size)
    loader = load_batches(batches, range(len(batches)), processes=loader_processes, device=device)
    console = Console(stderr=True)
    shown = track(loader, examples.split, console=console, transient=True, disable=not console.is_terminal)
    logits = np.concatenate([logits for _, logits in predict(model, shown, device=device, flip=flip)])
    probabilities = softmax(logits)
    if not np.isfinite(probabilities).all():
        raise UsageError(
            f"split {examples.split}: the network gives probabilities that are not finite; its training diverged, so"
            " evaluate another run"
        )
    return probabilities, examples.column("clip_id")


def clips_of_examples(
    clip_ids: Sequence[str], labels: np.ndarray, *, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions of the clips, each `(num_clips,)`, sorted by clip_id.

    A clip's prediction is the emotion with the largest mean probability over its examples, `probabilities`
    `(num_examples, 7)`.
    """
    clips, clip_of_example = np.unique(np.asarray(clip_ids), return_inverse=True)
    sums = np.zeros((len(clips), probabilities.shape[1]))
    np.add.at(sums, clip_of_example, probabilities)  # the sum and the mean have one argmax
    clip_labels = np.zeros(len(clips), dtype=np.int64)
    clip_labels[clip_of_example] = labels  # a clip has one label
    return clip_labels, sums.argmax(axis=1)


def write_evaluation(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate --checkpoint, write evaluation.md, report.html, config.yaml and last evaluation.json, print the tables.

    Gives what `evaluate` gives, and raises what it raises.
    """
    assert config.data
    assert config.checkpoint
    evaluation = evaluate(
        config.data,
        config.checkpoint,
        splits=config.splits,
        batch_size=config.batch_size,
        device=config.device,
        loader_processes=config.loader_processes,
        cache_dir=config.cache_dir,
    )
    title = f"Evaluation of {evaluation['model']['name']}"
    output = Storage(config.output)
    output.put("evaluation.md", markdown_of(evaluation).encode())
    output.put("report.html", report.evaluation_page(evaluation, title=title).encode())
    output.put("config.yaml", yaml.safe_dump(redacted_values(asdict(config)), sort_keys=False).encode())
    output.put("evaluation.json", json.dumps(evaluation, indent=1, allow_nan=False).encode())
    console = Console()
    print_evaluation(evaluation, console)
    print_line(f"Written to {config.output}: evaluation.json, evaluation.md, report.html")
    return evaluation
