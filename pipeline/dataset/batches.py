"""Which examples a batch holds, by seed, step and rank."""

from __future__ import annotations

import math

import numpy as np
from torch.utils.data import Dataset

from pipeline.dataset.dataset import Batch, ExampleDataset
from pipeline.records.vocabulary import UsageError


class TrainingBatches(Dataset[Batch]):
    """One rank's share of every global batch of a training run: `batches[step]` for any step from 0 on.

    batch_size: examples of a global batch, over all ranks. Each epoch is a permutation seeded by (seed, epoch); its
    last batch is left out if it is not full, and other examples fall to it in the next epoch. flip: mirror half of the
    pairs, augment_face: change the faces, both chosen by (seed, epoch, row). Raises UsageError where the examples make
    no batch or the ranks can't share it.
    """

    def __init__(
        self,
        examples: ExampleDataset,
        *,
        batch_size: int,
        seed: int,
        flip: bool,
        augment_face: tuple[str, ...] = (),
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise UsageError(f"batch size {batch_size} can't be shared by {world_size} workers; use a multiple of them")
        if len(examples) < batch_size:
            raise UsageError(
                f"split {examples.split} holds {len(examples)} examples, too few for one batch of {batch_size};"
                " lower --batch-size"
            )
        self.examples, self.batch_size, self.seed, self.flip = examples, batch_size, seed, flip
        self.augment_face, self.rank, self.world_size = augment_face, rank, world_size
        self.steps_per_epoch = len(examples) // batch_size
        self._epoch, self._order, self._flips = -1, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_)

    def __getitem__(self, step: int) -> Batch:
        rows, flips = self.rows_and_flips(step)
        seed = (self.seed, step // self.steps_per_epoch)
        return self.examples.read_batch(rows, flips=flips, augment_face=self.augment_face, seed=seed)

    def rows_and_flips(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of this rank at one step, and which of them are mirrored."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            self._epoch, self._order = epoch, random.permutation(len(self.examples))
            self._flips = random.random(len(self.examples)) < (0.5 if self.flip else 0.0)
        share = self.batch_size // self.world_size
        start = step_of_epoch * self.batch_size + self.rank * share
        rows = self._order[start : start + share]
        return rows, self._flips[rows]


class EvaluationBatches(Dataset[Batch]):
    """Every example of one rank, once: rows rank, rank + world_size, and so on. No row is repeated to fill a batch.

    batch_size: examples of one batch of one rank; the last may be smaller, and a rank may have no batch at all.
    """

    def __init__(self, examples: ExampleDataset, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.examples, self.batch_size = examples, batch_size
        self.rows = np.arange(rank, len(examples), world_size)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __getitem__(self, i: int) -> Batch:
        if not 0 <= i < len(self):
            raise IndexError(f"batch {i} is not one of 0 to {len(self) - 1}")
        return self.examples.read_batch(self.rows[i * self.batch_size : (i + 1) * self.batch_size])
