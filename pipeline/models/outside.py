"""Networks from outside, as one that is called like ours: pixels as they want them in, columns of classes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.dataset.dataset import IMAGENET_MEAN, IMAGENET_STD
from pipeline.models.sidecar import Sidecar
from pipeline.records.vocabulary import UsageError

GREY = (0.299, 0.587, 0.114)  # BT.601


class OutsideNetwork(nn.Module, ABC):
    """`model(face, context)` of ImageNet-normalised RGB `(B, 3, height, width)` to logits `(B, classes)`."""

    def __init__(self, sidecar: Sidecar, *, where: str) -> None:
        super().__init__()
        self.sidecar, self.where = sidecar, where

    @abstractmethod
    def outputs(self, images: Sequence[Tensor]) -> Tensor:
        """Its own output (B, outputs) float32 for its own inputs, each (B, C, H, W) float32 as its sidecar says."""

    @property
    def gives_affect(self) -> bool:
        """Whether its output has valence or arousal."""
        return self.sidecar.affect_columns != (None, None)

    def forward(self, face: Tensor, context: Tensor) -> Tensor:
        return self.with_affect(face, context)[:, :-2]

    def with_affect(self, face: Tensor, context: Tensor) -> Tensor:
        """`forward`, and behind the logits valence and arousal, -1 to 1, NaN where it gives none: (B, classes + 2)."""
        images = {"face": face, "context": context}
        if (cut_px := self.sidecar.cut_px) is not None:
            start = (self.sidecar.face_px - cut_px) // 2
            images["face"] = face[:, :, start : start + cut_px, start : start + cut_px]
        values = self.outputs([self._pixels(images[name]) for name in self.sidecar.inputs])
        if values.shape != (len(face), len(self.sidecar.outputs)):
            raise UsageError(
                f"checkpoint {self.where}: it gives {tuple(values.shape)}, its sidecar names"
                f" {len(self.sidecar.outputs)} outputs of {len(face)} faces"
            )
        if not torch.isfinite(values).all():
            raise UsageError(
                f"checkpoint {self.where}: it gives values that are not finite; check scale, mean and std of its"
                " sidecar, or take another model"
            )
        chosen = values[:, list(self.sidecar.columns)]
        if self.sidecar.gives == "probabilities":
            chosen = chosen.clamp(min=1e-12).log()
        unknown = torch.full((len(face),), torch.nan, device=values.device)
        affect = [unknown if at is None else values[:, at].clamp(-1, 1) for at in self.sidecar.affect_columns]
        return torch.cat([chosen, torch.stack(affect, dim=1)], dim=1).to(face.device)

    def _pixels(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float32 as the sidecar wants them."""
        sidecar = self.sidecar

        def of_channels(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=images.device).view(-1, 1, 1)

        pixels = (images.float() * of_channels(IMAGENET_STD) + of_channels(IMAGENET_MEAN)) * 255
        if sidecar.colour == "bgr":
            pixels = pixels.flip(1)
        elif sidecar.colour == "grey":
            pixels = (pixels * of_channels(GREY)).sum(dim=1, keepdim=True)
        return ((pixels / sidecar.scale - of_channels(sidecar.mean)) / of_channels(sidecar.std)).contiguous()


def line_of(error: BaseException) -> str:
    """What a library that runs such a network says of it, in a line."""
    return " ".join(str(error).split())[:300]
