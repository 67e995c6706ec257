"""The training script that one would write today for the same work: Parquet, Pillow, a DataLoader and PyTorch's DDP.

`ingest` measures jobs/train.py's loop against it: same shards, network, batches, optimizer and arithmetic. It checks
nothing, resumes nothing, and its batches depend on the number of workers.
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from pipeline.records.vocabulary import EMOTIONS

MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


class Pairs(Dataset[tuple[Tensor, Tensor, int]]):
    """The rows of Parquet files as normalised pairs; every process reads the files for itself."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(map(str, Path(folder).rglob("*.parquet")))
        self.num_rows = sum(pq.read_metadata(path).num_rows for path in self.paths)
        self.rows: pa.Table | None = None

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        columns = ["face_jpeg", "context_jpeg", "label"]
        if self.rows is None:
            self.rows = pa.concat_tables([pq.read_table(path, columns=columns) for path in self.paths])
        rows: pa.Table = self.rows
        row = {name: rows.column(name)[index].as_py() for name in columns}
        mirrored = bool(torch.rand(()) < 0.5)
        face, context = (_tensor(row[name], mirrored) for name in ("face_jpeg", "context_jpeg"))
        return face, context, EMOTIONS.index(row["label"])


def _tensor(data: bytes, mirrored: bool) -> Tensor:
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    image = (pixels.float() / 255 - MEAN) / STD
    return image.flip(2) if mirrored else image


def plain_training(
    data: str, model: nn.Module, *, batch_size: int, epochs: int, device: torch.device, num_workers: int, bf16: bool
) -> float:
    """Train on the shards of the split `train`; examples/s of the last epoch."""
    with tempfile.TemporaryDirectory(prefix="plain-") as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            return _train(
                f"{data}/examples/train",
                model,
                batch_size=batch_size,
                epochs=epochs,
                device=device,
                num_workers=num_workers,
                bf16=bf16,
            )
        finally:
            dist.destroy_process_group()


def _train(
    folder: str, model: nn.Module, *, batch_size: int, epochs: int, device: torch.device, num_workers: int, bf16: bool
) -> float:
    pairs = Pairs(folder)
    sampler = DistributedSampler(pairs, shuffle=True)
    options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": device.type == "cuda", "drop_last": True}
    if num_workers:
        options |= {"persistent_workers": True, "prefetch_factor": 4, "multiprocessing_context": "forkserver"}
    loader = DataLoader(pairs, batch_size=batch_size, sampler=sampler, **options)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model.to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    network = DistributedDataParallel(model)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    seconds = 0.0
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        started = time.perf_counter()
        for face, context, labels in loader:
            inputs = [images.to(device, non_blocking=True, memory_format=layout) for images in (face, context)]
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                logits = network(*inputs)
            loss = cross_entropy(logits.float(), labels.to(device, non_blocking=True))
            loss = (loss - 0.05).abs() + 0.05
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return len(loader) * batch_size / seconds
