"""Which examples a batch holds, by seed, step and rank."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.dataset.dataset import Batch, ExampleDataset
from pipeline.records.vocabulary import UsageError


class TrainingBatches(Dataset[Batch]):
    """One rank's share of every global batch of a training run: `batches[step]` for any step from 0 on.

    batch_size: examples of a global batch, over all ranks. Each epoch is a permutation seeded by (seed, epoch); its
    last batch is left out if it is not full, and other examples fall to it in the next epoch. flip: mirror half of the
    pairs, augment_face: change the faces, both chosen by (seed, epoch, row). parts: passes into which each rank cuts
    its share, so that the same examples meet in a pass on any number of ranks. Raises UsageError where the examples
    make no batch or the ranks can't share it.
    """

    def __init__(
        self,
        examples: ExampleDataset,
        *,
        batch_size: int,
        seed: int,
        flip: bool,
        augment_face: tuple[str, ...] = (),
        parts: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise UsageError(f"batch size {batch_size} can't be shared by {world_size} workers; use a multiple of them")
        if batch_size // world_size % parts:
            raise UsageError(
                f"--accumulate {parts}: a worker's share of {batch_size // world_size} examples can't be cut into equal"
                " parts; give a divisor of it"
            )
        if len(examples) < batch_size:
            raise UsageError(
                f"split {examples.split} holds {len(examples)} examples, too few for one batch of {batch_size};"
                " lower --batch-size"
            )
        self.examples, self.batch_size, self.seed, self.flip = examples, batch_size, seed, flip
        self.augment_face, self.parts, self.rank, self.world_size = augment_face, parts, rank, world_size
        self.steps_per_epoch = len(examples) // batch_size
        self._epoch, self._order, self._flips = -1, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_)

    def __getitem__(self, step: int) -> Batch:
        rows, flips = self.rows_and_flips(step)
        seed = (self.seed, step // self.steps_per_epoch)
        return self.examples.read_batch(
            rows, flips=flips, augment_face=self.augment_face, crop_at_random=True, seed=seed
        )

    def rows_and_flips(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of this rank at one step, and which of them are mirrored."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            self._epoch, self._order = epoch, random.permutation(len(self.examples))
            self._flips = random.random(len(self.examples)) < (0.5 if self.flip else 0.0)
        start = step_of_epoch * self.batch_size
        whole = self._order[start : start + self.batch_size]
        rows = whole.reshape(self.parts, self.world_size, -1)[:, self.rank].ravel()
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


def load_batches(
    batches: TrainingBatches | EvaluationBatches,
    steps: Iterable[int],
    *,
    processes: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """The batches of these steps, in their order.

    Args:
        batches: what each step holds.
        steps: any of them, such as those that a resumed training still has to do.
        processes: that decode images; 0 decodes here.
        device: to which they will be moved.
    """
    return iter(
        DataLoader(
            batches,
            sampler=steps,
            batch_size=None,  # a batch is one item: the data set decodes it whole
            num_workers=processes,
            prefetch_factor=4 if processes else None,
            pin_memory=torch.device(device).type == "cuda",
            # Ray's worker has threads, and a fork beside threads may hold one of their locks for ever.
            multiprocessing_context="forkserver" if processes else None,
        )
    )


def num_loader_processes(wanted: int | None, *, device: torch.device | str, cores: int | None = None) -> int:
    """`wanted`, or as many processes as the device can be fed by: none on CPU, else one a core up to 12."""
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    return 0 if torch.device(device).type == "cpu" else min(cores, 12)
