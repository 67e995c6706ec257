"""Dlib's CNN face detector as a PyTorch network: images in, boxes with scores out.

An image becomes a pyramid of levels, each 5/6 of the one before, laid out on one tile; seven convolutions turn the tile
into a map with one score for each 8 px; a cell that scores is an 80 px box at its place in its level. In fp32 the boxes
are dlib's own and the scores differ by some 1e-6, which takes dlib's layout of the tile and its rounding of
coordinates (dlib 20: image_pyramid.h, interpolation.h, loss.h).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.faces.dlib_weights import ConvLayer, read_weights
from pipeline.faces.images import check_image, is_searched, sorted_faces
from pipeline.faces.int8 import INPUT_ZERO, Int8Body, quantised
from pipeline.faces.winograd import RowWinograd
from pipeline.records.faces import Box, Face

LEVEL_RATIO = 5.0 / 6.0


MIN_LEVEL_HEIGHT_PX = 5


PADDING_PX = 10  # between levels


OUTER_PADDING_PX = 11


# Plans kept: one holds 16 MB for 712x400 and 115 MB for 1920x1080, and frames of a clip have one size.
MAX_PLANS = 2


# Frames in one run on CUDA: 29 of 712x400. On CPU a batch is no faster than its frames, so one at a time.
CUDA_BATCH_PX = 2**23


class DlibCnn:
    """Dlib's CNN face detector in PyTorch. precision: fp32 (dlib's boxes), bf16, or int8 on CPU. device: cpu or cuda.

    On CPU it uses PyTorch's threads: one worker of many should call `torch.set_num_threads(1)`.
    """

    def __init__(self, weights: Path, *, upsample: int, score_threshold: float, precision: str, device: str) -> None:
        cnn = read_weights(weights)
        *body, head = cnn.layers
        self._dtype = dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.uint8}[precision]
        self.precision = precision
        self.device = device
        self.upsample = upsample
        self.score_threshold = score_threshold
        self.window_px = cnn.window_px
        self._max_overlap = cnn.max_overlap
        self._means = torch.tensor(cnn.means, device=device)
        self._body: Sequence[Callable[[Tensor], Tensor]]
        if precision == "int8":
            self._body = [Int8Body(body)]
        else:
            self._body = [_conv(layer, device=device, dtype=dtype) for layer in body]
        self._head = _Head(head, device=device)
        # The cell (c, r) of the score map looks at the tile's point (stride * c + offset, stride * r + offset).
        # Its score is made of `context` more cells of the last stride to each side.
        self.stride, self.offset, self.context = 1, 0, 0
        for layer in cnn.layers:
            self.context += layer.padding
            self.offset += self.stride * (layer.weight.shape[-1] // 2 - layer.padding)
            self.stride *= layer.stride
        self._plan = lru_cache(maxsize=MAX_PLANS)(self._make_plan)

    def detect_faces(self, images: Sequence[np.ndarray], *, margin: float = 0.0) -> list[list[Face]]:
        """See `Detector.detect_faces`. margin: faces may score so much less than the threshold."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            check_image(image)
            if is_searched(image, upsample=self.upsample):
                by_shape.setdefault(image.shape, []).append(index)
        faces: list[list[Face]] = [[] for _ in images]
        for shape, indexes in by_shape.items():
            size = max(1, CUDA_BATCH_PX // (shape[0] * shape[1])) if self.device.startswith("cuda") else 1
            for start in range(0, len(indexes), size):
                batch = indexes[start : start + size]
                for index, found in zip(batch, self._detect([images[index] for index in batch], margin), strict=True):
                    faces[index] = found
        return faces

    @torch.inference_mode()
    def _detect(self, images: list[np.ndarray], margin: float = 0.0) -> list[list[Face]]:
        """The faces of images of one shape."""
        if self.upsample:
            images = [upsampled(image) for image in images]
        plan = self.plan(len(images), *images[0].shape[:2])
        scores = self.score_tile(self.make_tile(images, plan)).cpu().numpy()
        found = []
        for each in scores:
            rows, columns = np.nonzero(each > self.score_threshold - margin)
            found.append(self.faces_of(np.stack([columns, rows], axis=1), each[rows, columns], plan.levels))
        return found

    def plan(self, num_images: int, height: int, width: int) -> TilePlan:
        """The plan for images of one size; with its tile it is kept for the next of that size."""
        return self._plan(num_images, height, width)

    def make_tile(self, images: list[np.ndarray], plan: TilePlan) -> Tensor:
        """The pyramid of images of one size, as laid out by `plan`; the tensor is the plan's own, and reused."""
        level = self.first_level(images, plan)
        for (x_min, y_min, _, _), grid in zip(plan.levels.tolist(), (None, *plan.grids), strict=True):
            if grid is not None:
                level = functional.grid_sample(level, grid, padding_mode="border", align_corners=True)
            plan.draw(level, x=x_min, y=y_min)
        return plan.tile

    def first_level(self, images: list[np.ndarray], plan: TilePlan) -> Tensor:
        """Images of one size, or the same part of each, less the means: (B, 3, H, W)."""
        pixels = torch.from_numpy(np.stack(images)).to(self.device)
        if pixels.ndim == 3:
            pixels = pixels[..., None].expand(-1, -1, -1, 3)
        # In rows of W * 3 numbers: 0.4 ms a frame, where broadcasting three means over the pixels takes 2.
        rows = pixels.reshape(*pixels.shape[:2], -1).float()
        return rows.sub_(plan.means[: rows.shape[-1]]).mul_(1 / 256).view(pixels.shape).permute(0, 3, 1, 2)

    def score_tile(self, tile: Tensor) -> Tensor:
        """The score map (B, rows, columns) of a tile (B, 3, H, W), in fp32."""
        # cuDNN's convolutions use TF32 unless told: its 10 bits would move scores by some 1e-3.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            x = tile
            for conv in self._body:
                x = conv(x)
            return self._head(x.float())

    def _make_plan(self, num_images: int, height: int, width: int) -> TilePlan:
        levels, tile_height, tile_width = tile_levels(height, width)
        sizes = [(y_max - y_min, x_max - x_min) for x_min, y_min, x_max, y_max in levels]
        grids = []
        for (above_height, above_width), (level_height, level_width) in pairwise(sizes):
            x = _unit_coordinates(_columns(above_width, level_width)[0], above_width)
            y = _unit_coordinates(_rows(above_height, level_height), above_height)
            grid = np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)  # (H, W, 2)
            grids.append(torch.from_numpy(grid).to(self.device).expand(num_images, -1, -1, -1))
        nothing = INPUT_ZERO if self._dtype == torch.uint8 else 0
        tile = torch.full((num_images, 3, tile_height, tile_width), nothing, device=self.device, dtype=self._dtype)
        tile = tile.contiguous(memory_format=torch.channels_last)
        return TilePlan(np.array(levels), self._means.repeat(width), tuple(grids), tile)

    def faces_of(self, cells: np.ndarray, found: np.ndarray, levels: np.ndarray) -> list[Face]:
        """The faces of cells (N, 2), as column and row of a score map, and their scores (N,)."""
        order = np.argsort(-found, kind="stable")
        centres = cells[order] * self.stride + self.offset
        boxes = self._boxes(centres, levels)
        kept = strongest(boxes, self._max_overlap)
        if self.upsample:  # dlib's map back from the doubled image, of inclusive corners
            boxes = _half_open((boxes - [0, 0, 1, 1]) / 2 - [1.25, 0.75, 1.25, 0.75])
        best = found[order]
        return sorted_faces([Face(Box(*boxes[index].tolist()), float(best[index])) for index in kept])

    def _boxes(self, centres: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """The half-open boxes (N, 4), in the image, of windows at points (N, 2) of the tile."""
        first, last = levels[None, :, :2], levels[None, :, 2:] - 1
        outside = centres[:, None] - np.clip(centres[:, None], first, last)  # (N, levels, 2)
        level = (outside**2).sum(axis=2).argmin(axis=1)  # the first of the nearest, as dlib
        middle = centres - levels[level, :2]
        half = (self.window_px - 1) / 2
        corners = np.concatenate([middle - half, middle + half], axis=1)
        for step in range(1, len(levels)):
            corners = np.where((level >= step)[:, None], corners * (6.0 / 5.0) + 0.3, corners)
        return _half_open(corners)


@dataclass(frozen=True, slots=True)
class TilePlan:
    """What is the same for all frames of one size.

    levels: (L, 4) half-open xyxy in the tile, the image first. means: (W * 3,), of a row of the image. grids: for each
    later level, where it samples the one before: (B, H, W, 2). tile: (B, 3, H, W) channels last, zero between levels.
    """

    levels: np.ndarray
    means: Tensor
    grids: tuple[Tensor, ...]
    tile: Tensor

    def draw(self, pixels: Tensor, *, x: int, y: int) -> None:
        """Put pixels of a level (B, 3, H, W) into the tile, their first at (x, y)."""
        is_int8 = self.tile.dtype == torch.uint8
        height, width = pixels.shape[2:]
        self.tile[:, :, y : y + height, x : x + width] = quantised(pixels) if is_int8 else pixels


def _conv(layer: ConvLayer, *, device: str, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A convolution and its ReLU. In fp32 on CPU those of stride 1 are 1.5 times as fast by `RowWinograd`."""
    is_same = layer.stride == 1 and layer.padding == layer.weight.shape[-1] // 2
    if is_same and device == "cpu" and dtype == torch.float32:
        return RowWinograd(layer.weight, layer.bias, padding=layer.padding)
    return _Conv(layer, device=device, dtype=dtype)


class _Conv:
    """One convolution, with ReLU."""

    def __init__(self, layer: ConvLayer, *, device: str, dtype: torch.dtype) -> None:
        weight = torch.from_numpy(layer.weight).to(device, dtype)
        self.weight = weight.contiguous(memory_format=torch.channels_last)  # 152 ms a frame become 121
        self._bias = torch.from_numpy(layer.bias).to(device, dtype)
        self._stride = layer.stride
        self._padding = layer.padding
        # oneDNN's convolution with ReLU in the same pass, as torch.compile uses it: 1.3 ms a frame less, 1.9 in bf16.
        has_fused = device == "cpu" and torch.backends.mkldnn.is_available()
        self._fused = getattr(torch.ops.mkldnn, "_convolution_pointwise", None) if has_fused else None

    def __call__(self, x: Tensor) -> Tensor:
        if self._fused is not None:
            settings = ([self._padding] * 2, [self._stride] * 2, [1, 1], 1, "relu", [], "")
            return self._fused(x, self.weight, self._bias, *settings)
        return functional.conv2d(x, self.weight, self._bias, self._stride, self._padding).relu_()


class _Head:
    """The last convolution, 9x9 to one channel, as nine 1x9 ones whose rows are then added.

    With a single output channel oneDNN's kernel idles: 18 ms for 1.5 % of the net's work; this takes 3 ms.
    """

    def __init__(self, layer: ConvLayer, *, device: str) -> None:
        weight = torch.from_numpy(layer.weight)[0].permute(1, 0, 2)[:, :, None]  # (9 rows, 45, 1, 9)
        self._weight = weight.to(device).contiguous(memory_format=torch.channels_last)
        self._bias = float(layer.bias[0])
        self._padding = layer.padding

    def __call__(self, x: Tensor) -> Tensor:
        num_rows = self._weight.shape[0]
        height = x.shape[2] + 2 * self._padding - num_rows + 1
        rows = functional.conv2d(x, self._weight, None, 1, self._padding)  # (B, 9, H + 8, W)
        scores = rows[:, 0, :height] + self._bias
        for row in range(1, num_rows):
            scores += rows[:, row, row : row + height]
        return scores  # (B, H, W)


def tile_levels(height: int, width: int) -> tuple[list[tuple[int, int, int, int]], int, int]:
    """Where dlib lays out the levels of an image: half-open xyxy rectangles, and the tile's height and width.

    The levels go down a first column until the next is narrow enough to stand beside the last, more than half of the
    rest being down by then; the others go up again along the right edge, until one would meet the image itself. The
    same as dlib's from 55x8 px.
    """
    sizes = []
    while height >= MIN_LEVEL_HEIGHT_PX and width > 0:
        sizes.append((height, width))
        height, width = math.floor(LEVEL_RATIO * height), math.floor(LEVEL_RATIO * width)
    image_height, image_width = sizes[0]
    total_height = sum(height + PADDING_PX for height, _ in sizes) - 2 * PADDING_PX

    column_height, num_down, last_width = 0, 0, 0
    for level_height, level_width in sizes:
        fits_beside = level_width <= image_width - last_width - PADDING_PX
        if fits_beside and 2 * (column_height - image_height) >= total_height - image_height:
            break
        column_height += level_height + PADDING_PX
        last_width = level_width
        num_down += 1

    levels = []
    y = OUTER_PADDING_PX
    for level_height, level_width in sizes[:num_down]:
        levels.append((OUTER_PADDING_PX, y, OUTER_PADDING_PX + level_width, y + level_height))
        y += level_height + PADDING_PX
    bottom, right = y - PADDING_PX, OUTER_PADDING_PX + image_width
    for level_height, level_width in sizes[num_down:]:
        if bottom - level_height < OUTER_PADDING_PX + image_height:
            break
        levels.append((right - level_width, bottom - level_height, right, bottom))
        bottom -= level_height + PADDING_PX
    return levels, column_height - PADDING_PX + 2 * OUTER_PADDING_PX, image_width + 2 * OUTER_PADDING_PX


def upsampled(image: np.ndarray) -> np.ndarray:
    """The image doubled as dlib doubles it, to the last bit: (H, W[, 3]) uint8 to (2H + 1, 2W + 2[, 3]) uint8.

    Values are cut, not rounded: where the weights of a flat patch sum to just under 1 a pixel loses one step. So
    weights and sums are taken in dlib's order and precision: float32, and float64 for the last few columns.
    """
    height, width = image.shape[:2]
    num_channels = image.shape[2] if image.ndim == 3 else 1
    out_height, out_width = 2 * height + 1, 2 * width + 2
    y = _rows(height, out_height)
    top = np.minimum(y.astype(np.int64), height - 1)
    bottom = np.minimum(top + 1, height - 1)
    below = (y - top)[:, None]
    above = 1 - below

    columns, num_single = _columns(width, out_width)
    x = np.repeat(columns, num_channels)
    left = np.minimum(x.astype(np.int64), width - 1)
    right = np.minimum(left + 1, width - 1)
    channel = np.tile(np.arange(num_channels), out_width)
    pixels = image.reshape(height, -1)
    at_left = pixels.take(left * num_channels + channel, axis=1).astype(np.float32)
    at_right = pixels.take(right * num_channels + channel, axis=1).astype(np.float32)

    out = np.empty((out_height, out_width * num_channels), np.uint8)
    to_right = (x - left).astype(np.float32)
    to_left = 1 - to_right
    for start in range(0, out_height, 8):  # eight rows stay in the cache
        rows = slice(start, start + 8)
        up, down = above[rows].astype(np.float32), below[rows].astype(np.float32)
        value = (up * to_left) * at_left[top[rows]]
        value += (up * to_right) * at_right[top[rows]]
        value += (down * to_left) * at_left[bottom[rows]]
        value += (down * to_right) * at_right[bottom[rows]]
        out[rows] = value

    last = slice(num_single * num_channels, None)
    across = (x - left)[last]
    rows_at_x = (1 - across) * at_left[:, last] + across * at_right[:, last]
    out[:, last] = above * rows_at_x[top] + below * rows_at_x[bottom]
    return out.reshape(out_height, out_width, *image.shape[2:])


def _half_open(corners: np.ndarray) -> np.ndarray:
    """Inclusive corners (N, 4) as boxes of integers: halves go away from zero, as in dlib (-12.5 is -13)."""
    boxes = (np.sign(corners) * np.floor(np.abs(corners) + 0.5)).astype(np.int64)
    boxes[:, 2:] += 1
    return boxes


def _rows(num_from: int, num_to: int) -> np.ndarray:
    """The row of the image that each row of its resized copy samples, float64."""
    step = (num_from - 1) / max(num_to - 1, 1)
    return np.add.accumulate(np.r_[0.0, np.full(num_to - 1, step)])


def _columns(num_from: int, num_to: int) -> tuple[np.ndarray, int]:
    """The column of the image that each column of its resized copy samples, and how many are in float32.

    dlib takes four columns at a time and adds to their coordinates in float32, so that they drift by up to 0.005 px:
    exact coordinates would move pixels by 0.07 of 255. The last few columns it takes one by one in float64.
    """
    step = (num_from - 1) / max(num_to - 1, 1)
    num_steps = num_to // 4 + 2
    lanes = np.array([-4 * step, -4 * step + step, -4 * step + 2 * step, -4 * step + 3 * step], np.float32)
    steps = np.vstack([lanes, np.full((num_steps, 4), np.float32(4 * step))])
    quads = np.add.accumulate(steps, axis=0, dtype=np.float32)[1:]
    is_past = quads[:, 3].astype(np.int64) + 1 >= num_from
    num_single = 4 * (int(is_past.argmax()) if is_past.any() else num_steps)
    rest = np.add.accumulate(np.r_[-step + num_single * step, np.full(max(num_to - num_single, 0), step)])[1:]
    return np.r_[quads.ravel()[:num_single].astype(np.float64), rest][:num_to], min(num_single, num_to)


def _unit_coordinates(pixels: np.ndarray, num_pixels: int) -> np.ndarray:
    """Pixel coordinates from 0 to num_pixels - 1 as grid_sample's, from -1 to 1."""
    return 2 * pixels / max(num_pixels - 1, 1) - 1


def strongest(boxes: np.ndarray, max_overlap: float) -> list[int]:
    """Indexes of the boxes (N, 4), strongest first, that no stronger kept one overlaps.

    The measure is dlib's: the intersection's share of the rectangle that encloses both boxes.
    """
    kept = []
    left = np.arange(len(boxes))
    while left.size:
        best, left = left[0], left[1:]
        kept.append(int(best))
        one, others = boxes[best], boxes[left]
        inner = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
        outer = np.maximum(one[2:], others[:, 2:]) - np.minimum(one[:2], others[:, :2])
        left = left[inner.clip(min=0).prod(axis=1) <= max_overlap * outer.prod(axis=1)]
    return kept
