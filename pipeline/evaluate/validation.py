"""Metrics of a network on batches, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from pipeline.dataset.dataset import Batch, normalised
from pipeline.evaluate.metrics import confusion_matrix, metrics_of
from pipeline.records.vocabulary import EMOTIONS


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterator[Batch] | DataLoader[Batch],
    *,
    device: torch.device,
    autocast: bool = False,
    world_size: int = 1,
) -> dict[str, Any]:
    """`metrics_of` all examples of all ranks, their mean cross-entropy `loss` in nats, and their `temperature`.

    Each rank brings its own batches, possibly none; what is gathered over ranks is examples, so none counts twice.
    """
    model.eval()
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    found = [(np.empty((0, len(EMOTIONS)), np.float32), np.empty(0, np.int64))]
    for batch in batches:
        face, context, labels = move_batch(batch, device=device, layout=layout)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            logits = model(face, context).float()
        found.append((logits.cpu().numpy(), labels.cpu().numpy()))
    own = tuple(np.concatenate(parts) for parts in zip(*found, strict=True))
    ranks: list[Any] = [own]
    if world_size > 1:
        ranks = [None] * world_size
        dist.all_gather_object(ranks, own)
    logits, labels = (np.concatenate(parts) for parts in zip(*ranks, strict=True))
    counts = confusion_matrix(labels, logits.argmax(axis=1))
    loss = float(cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)))
    return {"loss": loss, "temperature": fitted_temperature(logits, labels), **metrics_of(counts)}


def fitted_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T of softmax(logits / T) with the least cross-entropy, from 0.05 to 20 (Guo et al. 2017); 1.0 of no examples.

    logits: (N, 7), labels: (N,) int64.
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


def move_batch(batch: Batch, *, device: torch.device, layout: torch.memory_format) -> tuple[Tensor, Tensor, Tensor]:
    """Face and context (B, 3, H, W) float32, normalised on the device: bytes travel, not floats. Labels (B,)."""
    face, context = (
        normalised(images.to(device, non_blocking=True)).contiguous(memory_format=layout)
        for images in (batch.face, batch.context)
    )
    return face, context, batch.labels.to(device, non_blocking=True)
