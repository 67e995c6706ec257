"""A run's best checkpoint and its validation split in; what it looked at and where it was most wrong, for the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.dataset.dataset import ExampleDataset, normalised
from pipeline.evaluate.wrong import MAX_WRONG, wrong_of_clips
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.claims import model_classes
from pipeline.models.predict import predict, reads_of, softmax
from pipeline.report.examined import Examined

# CPU-seconds at 224 px, where a pair costs 2.8 GMAC: about 10. The page comes after the training, not instead of it.
MAX_EXAMINED = 128


BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class Examination:
    """metrics: of the whole validation split after the best epoch. attended: the first example of each emotion.
    wrong: the most wrong first, one a clip, of `num_examined` examples spread over the split."""

    metrics: dict[str, Any]
    attended: list[Examined]
    wrong: list[Examined]
    num_examined: int


@torch.inference_mode()
def examine(run_url: str, data_url: str, *, cache_dir: str | None = None, pictures: bool = True) -> Examination:
    """Look at up to 128 validation examples with the best checkpoint, on CPU; at none without `pictures`."""
    checkpoint = load_checkpoint(run_url, which="best")
    metrics = checkpoint.info["metrics"]
    if not pictures:
        return Examination(metrics=metrics, attended=[], wrong=[], num_examined=0)
    model, described = checkpoint.model.eval(), checkpoint.config["model"]
    examples = ExampleDataset(
        data_url,
        split="validation",
        cache_dir=cache_dir,
        classes=model_classes(checkpoint.config),
        **reads_of(described),
    )
    rows = np.unique(np.linspace(0, len(examples) - 1, min(MAX_EXAMINED, len(examples))).round().astype(int))
    batches = (examples.read_batch(rows[start : start + BATCH_SIZE]) for start in range(0, len(rows), BATCH_SIZE))
    flip = described.get("flip_at_test", False)
    logits = np.concatenate([found for _, found in predict(model, batches, device="cpu", flip=flip)])
    probabilities = softmax(logits).astype(np.float32)  # (N, classes)
    labels = examples.labels[rows]  # (N,)
    all_ids = examples.column("clip_id")
    wrong = wrong_of_clips(probabilities, labels, [all_ids[row] for row in rows])
    first = [int(np.flatnonzero(labels == emotion)[0]) for emotion in range(len(examples.classes)) if emotion in labels]

    attend: Any = getattr(model, "context_attention", None)

    def examined(index: int) -> Examined:
        row = int(rows[index])
        batch = examples.read_batch(rows[index : index + 1])
        return Examined(
            where=examples.place_of(row),
            label=examples.classes[labels[index]],
            face=batch.face[0].permute(1, 2, 0).numpy(),
            context=batch.context[0].permute(1, 2, 0).numpy(),
            attention=attend(normalised(batch.context))[0].numpy() if attend else None,  # (H, W)
            probabilities=probabilities[index],
            classes=examples.classes,
        )

    return Examination(
        metrics=metrics,
        attended=[examined(index) for index in first],
        wrong=[examined(index) for index in wrong[:MAX_WRONG]],
        num_examined=len(rows),
    )
