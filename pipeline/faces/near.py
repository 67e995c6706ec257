"""Dlib's CNN around known boxes alone: windows of the tile that the whole frame would become, on its own grid of cells.

A window is as large as its cells can see, so that their scores, and the boxes of faces, are those of the whole tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.faces.dlib_cnn import LEVEL_RATIO, DlibCnn, TilePlan, upsampled
from pipeline.records.faces import Box, Face

# A face may grow or shrink by a level, 1.2 times, and move by two cells, a fifth of its side.
REACH_LEVELS, REACH_CELLS = 1, 2
# What scores so much below the threshold is no face, and is looked at again: the next frame may have one there.
MARGIN = 0.3

# Half-open x_min, y_min, x_max, y_max: of pixels of a level or of the tile, or of cells.
Rectangle = tuple[int, int, int, int]


class NearDlibCnn:
    """`follow.Nearby` of Dlib's CNN on CPU."""

    def __init__(self, cnn: DlibCnn) -> None:
        self._cnn = cnn
        self.score_threshold = cnn.score_threshold
        self._levels: tuple[TilePlan, list[Tensor]] | None = None

    def whole(self, image: np.ndarray) -> list[Face]:
        """See `follow.Nearby`."""
        return self._cnn.detect_faces([image], margin=MARGIN)[0]

    @torch.inference_mode()
    def near(self, image: np.ndarray, boxes: Sequence[Box]) -> list[Face]:
        """See `follow.Nearby`."""
        if not boxes:
            return []
        if self._cnn.upsample:
            image = upsampled(image)
        plan = self._cnn.plan(1, *image.shape[:2])
        windows = self._windows(boxes, plan)
        if not windows:
            return []
        self._draw(image, windows, plan)
        by_shape: dict[tuple[int, int], list[Rectangle]] = {}
        for window in windows:
            by_shape.setdefault((window[2] - window[0], window[3] - window[1]), []).append(window)
        cells, scores = zip(*(self._scored(group, plan) for group in by_shape.values()), strict=True)
        return self._cnn.faces_of(np.concatenate(cells), np.concatenate(scores), plan.levels)

    def _windows(self, boxes: Iterable[Box], plan: TilePlan) -> dict[Rectangle, int]:
        """Cells around each box at its level and the next ones, with all the cells that their scores are made of; and
        which level that is."""
        cnn, found = self._cnn, dict[Rectangle, int]()
        most = self._num_cells(plan)
        reach = REACH_CELLS + cnn.context
        for box in boxes:
            corners = np.array([box.x_min, box.y_min, box.x_max, box.y_max], float)
            if cnn.upsample:
                corners = 2 * (corners + np.array([1.25, 0.75, 1.25, 0.75]))
            middle, side = (corners[:2] + corners[2:]) / 2, float((corners[2:] - corners[:2]).mean())
            own = round(math.log(max(1.0, side / cnn.window_px)) / -math.log(LEVEL_RATIO))
            for level in range(max(0, own - REACH_LEVELS), min(len(plan.levels), own + REACH_LEVELS + 1)):
                point = middle * LEVEL_RATIO**level + plan.levels[level, :2]
                cell = np.round((point - cnn.offset) / cnn.stride).astype(int)
                x_min, y_min = (int(each) for each in np.clip(cell - reach, 0, most))
                x_max, y_max = (int(each) for each in np.clip(cell + reach + 1, 0, most))
                if x_max > x_min and y_max > y_min:
                    found[x_min, y_min, x_max, y_max] = level
        return found

    def _num_cells(self, plan: TilePlan) -> np.ndarray:
        """Columns and rows of the tile's score map."""
        sides = np.array([plan.tile.shape[3], plan.tile.shape[2]])
        return (sides - 2 * self._cnn.offset - 1) // self._cnn.stride + 1

    def _seen(self, window: Rectangle) -> Rectangle:
        """The pixels of the tile that a window's cells are made of."""
        stride, more = self._cnn.stride, 2 * self._cnn.offset + 1
        x_min, y_min, x_max, y_max = window
        return stride * x_min, stride * y_min, stride * (x_max - 1) + more, stride * (y_max - 1) + more

    def _draw(self, image: np.ndarray, windows: Mapping[Rectangle, int], plan: TilePlan) -> None:
        """Bring the windows of the tile to this image, each at its level. What they have of other levels, at their
        edges, is of an earlier frame."""
        levels, shown = plan.levels, dict[int, Rectangle]()
        for window, number in windows.items():
            part, level = self._seen(window), levels[number]
            inside = np.concatenate([np.maximum(level[:2], part[:2]), np.minimum(level[2:], part[2:])])
            shown[number] = _both(shown.get(number), inside - np.tile(level[:2], 2))
        needed = dict(shown)
        for number in range(max(needed), 0, -1):
            if number in needed:
                above = _above(needed[number], levels[number], levels[number - 1])
                needed[number - 1] = _both(needed.get(number - 1), above)
        pyramid = self._pyramid(plan)
        for number in sorted(needed):
            x_min, y_min, x_max, y_max = needed[number]
            if number:
                grid = plan.grids[number - 1][:, y_min:y_max, x_min:x_max]
                level = functional.grid_sample(pyramid[number - 1], grid, padding_mode="border", align_corners=True)
            else:
                level = self._cnn.first_level([image[y_min:y_max, x_min:x_max]], plan)
            pyramid[number][:, :, y_min:y_max, x_min:x_max] = level
            if number in shown:
                left, top, right, bottom = shown[number]
                x, y = (int(each) for each in levels[number, :2])
                plan.draw(pyramid[number][:, :, top:bottom, left:right], x=x + left, y=y + top)

    def _pyramid(self, plan: TilePlan) -> list[Tensor]:
        """Every level of a frame, (1, 3, H, W), with room for its pixels."""
        if self._levels is None or self._levels[0] is not plan:
            sizes = [(y_max - y_min, x_max - x_min) for x_min, y_min, x_max, y_max in plan.levels.tolist()]
            self._levels = (
                plan,
                [torch.zeros(1, 3, *size).contiguous(memory_format=torch.channels_last) for size in sizes],
            )
        return self._levels[1]

    def _scored(self, windows: Sequence[Rectangle], plan: TilePlan) -> tuple[np.ndarray, np.ndarray]:
        """Cells (N, 2) of windows of one size that may be faces, as column and row, and their scores (N,)."""
        seen = [self._seen(window) for window in windows]
        patches = [plan.tile[:, :, y_min:y_max, x_min:x_max] for x_min, y_min, x_max, y_max in seen]
        maps = self._cnn.score_tile(torch.cat(patches).contiguous(memory_format=torch.channels_last)).numpy()
        most, context = self._num_cells(plan), self._cnn.context
        cells, found = [], []
        for (x_min, y_min, x_max, y_max), scores in zip(windows, maps, strict=True):
            # The others do not see all that they see in the whole tile.
            left, top = (context if low else 0 for low in (x_min, y_min))
            right, bottom = (
                high - low - (context if high < end else 0)
                for low, high, end in ((x_min, x_max, most[0]), (y_min, y_max, most[1]))
            )
            inner = scores[top:bottom, left:right]
            rows, columns = np.nonzero(inner > self.score_threshold - MARGIN)
            cells.append(np.stack([columns + x_min + left, rows + y_min + top], axis=1))
            found.append(inner[rows, columns])
        return np.concatenate(cells), np.concatenate(found)


def _both(one: Rectangle | None, other: np.ndarray) -> Rectangle:
    """The rectangle around both."""
    if one is not None:
        other = np.concatenate([np.minimum(one[:2], other[:2]), np.maximum(one[2:], other[2:])])
    x_min, y_min, x_max, y_max = (int(each) for each in other)
    return x_min, y_min, x_max, y_max


def _above(part: Rectangle, level: np.ndarray, larger: np.ndarray) -> np.ndarray:
    """The pixels of the larger level that those of a part of a level are sampled from."""
    size, above = level[2:] - level[:2], larger[2:] - larger[:2]
    step = (above - 1) / np.maximum(size - 1, 1)
    low = np.floor(part[:2] * step).astype(int) - 1
    high = np.ceil((np.array(part[2:]) - 1) * step).astype(int) + 3
    return np.concatenate([np.maximum(low, 0), np.minimum(high, above)])
