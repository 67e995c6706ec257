"""A checkpoint and examples come in; metrics, beside the paper's, go out as JSON, Markdown and a page.

Two levels, named apart: an *example* is one face of one frame, as the paper counts on CAER-S; a *clip* is labelled by
the mean probability over its persons, and beside it over its faces. Where each clip is one image all are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.progress import track
from torch import nn

from pipeline import report
from pipeline.dataset.batches import EvaluationBatches, load_batches, num_loader_processes
from pipeline.dataset.dataset import ExampleDataset
from pipeline.dataset.description import describe_data
from pipeline.evaluate.calibration import calibration_of
from pipeline.evaluate.card import evaluation_card
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.coverage import Coverage, coverage_of
from pipeline.evaluate.groups import metrics_by_group, read_groups
from pipeline.evaluate.intervals import intervals_of
from pipeline.evaluate.metrics import confusion_matrix, metrics_of
from pipeline.evaluate.persons import clips_by_persons
from pipeline.evaluate.tables import markdown_of, notes_of, print_evaluation
from pipeline.evaluate.wrong import most_wrong
from pipeline.faces.devices import resolve_device
from pipeline.models.checkpoint import LoadedCheckpoint, load_checkpoint
from pipeline.models.claims import model_classes
from pipeline.models.predict import predict, reads_of, softmax, temperature_of
from pipeline.records.vocabulary import UsageError
from pipeline.report.examined import Examined
from pipeline.report.paper import differences, network_of
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
    groups: str | None = None,
) -> dict[str, Any]:
    """The metrics of a run's best checkpoint on each of `splits`, ready for JSON.

    `result["splits"][split]` is `metrics_of` the split's examples: num_examples, top1_accuracy, macro_f1,
    per_class_accuracy, confusion_matrix; their intervals (`intervals_of`) and calibration, before the checkpoint's
    temperature and after; and, as "clip_level", the same of its clips labelled by persons, with num_clips, num_persons
    and top1_accuracy_by_faces. coverage: num_labelled clips, num_without_face of them, and top1_accuracy_of_all, in
    which these count as wrong; where the data has a ledger. groups: `metrics_by_group` of a CSV, where one is given.
    Beside splits: data, faces (as they were preprocessed), manifest_sha256, checkpoint, checkpoint_sha256,
    trained_on_manifest_sha256, epoch, model, network (`network_of`), differs (`paper.differences`), notes.
    Raises UsageError where the checkpoint, the data or the groups can't be used, and for a split that is empty or
    unlabelled.
    """
    return _evaluated(
        data_url,
        checkpoint_url,
        splits=splits,
        batch_size=batch_size,
        device=device,
        loader_processes=loader_processes,
        cache_dir=cache_dir,
        groups=groups,
        pictures=False,
    )[0]


def _evaluated(
    data_url: str,
    checkpoint_url: str,
    *,
    splits: Sequence[str],
    batch_size: int,
    device: str,
    loader_processes: int | None,
    cache_dir: str | None,
    groups: str | None,
    pictures: bool,
) -> tuple[dict[str, Any], dict[str, list[Examined]]]:
    """What `evaluate` gives, and of each split the examples on which the network was most wrong (none without
    `pictures`)."""
    table = None if groups is None else read_groups(groups)
    checkpoint = load_checkpoint(checkpoint_url, which="best")
    chosen = resolve_device(device)
    loader_processes = num_loader_processes(loader_processes, device=chosen)
    checkpoint.model.to(chosen)
    description, covered = checkpoint.config["model"], coverage_of(data_url)
    reads = reads_of(description)
    classes = model_classes(checkpoint.config)
    datasets = {
        split: ExampleDataset(data_url, split=split, cache_dir=cache_dir, classes=classes, **reads) for split in splits
    }
    options = {"batch_size": batch_size, "device": chosen, "loader_processes": loader_processes}
    found = {
        split: _split_metrics(checkpoint, examples, groups=table, covered=covered, pictures=pictures, **options)
        for split, examples in datasets.items()
    }
    manifest, dataset = next(iter(datasets.values())).manifest, asdict(describe_data(data_url))
    evaluation: dict[str, Any] = {
        "data": redacted(data_url),
        "dataset": dataset,
        "faces": manifest.config.get("faces"),
        "split_scheme": manifest.config.get("split_scheme"),
        "manifest_sha256": manifest.sha256,
        "checkpoint": redacted(checkpoint_url),
        "checkpoint_sha256": checkpoint.info["checkpoint_sha256"],
        "trained_on_manifest_sha256": checkpoint.info["manifest_sha256"],
        "epoch": checkpoint.info["epoch"],
        "model": description,
        "classes": list(classes),
        "network": network_of(checkpoint.config),
        "differs": differences(checkpoint.config, dataset=dataset),
        "splits": {split: metrics for split, (metrics, _) in found.items()},
    }
    wrong = {split: examples for split, (_, examples) in found.items()}
    return {**evaluation, "notes": notes_of(evaluation)}, wrong


def _split_metrics(
    checkpoint: LoadedCheckpoint,
    examples: ExampleDataset,
    *,
    groups: Mapping[str, Mapping[str, str]] | None,
    covered: Coverage | None,
    pictures: bool,
    **options: Any,
) -> tuple[dict[str, Any], list[Examined]]:
    temperature = temperature_of(checkpoint.info)
    flip = checkpoint.config["model"].get("flip_at_test", False)
    logits, clip_ids = predict_logits(checkpoint.model, examples, flip=flip, **options)
    probabilities, labels = softmax(logits, temperature=temperature), examples.labels
    predictions = probabilities.argmax(axis=1)
    clips = clips_by_persons(examples, probabilities, num_frames=covered and covered.num_frames)
    of_clips = clips.probabilities.argmax(axis=1)
    by_faces = clips_of_examples(clip_ids, labels, probabilities=probabilities)
    counts = partial(confusion_matrix, num_classes=len(examples.classes))
    measured = partial(metrics_of, classes=examples.classes)
    intervals = partial(intervals_of, num_classes=len(examples.classes))
    clip_level = measured(counts(clips.labels, of_clips))
    num_clips, num_right = clip_level.pop("num_examples"), int((clips.labels == of_clips).sum())
    found = {
        **measured(counts(labels, predictions)),
        "intervals": intervals(labels, predictions, clip_ids=clip_ids, groups=examples.column("group_name")),
        "calibration": {
            "temperature": temperature,
            "before": calibration_of(softmax(logits), labels),
            "after": calibration_of(probabilities, labels),
        },
        "clip_level": {
            "num_clips": num_clips,
            **clip_level,
            "num_persons": int(clips.num_persons.sum()),
            "top1_accuracy_by_faces": float(np.equal(*by_faces).mean()),
            "calibration": calibration_of(clips.probabilities, clips.labels),
            "intervals": intervals(clips.labels, of_clips, clip_ids=clips.clip_ids, groups=clips.groups),
        },
    }
    if covered is not None and (counts := covered.splits.get(examples.split)):
        # Deleted clips may have left rows of other plans: never fewer than there are examples of.
        of_all = num_right / max(counts["num_labelled"], num_clips)
        found["coverage"] = {**counts, "top1_accuracy_of_all": of_all}
    if groups is not None:
        found["groups"] = metrics_by_group(groups, clips=clips, predictions=of_clips)
    return found, most_wrong(examples, probabilities, clip_ids) if pictures else []


def predict_logits(
    model: nn.Module,
    examples: ExampleDataset,
    *,
    batch_size: int,
    device: str,
    loader_processes: int = 0,
    flip: bool = False,
) -> tuple[np.ndarray, list[str]]:
    """Logits `(num_examples, classes)` float32 and the clip of each example, in the order of the rows.

    Raises UsageError where one is not finite.
    """
    batches = EvaluationBatches(examples, batch_size=batch_size)
    loader = load_batches(batches, range(len(batches)), processes=loader_processes, device=device)
    console = Console(stderr=True)
    shown = track(loader, examples.split, console=console, transient=True, disable=not console.is_terminal)
    logits = np.concatenate([logits for _, logits in predict(model, shown, device=device, flip=flip)])
    if not np.isfinite(logits).all():
        raise UsageError(
            f"split {examples.split}: the network gives probabilities that are not finite; its training diverged, so"
            " evaluate another run"
        )
    return logits, examples.column("clip_id")


def predict_examples(model: nn.Module, examples: ExampleDataset, **options: Any) -> tuple[np.ndarray, list[str]]:
    """Probabilities `(num_examples, classes)` float64, at temperature 1, and clips, as `predict_logits` gives them."""
    logits, clip_ids = predict_logits(model, examples, **options)
    return softmax(logits), clip_ids


def clips_of_examples(
    clip_ids: Sequence[str], labels: np.ndarray, *, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions of the clips by their faces, each `(num_clips,)`, sorted by clip_id.

    A clip's prediction is the emotion with the largest mean probability over its examples, `probabilities`
    `(num_examples, classes)`.
    """
    clips, clip_of_example = np.unique(np.asarray(clip_ids), return_inverse=True)
    sums = np.zeros((len(clips), probabilities.shape[1]))
    np.add.at(sums, clip_of_example, probabilities)  # the sum and the mean have one argmax
    clip_labels = np.zeros(len(clips), dtype=np.int64)
    clip_labels[clip_of_example] = labels  # a clip has one label
    return clip_labels, sums.argmax(axis=1)


def write_evaluation(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate --checkpoint; write evaluation.md, a card, report.html, config.yaml, last evaluation.json; print tables.

    Gives what `evaluate` gives, and raises what it raises.
    """
    assert config.data
    assert config.checkpoint
    evaluation, wrong = _evaluated(
        config.data,
        config.checkpoint,
        splits=config.splits,
        batch_size=config.batch_size,
        device=config.device,
        loader_processes=config.loader_processes,
        cache_dir=config.cache_dir,
        groups=config.groups,
        pictures=not config.no_thumbnails,
    )
    title = f"Evaluation of {evaluation['model']['name']}"
    output = Storage(config.output)
    output.put("evaluation.md", markdown_of(evaluation).encode())
    output.put("README.md", evaluation_card(evaluation))
    shown = {"no_thumbnails": config.no_thumbnails, "blur_faces": config.blur_faces}
    output.put("report.html", report.evaluation_page(evaluation, title=title, wrong=wrong, **shown).encode())
    output.put("config.yaml", yaml.safe_dump(redacted_values(asdict(config)), sort_keys=False).encode())
    output.put("evaluation.json", json.dumps(evaluation, indent=1, allow_nan=False).encode())
    console = Console()
    print_evaluation(evaluation, console)
    print_line(f"Written to {config.output}: evaluation.json, evaluation.md, report.html")
    return evaluation
