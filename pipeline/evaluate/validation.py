"""Metrics of a network on batches, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

from pipeline.dataset.dataset import Batch
from pipeline.evaluate.calibration import expected_calibration_error, undecided_below
from pipeline.evaluate.metrics import confusion_matrix, metrics_of
from pipeline.models.predict import predict, softmax
from pipeline.records.vocabulary import EMOTIONS


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    autocast: bool = False,
    world_size: int = 1,
    flip: bool = False,
    classes: Sequence[str] = EMOTIONS,
) -> dict[str, Any]:
    """`metrics_of` all examples of all ranks, their mean cross-entropy `loss` in nats, and their `temperature`.

    At that temperature: `ece`, and `abstain_below`, under which a guess was right less than half of the time.
    Each rank brings its own batches, possibly none; what is gathered over ranks is examples, so none counts twice.
    flip: see `predict`.
    """
    found = [(np.empty((0, len(classes)), np.float32), np.empty(0, np.int64))]
    predicted = predict(model, batches, device=device, autocast=autocast, flip=flip)
    found += [(logits, batch.labels.numpy()) for batch, logits in predicted]
    own = tuple(np.concatenate(parts) for parts in zip(*found, strict=True))
    ranks: list[Any] = [own]
    if world_size > 1:
        ranks = [None] * world_size
        dist.all_gather_object(ranks, own)
    logits, labels = (np.concatenate(parts) for parts in zip(*ranks, strict=True))
    counts = confusion_matrix(labels, logits.argmax(axis=1), num_classes=len(classes))
    loss = float(cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)))
    temperature = fitted_temperature(logits, labels)
    probabilities = softmax(logits, temperature=temperature)
    calibration = {
        "temperature": temperature,
        "ece": expected_calibration_error(probabilities, labels),
        "abstain_below": undecided_below(probabilities, labels),
    }
    return {"loss": loss, **calibration, **metrics_of(counts, classes=classes)}


def fitted_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T of softmax(logits / T) with the least cross-entropy, from 0.05 to 20 (Guo et al. 2017); 1.0 of no examples.

    logits: (N, classes), labels: (N,) int64.
    """
    if not len(labels) or not np.isfinite(logits).all():
        return 1.0
    scores = logits.astype(np.float64)
    of_label = scores[np.arange(len(labels)), labels].mean()
    low, high = 1 / 20, 20.0
    for _ in range(40):  # the cross-entropy is convex in 1 / T, so its slope changes sign once
        inverse = math.sqrt(low * high)
        weights = np.exp((scores - scores.max(axis=1, keepdims=True)) * inverse)
        expected = ((weights / weights.sum(axis=1, keepdims=True)) * scores).sum(axis=1).mean()
        low, high = (low, inverse) if expected > of_label else (inverse, high)
    return 1 / math.sqrt(low * high)
