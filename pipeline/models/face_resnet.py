"""`face-resnet`: a small residual network that reads a grey face of 48 px, for faces without a context.

Residual blocks of He et al. (CVPR 2016) with a first layer that halves nothing: at 48 px a stem for 224 px would throw
away what little there is. Every image is brought to mean 0 and deviation 1 by itself, so that how light a room is or
what a camera does with contrast is not learned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.records.vocabulary import EMOTIONS, UsageError

WIDTHS = (32, 64, 128, 256)
BLOCKS = (1, 1, 2, 1)
MIN_PX = 16  # the three halvings leave 2 x 2 of it
# Grey by BT.601, of images that are normalised by ImageNet's deviations. Their means only shift the grey, and
# `standardised` takes any shift away.
GREY_WEIGHTS = (0.299 * 0.229, 0.587 * 0.224, 0.114 * 0.225)


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a way around them; `stride` halves the map."""

    def __init__(self, channels_in: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.around = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.conv1(features)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.around(features))


class FaceResNet(nn.Module):
    """1,523,047 parameters. Called as every network is: `model(face, context)`; the context is not read.

    In evaluation the logits are the mean over the face and its mirror image.
    """

    def __init__(self, *, dropout: float = 0.3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTHS[0], 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        blocks: list[nn.Module] = []
        channels_in = WIDTHS[0]
        for stage, (channels, count) in enumerate(zip(WIDTHS, BLOCKS, strict=True)):
            for block in range(count):
                blocks.append(Block(channels_in, channels, stride=2 if stage and not block else 1))
                channels_in = channels
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels_in, len(EMOTIONS))

    def forward(self, face: Tensor, context: Tensor) -> Tensor:  # noqa: ARG002
        """Logits `(B, 7)` of faces `(B, 3, height, width)`, ImageNet-normalised RGB; 48 px is what it is made for.

        Raises UsageError for another shape.
        """
        if face.ndim != 4 or face.shape[1] != 3 or min(face.shape[2:]) < MIN_PX:
            raise UsageError(
                f"face: shape {tuple(face.shape)} is not (B, 3, height, width) with sides of {MIN_PX} px or more;"
                " resize the images, e.g. to 48 px"
            )
        weights = torch.tensor(GREY_WEIGHTS, dtype=face.dtype, device=face.device).view(1, 3, 1, 1)
        grey = standardised((face * weights).sum(dim=1, keepdim=True))  # (B, 1, H, W)
        logits = self.logits(grey)
        if not self.training:
            logits = (logits + self.logits(grey.flip(3))) / 2
        return logits

    def logits(self, grey: Tensor) -> Tensor:
        """Logits `(B, 7)` of `standardised` grey images `(B, 1, height, width)`."""
        features = self.blocks(self.stem(grey))  # (B, 256, H / 8, W / 8)
        return self.head(self.dropout(features.mean(dim=(2, 3))))


def standardised(grey: Tensor) -> Tensor:
    """Each image of `(B, 1, height, width)` at mean 0 and deviation 1; a flat one is 0 everywhere."""
    centred = grey - grey.mean(dim=(2, 3), keepdim=True)
    return centred / centred.square().mean(dim=(2, 3), keepdim=True).sqrt().clamp(min=1e-3)
