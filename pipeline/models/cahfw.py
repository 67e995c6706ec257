"""CAHFW-Net: a face crop and its context image in, the logits of the seven emotions out.

Zhou et al., "Emotion Recognition from Large-Scale Video Clips with Cross-Attention and Hybrid Feature Weighting Neural
Networks", IJERPH 2023, 20, 1400. The paper contradicts itself in places; where a docstring says "ruling", the code
follows the reading that trains. Shapes: B batch, C = 256 channels, H = W = input / 16 (14 at 224 px), D = H·W.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor, nn

from pipeline.models.encoders import (
    CHANNELS,
    check_equal_sides,
    convolution_block,
    encode_images,
    image_encoder,
)
from pipeline.records.vocabulary import (
    EMOTIONS,
    AttentionGain,
    Encoder,
    PooledNorm,
    RecalibrationScale,
    UsageError,
)


def check_options(
    *,
    attention_gain: str = "area",
    recalibration_scale: str = "sqrt",
    pooled_norm: str = "none",
    encoder: str = "paper",
) -> None:
    """Raise UsageError where an option is not one of those of the readings."""
    if attention_gain not in get_args(AttentionGain):
        raise UsageError(f'attention_gain {attention_gain!r} is not known; use "area" or "paper"')
    if recalibration_scale not in get_args(RecalibrationScale):
        raise UsageError(f'recalibration_scale {recalibration_scale!r} is not known; use "sqrt" or "paper"')
    if pooled_norm not in get_args(PooledNorm):
        raise UsageError(f'pooled_norm {pooled_norm!r} is not known; use "batch" or "none"')
    if encoder not in get_args(Encoder):
        raise UsageError(f"encoder {encoder!r} is not known; use one of {', '.join(get_args(Encoder))}")


def channel_attention(query: Tensor, key: Tensor, *, scale: float) -> Tensor:
    """softmax(scale · QKᵀ) of two `(B, C, D)`, as `(B, C, C)` float32 whose rows sum to 1.

    Logits and softmax are float32 under autocast too: logits past 100 occur, where bfloat16 steps by 0.5 to 1.
    """
    with torch.autocast(query.device.type, enabled=False):
        logits = (query.float() * scale) @ key.float().transpose(1, 2)  # (B, C, C)
        return logits.softmax(dim=-1)


class ContextHighlight(nn.Module):
    """Attention over the places of the context's map (Eq. 6-8): `(B, C, H, W)` to the same shape.

    The paper lists three convolutions in its text and two in Eq. 6, 8 and Fig. 5; ruling: two, 256 to 128 to 1.
    gain "area" multiplies by H·W (ruling), so that uniform attention leaves the map as it is. "paper" is Eq. 7 to the
    letter: the weights sum to 1 over 196 places, the map shrinks 196-fold and the context branch gets no gradient.
    """

    def __init__(self, *, gain: AttentionGain) -> None:
        super().__init__()
        check_options(attention_gain=gain)
        self.gain: AttentionGain = gain
        self.score = nn.Sequential(convolution_block(CHANNELS, 128), convolution_block(128, 1))

    def attention(self, context: Tensor) -> Tensor:
        """The map A: `(B, H, W)` float32, summing to 1 over the places."""
        logits = self.score(context).squeeze(1)  # (B, H, W)
        return logits.float().flatten(1).softmax(dim=1).unflatten(1, logits.shape[1:])  # (B, H, W)

    def forward(self, context: Tensor) -> Tensor:
        weights = self.attention(context)  # (B, H, W)
        if self.gain == "area":
            weights = weights * (weights.shape[1] * weights.shape[2])
        return context * weights.unsqueeze(1).to(context.dtype)  # (B, C, H, W)


class CrossAttention(nn.Module):
    """One stream's channels, mixed by how they resemble the other stream's (CA block, Eq. 9-12). No residual."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Conv2d(CHANNELS, CHANNELS, kernel_size=3, padding=1)
        self.key = nn.Conv2d(CHANNELS, CHANNELS, kernel_size=3, padding=1)
        self.value = nn.Conv2d(CHANNELS, CHANNELS, kernel_size=3, padding=1)
        self.output = convolution_block(CHANNELS, CHANNELS)

    def attention(self, own: Tensor, other: Tensor) -> Tensor:
        """softmax(QKᵀ / √D), Q of `own` and K of `other`, both `(B, C, H, W)`: `(B, C, C)`, rows sum to 1 (Eq. 9)."""
        query = self.query(own).flatten(2)  # (B, C, D)
        key = self.key(other).flatten(2)  # (B, C, D)
        return channel_attention(query, key, scale=1 / math.sqrt(query.shape[2]))  # (B, C, C)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        value = self.value(own).flatten(2)  # (B, C, D)
        mixed = self.attention(own, other).to(value.dtype) @ value  # (B, C, D)
        return self.output(mixed.reshape_as(own))  # (B, C, H, W)


class ElementRecalibration(nn.Module):
    """Every element of a map, scaled by global information from all channels (ER block, Eq. 13, 14).

    The paper's prose speaks of no softmax and Eq. 13 has one without a scale; ruling: softmax, scaled by 1/√D ("sqrt").
    scale "paper" is Eq. 13 to the letter, which starts saturated: about 4 rows in 10 put over 0.99 on one channel.
    """

    def __init__(self, *, scale: RecalibrationScale) -> None:
        super().__init__()
        check_options(recalibration_scale=scale)
        self.scale: RecalibrationScale = scale
        self.transform = nn.Conv1d(CHANNELS, CHANNELS, kernel_size=1)

    def attention(self, elements: Tensor) -> Tensor:
        """softmax(Z (W Z)ᵀ · scale) of Z `(B, C, D)`: `(B, C, C)`, rows sum to 1 (Eq. 13)."""
        scale = 1 / math.sqrt(elements.shape[2]) if self.scale == "sqrt" else 1.0
        return channel_attention(elements, self.transform(elements), scale=scale)  # (B, C, C)

    def forward(self, features: Tensor) -> Tensor:
        elements = features.flatten(2)  # (B, C, D)
        gains = self.attention(elements).to(elements.dtype) @ elements  # (B, C, D)
        return (elements * gains).reshape_as(features)  # (B, C, H, W)


def global_average(features: Tensor) -> Tensor:
    """`(B, C, H, W)` to `(B, C)`: the mean over places."""
    return features.mean(dim=(2, 3))


def pooled_norms(kind: PooledNorm, count: int) -> nn.ModuleList | None:
    """BatchNorm1d for each of `count` pooled vectors `(B, C)`, which they pass before they are weighted, or None.

    The paper says nothing of it, and the public CAER-Net-S has it. The mean of a map that attention scaled is small:
    without the norm a stream's vector may hardly reach the fusion (ruling).
    """
    check_options(pooled_norm=kind)
    return nn.ModuleList(nn.BatchNorm1d(CHANNELS) for _ in range(count)) if kind == "batch" else None


def pool(norms: nn.ModuleList | None, *maps: Tensor) -> list[Tensor]:
    """Maps `(B, C, H, W)` to vectors `(B, C)`, each by its mean over places and its norm, where there are norms."""
    vectors = [global_average(features) for features in maps]
    return vectors if norms is None else [norm(vector) for norm, vector in zip(norms, vectors, strict=True)]


class StreamWeights(nn.Module):
    """The weights λ of a face and a context vector, each `(B, C)`: `(B, 2)`, [face, context], summing to 1 (Eq. 16).

    The paper's Conv1d with kernel 1 over a vector is a Linear layer, written as one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.face = nn.Sequential(nn.Linear(CHANNELS, 128), nn.ReLU(), nn.Linear(128, 1))
        self.context = nn.Sequential(nn.Linear(CHANNELS, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, face: Tensor, context: Tensor) -> Tensor:
        logits = torch.cat([self.face(face), self.context(context)], dim=1)  # (B, 2)
        return logits.float().softmax(dim=1).to(face.dtype)  # (B, 2)


class HybridWeighting(nn.Module):
    """The AA block (Eq. 18-21) over four `(B, C)`: each pair is weighted by the weights of the *other* pair.

    λ_deep weighs the shallow vectors and λ_shallow the deep ones. Eq. 20 pairs index 0 with the context while λ lists
    the face first, and Eq. 19, 21 name an R^CA that nothing produces; ruling: by name, and R^ER.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shallow = StreamWeights()
        self.deep = StreamWeights()

    def forward(
        self, shallow_face: Tensor, shallow_context: Tensor, deep_face: Tensor, deep_context: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same four, weighted, in the same order."""
        shallow_weights = self.shallow(shallow_face, shallow_context)  # (B, 2)
        deep_weights = self.deep(deep_face, deep_context)  # (B, 2)
        return (
            shallow_face * deep_weights[:, :1],
            shallow_context * deep_weights[:, 1:],
            deep_face * shallow_weights[:, :1],
            deep_context * shallow_weights[:, 1:],
        )


class DeepFusion(nn.Module):
    """The DF block (Eq. 22-25) over four weighted `(B, C)`: logits `(B, 7)`.

    Eq. 25 ends in a softmax that the loss would apply again, which keeps a 7-class loss above 1.165; ruling: logits.
    """

    def __init__(self, *, dropout: float) -> None:
        super().__init__()
        self.face = nn.Sequential(nn.Linear(2 * CHANNELS, 128), nn.ReLU(), nn.Dropout(dropout))
        self.context = nn.Sequential(nn.Linear(2 * CHANNELS, 128), nn.ReLU(), nn.Dropout(dropout))
        self.classify = classification_head(256, dropout=dropout)

    def forward(self, shallow_face: Tensor, shallow_context: Tensor, deep_face: Tensor, deep_context: Tensor) -> Tensor:
        face = self.face(torch.cat([shallow_face, deep_face], dim=1))  # (B, 128)
        context = self.context(torch.cat([shallow_context, deep_context], dim=1))  # (B, 128)
        return self.classify(torch.cat([face, context], dim=1))  # (B, 7)


def classification_head(features: int, *, dropout: float) -> nn.Sequential:
    """The classification part of the DF block (Eq. 25, before its softmax): `(B, features)` to `(B, 7)`."""
    return nn.Sequential(nn.Linear(features, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, len(EMOTIONS)))


class CAHFWNet(nn.Module):
    """The whole network (Fig. 4), called as `model(face, context)`.

    It has 7,406,862 parameters and costs 2,816.8 million multiply-accumulates for a pair of 224 px; with pooled_norm
    "batch" 2,048 parameters more. attention_gain: see ContextHighlight. recalibration_scale: see ElementRecalibration.
    dropout: a share, 0 to 1. pooled_norm: see `pooled_norms`. encoder: see `image_encoder`.
    """

    def __init__(
        self,
        *,
        attention_gain: AttentionGain = "area",
        recalibration_scale: RecalibrationScale = "sqrt",
        dropout: float = 0.5,
        pooled_norm: PooledNorm = "none",
        encoder: Encoder = "paper",
    ) -> None:
        super().__init__()
        self.face_encoder = image_encoder(encoder)
        self.context_encoder = image_encoder(encoder)
        self.context_highlight = ContextHighlight(gain=attention_gain)
        self.face_interaction = CrossAttention()
        self.face_recalibration: nn.Module = ElementRecalibration(scale=recalibration_scale)
        self.context_interaction = CrossAttention()
        self.context_recalibration: nn.Module = ElementRecalibration(scale=recalibration_scale)
        self.weighting = HybridWeighting()
        self.fusion = DeepFusion(dropout=dropout)
        self.pooled_norms = pooled_norms(pooled_norm, 4)

    def forward(self, face: Tensor, context: Tensor) -> Tensor:
        """Logits `(B, 7)` of `face` and `context`, both `(B, 3, height, width)`, ImageNet-normalised RGB.

        Eq. 15 and Algorithm 1 disagree on the second key (R_F^ER or a transposed Z_F^CA), and Table 1 and Eq. 15 on the
        second value; ruling: R_F^ER, and the highlighted map.
        """
        shallow_face = encode_images(self.face_encoder, face, name="face")  # (B, C, H, W)
        shallow_context = encode_images(self.context_encoder, context, name="context")  # (B, C, H, W)
        check_equal_sides(tuple(face.shape), tuple(context.shape))
        shallow_context = self.context_highlight(shallow_context)  # (B, C, H, W)
        deep_face = self.face_recalibration(self.face_interaction(shallow_face, shallow_context))  # (B, C, H, W)
        deep_context = self.context_recalibration(self.context_interaction(shallow_context, deep_face))  # (B, C, H, W)
        maps = (shallow_face, shallow_context, deep_face, deep_context)
        vectors = pool(self.pooled_norms, *maps)  # 4 x (B, C)
        return self.fusion(*self.weighting(*vectors))  # (B, 7)

    def context_attention(self, context: Tensor) -> Tensor:
        """Where the context branch looks: `(B, H, W)`, summing to 1 over the places (A of Eq. 6)."""
        return self.context_highlight.attention(encode_images(self.context_encoder, context, name="context"))
