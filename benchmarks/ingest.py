"""Does reading ever hold training up? A budget comes in; examples/s of real training beside other loops, out.

training         `train_worker` of jobs/train.py, one worker, reading its shards
cached batch     the same loop on one batch that lies on the device: what the network alone allows
plain DDP        the script that one would write today, in `plain_training`
loader alone     the reading of `training` without a network: how much faster it is than it must be
decoded cache    the same with --cache-decoded

Each runs once a round; a figure is that of a second epoch, a ratio is taken within a round.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import machine
from benchmarks.made_examples import NUM_PAIRS, write_made_examples
from benchmarks.plain_training import plain_training
from benchmarks.tables import shown, table
from benchmarks.timing import spread
from pipeline.dataset.batches import TrainingBatches, load_batches, num_loader_processes
from pipeline.dataset.dataset import Batch, ExampleDataset
from pipeline.faces.devices import resolve_device
from pipeline.models.build import build_model
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import log_status
from pipeline.storage.remote import absolute_url
from pipeline.storage.store import Storage
from pipeline.train.config import TrainConfig
from pipeline.train.worker import train_worker

EPOCHS = 2  # the first warms up
TARGETS = {"training / cached batch": 0.95, "training / plain DDP": 1.0}


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Measures the training loop against the same loop on one cached batch and against plain PyTorch DDP."""

    study: str
    """ingest."""
    output: str = "build/ingest"
    """Folder of ingest.json; a path or any fsspec URL."""
    data: str | None = None
    """Output of jobs/preprocess.py, a local folder with splits train and validation; default: a SYNTHETIC corpus."""
    model: str = "cahfw"
    """Network: cahfw, se-ca-aa or se-af."""
    px: int = 224
    """Side of the faces and contexts of the SYNTHETIC corpus, pixels, a multiple of 16."""
    examples: int = 210
    """Examples to train on of the SYNTHETIC corpus, a multiple of 21."""
    batch_size: int = 32
    """Examples of one optimizer step."""
    rounds: int = 3
    """Times that every loop runs (count)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto (bf16 on CUDA, fp32 on CPU), fp32 or bf16."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""
    loader_processes: int | None = None
    """Processes that decode images. None: 0 on CPU; on a GPU one a core, up to 12."""

    def __post_init__(self) -> None:
        for name in ("examples", "batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 1 or more")
        if self.examples % NUM_PAIRS or self.examples < self.batch_size:
            raise UsageError(f"--examples {self.examples}: give a multiple of {NUM_PAIRS}, at least --batch-size")
        if self.px < 16 or self.px % 16:
            raise UsageError(f"--px {self.px}: give a multiple of 16 pixels")
        if self.data and not Storage(self.data).is_local:
            raise UsageError(f"--data {self.data}: the plain script reads local files; copy the corpus here first")
        resolve_device(self.device)


def ingest(config: IngestConfig) -> dict[str, Any]:
    """Run every loop once a round; writes ingest.json and returns what it holds."""
    device = torch.device(resolve_device(config.device))
    loaders = num_loader_processes(config.loader_processes, device=device)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
        loops = Loops(config, device=device, loader_processes=loaders, folder=folder)
        found = _rounds(loops.by_name(), config.rounds)
        num_examples, px = len(loops.examples), loops.examples.face_px
        flops = training_flops(config.model, px=px)
    best = spread(found["training"])
    assert best
    peak = peak_flops(device, bf16=loops.bf16)
    results = {
        "machine": machine(),
        "settings": asdict(config),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "loader_processes": loaders,
        "num_examples": num_examples,
        "px": px,
        "load_average": {"before": before, "after": os.getloadavg()[0]},
        "examples_per_second": {name: spread(values) for name, values in found.items()},
        "ratios": {
            f"training / {other}": spread(np.divide(found["training"], found[other]).tolist())
            for other in ("cached batch", "plain DDP", "loader alone")
        },
        "gflop_per_example": flops / 1e9,
        "peak_gflops": peak / 1e9,
        "share_of_peak": best["median"] * flops / peak,
    }
    storage = Storage(config.output)
    storage.put("ingest.json", (json.dumps(results, indent=1) + "\n").encode())
    log_status(f"output: {storage.path('ingest.json')}")
    return results


class Loops:
    """The loops that are compared, over one corpus; each gives the examples/s of its second epoch."""

    def __init__(self, config: IngestConfig, *, device: torch.device, loader_processes: int, folder: str) -> None:
        self._config, self._device, self._loaders, self._folder = config, device, loader_processes, folder
        self._data = absolute_url(config.data) if config.data else _made(f"{folder}/data", config)
        self._numbers = itertools.count()
        self.examples = self._read()
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")

    def by_name(self) -> dict[str, Callable[[], float]]:
        decoded = self._read(cache_decoded=True)
        return {
            "training": self._trained,
            "cached batch": self._cached,
            "plain DDP": self._plain,
            "loader alone": lambda: self._loaded(self.examples),
            "decoded cache": lambda: self._loaded(decoded),
        }

    def _read(self, **options: Any) -> ExampleDataset:
        return ExampleDataset(self._data, split="train", cache_dir=f"{self._folder}/cache", **options)

    def _trained(self, training: Iterator[Batch] | None = None) -> float:
        config, told = self._config, []
        run = TrainConfig(
            data=self._data,
            output=f"{self._folder}/run-{next(self._numbers)}",
            model=config.model,
            batch_size=config.batch_size,
            epochs=EPOCHS,
            precision=config.precision,
            cache_dir=f"{self._folder}/cache",
            keep=1,
        )
        options: dict[str, Any] = {"device": self._device, "loader_processes": self._loaders, "training": training}
        train_worker(run, announce=told.append, **options)
        return next(each for each in reversed(told) if each["event"] == "epoch")["train_examples_per_second"]

    def _cached(self) -> float:
        batch = _batches(self.examples, self._config)[0]
        return self._trained(itertools.repeat(batch.__class__(*(tensor.to(self._device) for tensor in batch))))

    def _plain(self) -> float:
        return plain_training(
            self._data,
            build_model(self._config.model),
            batch_size=self._config.batch_size,
            epochs=EPOCHS,
            device=self._device,
            num_workers=self._loaders,
            bf16=self.bf16,
        )

    def _loaded(self, source: ExampleDataset) -> float:
        batches = _batches(source, self._config)
        steps = range(EPOCHS * batches.steps_per_epoch)
        loader = load_batches(batches, steps, processes=self._loaders, device=self._device)
        list(itertools.islice(loader, batches.steps_per_epoch))
        started = time.perf_counter()
        num_read = sum(len(batch.labels) for batch in loader)
        return num_read / (time.perf_counter() - started)


def _rounds(loops: dict[str, Callable[[], float]], num_rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(num_rounds):
        log_status(f"ingest: round {number + 1} of {num_rounds}")
        # The order turns, so that no loop always runs on the machine that another has warmed.
        names = list(loops)[number % len(loops) :] + list(loops)[: number % len(loops)]
        for name in names:
            found[name].append(loops[name]())
    return found


def _made(folder: str, config: IngestConfig) -> str:
    log_status("drawing a SYNTHETIC corpus")
    counts = {"train": config.examples // NUM_PAIRS, "validation": 1, "test": 0}
    write_made_examples(folder, frames_per_pair=counts, num_people=4, places_per_scene=2, px=config.px, seed=0)
    return folder


def _batches(examples: ExampleDataset, config: IngestConfig) -> TrainingBatches:
    return TrainingBatches(examples, batch_size=config.batch_size, seed=0, flip=True)


def training_flops(model: str, *, px: int) -> float:
    """Floating-point operations of one example's forward and backward pass: three forward passes."""
    network, image = build_model(model).eval(), torch.zeros(1, 3, px, px)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(image, image)
    return 3.0 * counter.get_total_flops()


def peak_flops(device: torch.device, *, bf16: bool) -> float:
    """The fastest matrix product of five, operations a second: a bound that this device was seen to reach."""
    size = 8192 if device.type == "cuda" else 2048
    left = torch.rand(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    fastest = 0.0
    for _ in range(5):
        started = time.perf_counter()
        product = left @ left
        float(product[0, 0])  # waits for the device
        fastest = max(fastest, 2 * size**3 / (time.perf_counter() - started))
    return fastest


def print_ingested(results: dict[str, Any]) -> None:
    """The study's tables in a terminal."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    rows = [[name, shown(values, 1)] for name, values in results["examples_per_second"].items()]
    title = (
        f"Ingest: {results['settings']['model']} at {results['px']} px on {results['device']}, {results['threads']}"
        f" threads, {results['loader_processes']} loader processes, {results['num_examples']} examples"
    )
    console.print(table(title, ("loop", "examples/s"), rows))
    ratios = [
        [name, shown(values, 3), f"{TARGETS[name]:.2f}" if name in TARGETS else "-"]
        for name, values in results["ratios"].items()
    ]
    console.print(table("Round by round", ("ratio", "median (min–max)", "target"), ratios))
    console.print(
        f"{results['gflop_per_example']:.1f} GFLOP an example; {results['share_of_peak']:.0%} of the fastest matrix"
        f" product, {results['peak_gflops']:.0f} GFLOP/s; load average {results['load_average']['before']:.1f} before,"
        f" {results['load_average']['after']:.1f} after",
        highlight=False,
    )
