"""Convolutions of bytes: what goes between two layers is a byte, a weight is a byte, and sums are exact.

Every scale is fixed beforehand, so that a frame's faces do not depend on the frames before it: a weight's by its output
channel's largest, an activation's by the largest that 168 frames of 21 real clips gave; a larger one is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.faces.dlib_weights import ConvLayer
from pipeline.records.vocabulary import UsageError

# The largest activation after each layer but the last, whose output stays fp32.
MAX_ACTIVATIONS = (5.1, 7.8, 4.5, 4.6, 6.7)


# A pixel less its mean, over 256, as a byte: half a step of the pixel itself, and between the levels, where it is 0, no
# error at all.
INPUT_SCALE, INPUT_ZERO = 0.6 / 127, 128


class Int8Body:
    """Convolutions with ReLU, on CPU. layers: six, as `MAX_ACTIVATIONS` has it. Raises UsageError without oneDNN."""

    def __init__(self, layers: Sequence[ConvLayer]) -> None:
        if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
            raise UsageError("detector precision int8: this PyTorch has no oneDNN; use fp32")
        scale, zero = INPUT_SCALE, INPUT_ZERO
        self._layers = []
        for layer, most in zip(layers, (*MAX_ACTIVATIONS, None), strict=True):
            weight = torch.from_numpy(np.ascontiguousarray(layer.weight))  # (out, in, height, width)
            scales = weight.abs().amax(dim=(1, 2, 3)) / 127
            weight = (weight / scales[:, None, None, None]).round().to(torch.int8)
            shape = [layer.stride] * 2, [layer.padding] * 2, [1, 1], 1
            packed = torch.ops.onednn.qconv_prepack(weight, scales, scale, zero, *shape, None)
            zeros, bias = torch.zeros(len(scales), dtype=torch.int64), torch.from_numpy(layer.bias).float()
            given = (scale, zero, packed, scales, zeros, bias, *shape)
            scale, zero = (1.0 if most is None else most / 255), 0
            wanted = (scale, zero, torch.float32 if most is None else torch.uint8, "relu", [], "")
            self._layers.append((given, wanted))

    def __call__(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) uint8, channels last, to fp32."""
        for given, wanted in self._layers:
            x = torch.ops.onednn.qconv2d_pointwise(x, *given, *wanted)
        return x


def quantised(level: Tensor) -> Tensor:
    """Pixels less their means, over 256, as `Int8Body` takes them. (B, 3, H, W) levels 0 to 255."""
    return level.mul(1 / INPUT_SCALE).add_(INPUT_ZERO + 0.5).to(torch.uint8)  # positive: cut off is rounded down
