"""A network and batches in, logits out: the one loop that predicts; and a checkpoint that labels examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.dataset.dataset import Batch, batch_of, normalised
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.checkpoint_info import temperature_of
from pipeline.models.claims import model_classes
from pipeline.records.faces import Example


@torch.inference_mode()
def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device | str,
    autocast: bool = False,
    flip: bool = False,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Each batch with its logits, (B, classes) float32.

    Args:
        model: on `device`; it is set to evaluation mode.
        batches: read as they are needed.
        device: where the model is.
        autocast: run the forward pass in bfloat16.
        flip: take the mean of the logits of each pair and of its mirror image.
    """
    model.eval()
    device = torch.device(device)
    for batch in batches:
        face, context = move_images(batch, device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            logits = model(face, context).float()
            if flip:
                logits = (logits + model(face.flip(3), context.flip(3)).float()) / 2
        yield batch, logits.cpu().numpy()


def move_images(batch: Batch, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Face and context (B, 3, H, W) float32, normalised on the device: bytes travel, not floats."""
    layout = memory_layout(device)
    face, context = (
        normalised(images.to(device, non_blocking=True)).contiguous(memory_format=layout)
        for images in (batch.face, batch.context)
    )
    return face, context


def memory_layout(device: torch.device) -> torch.memory_format:
    """The order in memory in which convolutions are fastest on the device."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def softmax(logits: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    """Probabilities (N, classes) float64 of logits of that shape, divided by the temperature."""
    return torch.from_numpy(logits).double().div(temperature).softmax(dim=1).numpy()


class Predictor:
    """A loaded network: examples in, probabilities out, at the checkpoint's temperature. classes: in their order."""

    def __init__(self, checkpoint: str, *, which: Any, device: str, batch_size: int) -> None:
        loaded = load_checkpoint(checkpoint, which)
        self.sha256: str = loaded.info["checkpoint_sha256"]
        self._temperature = temperature_of(loaded.info)
        self._device = device
        model = loaded.model.to(self._device)
        self._gives_affect: bool = getattr(model, "gives_affect", False)
        self._model = _WithAffect(model) if self._gives_affect else model
        described = loaded.config["model"]
        self._reads = reads_of(described)
        self._flip: bool = described.get("flip_at_test", False)
        self._batch_size = batch_size
        self.classes = model_classes(loaded.config)

    def predict(self, examples: Sequence[Example]) -> np.ndarray:
        """Softmax of the logits over the temperature: (len(examples), classes) float32."""
        return self.predict_with_affect(examples)[0]

    def predict_with_affect(self, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray | None]:
        """`predict`, and valence and arousal (len(examples), 2) float32, -1 to 1, NaN for one that the model does not
        give; None where it gives neither."""
        starts = range(0, len(examples), self._batch_size)
        batches = (batch_of(examples[start : start + self._batch_size], **self._reads) for start in starts)
        found = [np.empty((0, len(self.classes) + 2 * self._gives_affect), np.float32)]
        found += [given for _, given in predict(self._model, batches, device=self._device, flip=self._flip)]
        given = np.concatenate(found)
        logits, affect = given[:, : len(self.classes)], given[:, len(self.classes) :]
        probabilities = softmax(logits, temperature=self._temperature).astype(np.float32)
        return probabilities, affect if self._gives_affect else None


class _WithAffect(nn.Module):
    """A network whose output has valence and arousal behind its logits: (B, classes + 2)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model: Any = model

    def forward(self, face: Tensor, context: Tensor) -> Tensor:
        return self._model.with_affect(face, context)


def reads_of(described: Mapping[str, Any]) -> dict[str, Any]:
    """face_px, context_px and context_crop of a checkpoint's description of its model, as `batch_of` takes them."""
    return {
        "face_px": described["face_px"],
        "context_px": described["context_px"],
        "context_crop": described.get("context_crop", "none"),
    }
