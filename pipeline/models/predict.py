"""A checkpoint in, probabilities out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.dataset.dataset import normalised, read_pair
from pipeline.models.checkpoint import load_checkpoint
from pipeline.records.faces import Example
from pipeline.records.vocabulary import EMOTIONS, UsageError


class Predictor:
    """A loaded network: examples in, probabilities out, at the checkpoint's temperature."""

    def __init__(self, checkpoint: str, *, which: Any, device: str, batch_size: int) -> None:
        loaded = load_checkpoint(checkpoint, which)
        self.sha256: str = loaded.info["checkpoint_sha256"]
        self._temperature = temperature_of(loaded.info)
        self._device = torch.device(device)
        self._model = loaded.model.to(self._device)
        self._face_px: int = loaded.config["model"]["face_px"]
        self._context_px: int = loaded.config["model"]["context_px"]
        self._batch_size = batch_size

    @torch.inference_mode()
    def predict(self, examples: Sequence[Example]) -> np.ndarray:
        """Softmax of the logits over the temperature: (len(examples), 7) float32 in the order of EMOTIONS."""
        found = [np.empty((0, len(EMOTIONS)), np.float32)]
        for start in range(0, len(examples), self._batch_size):
            part = examples[start : start + self._batch_size]
            pairs = [read_pair(example, face_px=self._face_px, context_px=self._context_px) for example in part]
            face = torch.from_numpy(np.stack([face for face, _ in pairs])).permute(0, 3, 1, 2)  # (B, 3, H, W)
            context = torch.from_numpy(np.stack([context for _, context in pairs])).permute(0, 3, 1, 2)
            logits = self._model(normalised(face.to(self._device)), normalised(context.to(self._device)))  # (B, 7)
            found.append((logits.float() / self._temperature).softmax(dim=1).cpu().numpy())
        return np.concatenate(found)


def temperature_of(info: dict[str, Any]) -> float:
    """What the checkpoint's logits are divided by; 1.0 where it was never fitted. Raises UsageError if it is none."""
    temperature = info.get("temperature", 1.0)
    if not isinstance(temperature, int | float) or not math.isfinite(temperature) or temperature <= 0:
        raise UsageError(f"the checkpoint's temperature is {temperature!r}; it must be above 0: train it again")
    return float(temperature)
