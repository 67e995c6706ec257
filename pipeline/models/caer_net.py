"""The paper's ablations of CAHFW-Net (Table 4, Fig. 9): the same call, `model(face, context)` to logits `(B, 7)`."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.models.cahfw import (
    CAHFWNet,
    ContextHighlight,
    StreamWeights,
    classification_head,
    pool,
    pooled_norms,
)
from pipeline.models.encoders import CHANNELS, encode_images, image_encoder
from pipeline.records.vocabulary import AttentionGain, Encoder, PooledNorm


class CAHFWNetWithoutRecalibration(CAHFWNet):
    """SE + CA + AA (Fig. 9b): CAHFW-Net whose element recalibration passes its map through."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.face_recalibration = nn.Identity()
        self.context_recalibration = nn.Identity()


class CAERNetS(nn.Module):
    """SE + AF (Fig. 9a): two streams, weighted and concatenated; 2,389,004 parameters.

    The options are those of CAHFWNet, so that the ablation differs in its blocks alone. With attention_gain "paper" and
    pooled_norm "batch" it is the public CAER-Net-S of Lee et al. (ICCV 2019; ruling): 2,390,028 parameters.
    """

    def __init__(
        self,
        *,
        attention_gain: AttentionGain = "area",
        dropout: float = 0.5,
        pooled_norm: PooledNorm = "none",
        encoder: Encoder = "paper",
    ) -> None:
        super().__init__()
        self.face_encoder = image_encoder(encoder)
        self.context_encoder = image_encoder(encoder)
        self.context_highlight = ContextHighlight(gain=attention_gain)
        self.weighting = StreamWeights()
        self.classify = classification_head(2 * CHANNELS, dropout=dropout)
        self.pooled_norms = pooled_norms(pooled_norm, 2)

    def forward(self, face: Tensor, context: Tensor) -> Tensor:
        """Logits `(B, 7)` of two `(B, 3, height, width)`, ImageNet-normalised RGB (Eq. 16-17)."""
        face = encode_images(self.face_encoder, face, name="face")  # (B, C, H, W)
        context = self.context_highlight(encode_images(self.context_encoder, context, name="context"))  # (B, C, H, W)
        face, context = pool(self.pooled_norms, face, context)  # (B, C) each
        weights = self.weighting(face, context)  # (B, 2)
        return self.classify(torch.cat([face * weights[:, :1], context * weights[:, 1:]], dim=1))  # (B, 7)

    def context_attention(self, context: Tensor) -> Tensor:
        """Where the context branch looks: `(B, H, W)`, summing to 1 over the places (A of Eq. 6)."""
        return self.context_highlight.attention(encode_images(self.context_encoder, context, name="context"))


class SingleStream(nn.Module):
    """One stream of CAER-Net-S by itself, the face's or the highlighted context's: what one image alone can tell."""

    def __init__(
        self,
        *,
        reads: Literal["face", "context"],
        attention_gain: AttentionGain = "area",
        dropout: float = 0.5,
        pooled_norm: PooledNorm = "none",
        encoder: Encoder = "paper",
    ) -> None:
        super().__init__()
        self.reads = reads
        self.encoder = image_encoder(encoder)
        self.highlight = ContextHighlight(gain=attention_gain) if reads == "context" else nn.Identity()
        self.classify = classification_head(CHANNELS, dropout=dropout)
        self.pooled_norms = pooled_norms(pooled_norm, 1)

    def forward(self, face: Tensor, context: Tensor) -> Tensor:
        """Logits `(B, 7)` of the image it reads, `(B, 3, height, width)`, ImageNet-normalised RGB."""
        images = face if self.reads == "face" else context
        features = self.highlight(encode_images(self.encoder, images, name=self.reads))  # (B, C, H, W)
        return self.classify(*pool(self.pooled_norms, features))  # (B, 7)
