"""Convolutions with a third of the multiplications: Winograd's minimal filtering along the rows.

Six rows of the output need 6 x 5 products of rows with rows of the kernel; as the values of polynomials at ten points
they need ten (Toom and Cook's product, transposed; Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", 2016). Across the columns the convolution stays direct, so that oneDNN does the products.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# With infinity, the ten points. Of 330 such sets of small fractions the one with the least error in fp32, which is some
# 3 times that of the direct sum; six points for two rows or eight for four are slower and no better for the boxes.
POINTS = (0, 1 / 3, -1 / 3, 3 / 4, -3 / 4, 4 / 3, -4 / 3, 2, -2)


# Numbers in the transformed rows that are at work together: what fits a cache, and what bounds the memory.
MAX_AT_ONCE = 2**21


def transforms(num_rows: int, num_taps: int, points: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, G and B, float64, of `A @ ((G @ taps) * (B @ data))`: `num_rows` sums of `num_taps` products.

    points: finite ones, one fewer than num_rows + num_taps - 1; infinity is added.
    """

    def values(num: int) -> np.ndarray:
        return np.vstack([np.power.outer(np.array(points, float), np.arange(num)), np.eye(num)[-1]])

    num = num_rows + num_taps - 1
    data = np.linalg.inv(values(num)).T
    # Powers of two, so that the transformed rows are all of one magnitude; they are exact.
    scale = 2.0 ** np.round(np.log2(np.abs(data).max(axis=1, keepdims=True)))
    return values(num_rows).T, values(num_taps) * scale, data / scale


class RowWinograd:
    """A convolution of stride 1 and its ReLU, in fp32 on CPU. weight: (out, in, taps, width). padding: of both axes."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, *, padding: int) -> None:
        num_taps = weight.shape[2]
        self._padding = padding
        self._num_rows = len(POINTS) + 2 - num_taps
        self._num_out = weight.shape[0]
        out, taps, data = transforms(self._num_rows, num_taps, POINTS)
        self._out = torch.from_numpy(out.astype(np.float32))
        self._data = torch.from_numpy(data.astype(np.float32))
        kernels = np.einsum("kt,oitw->koiw", taps, weight.astype(np.float64)).astype(np.float32)
        # What `out` makes one of every bias: the sums then need no pass of their own for it.
        shares = np.linalg.pinv(out) @ np.ones(self._num_rows)
        self._convs = [
            (
                torch.from_numpy(kernel[:, :, None]).contiguous(memory_format=torch.channels_last),
                torch.from_numpy((share * bias).astype(np.float32)),
            )
            for kernel, share in zip(kernels, shares, strict=True)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H, W), channels last."""
        return torch.cat([self._one(image) for image in x.permute(0, 2, 3, 1)]).permute(0, 3, 1, 2)

    def _one(self, image: Tensor) -> Tensor:
        """(H, W, in) to (1, H, W, out)."""
        height, width, num_in = image.shape
        num_points, num_rows = self._data.shape[0], self._num_rows
        num_groups = -(-height // num_rows)  # of output rows
        top = self._padding
        padded = image.new_empty(num_groups * num_rows + num_points - num_rows, width * num_in)
        padded[:top] = 0
        padded[top : top + height] = image.reshape(height, -1)
        padded[top + height :] = 0
        windows = padded.unfold(0, num_points, num_rows).transpose(1, 2)  # (groups, points, W * in), overlapping
        out = image.new_empty(num_groups, num_rows, width * self._num_out)
        step = max(1, MAX_AT_ONCE // (num_points * width * num_in))
        for first in range(0, num_groups, step):
            found = out[first : first + step]
            size = found.shape[0]
            at_points = torch.bmm(self._data.expand(size, -1, -1), windows[first : first + step])
            rows = at_points.view(1, size * num_points, width, num_in).permute(0, 3, 1, 2)
            # Each point has a kernel of its own: its rows are every num_points-th.
            products = [
                functional.conv2d(rows[:, :, point:], weight, bias, (num_points, 1), (0, self._padding))
                .permute(0, 2, 3, 1)
                .reshape(size, -1)
                for point, (weight, bias) in enumerate(self._convs)
            ]
            torch.bmm(self._out.expand(size, -1, -1), torch.stack(products, dim=1), out=found)
            found.relu_()
        return out.view(1, -1, width, self._num_out)[:, :height]
