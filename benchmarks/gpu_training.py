"""Parts of `benchmarks/gpu.py`: the network, training by our own worker under torchrun, and scoring."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.table import Table
from torch.nn.functional import cross_entropy

from benchmarks.config import GpuOptions
from benchmarks.ingest import training_flops
from benchmarks.made_examples import made_example, write_made_examples
from benchmarks.tables import table
from pipeline.models.build import build_model
from pipeline.models.export_onnx import export_onnx
from pipeline.models.predict import Predictor, memory_layout
from pipeline.records.vocabulary import EMOTIONS, UsageError
from pipeline.synthetic.corpus import draw_frames
from pipeline.train.config import TrainConfig
from pipeline.train.worker import train_worker

WARM_UP_STEPS = 3
RUN_SECONDS = 180
EPOCHS = 2
SHOWN = ("train_loss", "validation_loss", "train_examples_per_second")


def network(options: GpuOptions, before: Mapping[str, Any]) -> dict[str, Any]:
    """CAHFW-Net's training step on a batch that lies on the device: examples a second, share of the peak, memory."""
    device, px = torch.device(options.device), 32 if options.small else 224
    is_cuda = device.type == "cuda"
    sizes = (4,) if options.small else (32, 128)
    rows = []
    for bf16, compiled in itertools.product((False, True), (False, True) if is_cuda else (False,)):
        for batch in sizes:
            peak = before.get("matmul", {}).get("bf16" if bf16 else "fp32")
            if is_cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            rate = _steps(
                device, px=px, batch=batch, bf16=bf16, compiled=compiled, num_steps=2 if options.small else 20
            )
            rows.append(
                {
                    "precision": "bf16" if bf16 else "fp32",
                    "compiled": compiled,
                    "batch": batch,
                    "examples_per_second": rate,
                    "share_of_peak": rate * training_flops("cahfw", px=px) / 1e9 / peak if peak else None,
                    "memory_mib": torch.cuda.max_memory_allocated() / 2**20 if is_cuda else None,
                }
            )
    return {"px": px, "rows": rows}


def _steps(device: torch.device, *, px: int, batch: int, bf16: bool, compiled: bool, num_steps: int) -> float:
    """Examples a second of training steps on one batch."""
    layout = memory_layout(device)
    model = build_model("cahfw").to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    if compiled:
        model.compile()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    images = torch.rand(batch, 3, px, px, device=device).contiguous(memory_format=layout)
    labels = torch.arange(batch, device=device) % len(EMOTIONS)
    started = 0.0
    for step in range(WARM_UP_STEPS + num_steps):
        if step == WARM_UP_STEPS:
            _wait(device)
            started = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = model(images, images)
        loss = cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    _wait(device)
    return num_steps * batch / (time.perf_counter() - started)


def training(options: GpuOptions, _: Mapping[str, Any]) -> dict[str, Any]:
    """Our own worker under torchrun on one device and on all, with an average of the weights; then it goes on on CPU.

    Raises RuntimeError with the last lines of a run that failed.
    """
    counts = sorted({1, torch.cuda.device_count()} if options.device.startswith("cuda") else {1, 2})
    config = TrainConfig(
        data=_data(options),
        output=str(options.folder / "run-1"),
        epochs=EPOCHS,
        batch_size=4 if options.small else 32,
        input_px=32 if options.small else None,
        ema=0.99,
        cache_dir=str(options.folder / "cache"),
    )
    found: dict[str, Any] = {}
    for count in counts:
        run = options.folder / f"run-{count}"
        _torchrun(replace(config, output=str(run), sync_batchnorm=count > 1), device=options.device, count=count)
        found[f"{count} on {options.device.partition(':')[0]}"] = _last_epoch(run)
    train_worker(replace(config, epochs=EPOCHS + 1, resume=True), device=torch.device("cpu"))
    found["resumed on cpu"] = _last_epoch(Path(config.output))
    return {"runs": found}


def _torchrun(config: TrainConfig, *, device: str, count: int) -> None:
    job = Path(config.output).with_suffix(".json")
    job.write_text(json.dumps({"config": asdict(config), "device": device.partition(":")[0]}))
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}")
    repository = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, (repository, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [*launch, "-m", "benchmarks.gpu_training", str(job)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    if found.returncode:
        raise RuntimeError(f"{count} workers: " + "\n".join((found.stdout + found.stderr).splitlines()[-20:]))


def _worker(job: str) -> None:
    """What torchrun starts once a device."""
    told = json.loads(Path(job).read_text())
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device(told["device"])
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        config = told["config"] | {"augment_face": tuple(told["config"]["augment_face"])}
        train_worker(TrainConfig(**config), rank=rank, world_size=world_size, device=device)
    finally:
        dist.destroy_process_group()


def _last_epoch(run: Path) -> dict[str, Any]:
    """Of the last row of metrics.csv: its epoch, the losses, and how many examples a second it took."""
    names, *_, last = (run / "metrics.csv").read_text().splitlines()
    row = dict(zip(names.split(","), last.split(","), strict=True))
    return {"epoch": int(row["epoch"])} | {name: float(row[name]) for name in SHOWN if row.get(name)}


def scoring(options: GpuOptions, _: Mapping[str, Any]) -> dict[str, Any]:
    """Examples a second and how far probabilities lie from the CPU's: the run of `training`, and its ONNX file."""
    run = options.folder / "run-1"
    if not run.exists():
        raise UsageError("scoring needs the run of the part training")
    drawn = draw_frames("validation", frames_per_pair=1, num_people=3, places_per_scene=1)
    px = 32 if options.small else 224
    examples = [made_example(frame, split="validation", number=n, px=px) for n, frame in enumerate(drawn)]
    rows = examples * (1 if options.small else 8)
    expected = Predictor(str(run), which="best", device="cpu", batch_size=32).predict(rows)
    ways = {"the run": str(run)}
    left_out = None
    try:
        ways["its ONNX file"] = export_onnx(str(run), str(options.folder / "onnx"))[0]
    except UsageError as error:
        left_out = str(error)
    found = {}
    for name, checkpoint in ways.items():
        predictor = Predictor(checkpoint, which="best", device=options.device, batch_size=32)
        predictor.predict(rows[:32])
        started = time.perf_counter()
        given = predictor.predict(rows)
        seconds = time.perf_counter() - started
        differs = float(np.abs(given - expected).max())
        found[name] = {"examples_per_second": len(rows) / seconds, "most_difference": differs}
    return {"num_examples": len(rows), "ways": found, "onnx": left_out or "run"}


def tables(parts: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """A table for each of these parts that ran."""
    made = []
    if "network" in parts:
        rows = [
            [
                row["precision"] + (", compiled" if row["compiled"] else ""),
                str(row["batch"]),
                f"{row['examples_per_second']:.1f}",
                "-" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}",
                "-" if row["memory_mib"] is None else f"{row['memory_mib']:.0f}",
            ]
            for row in parts["network"]["rows"]
        ]
        columns = ("arithmetic", "batch", "examples/s", "of the fastest product", "MiB")
        made.append(table(f"CAHFW-Net's training step at {parts['network']['px']} px", columns, rows))
    if "training" in parts:
        rows = [
            [name, str(run["epoch"]), *(f"{run.get(key, float('nan')):.3f}" for key in SHOWN)]
            for name, run in parts["training"]["runs"].items()
        ]
        columns = ("workers", "epoch", "training loss", "validation loss", "examples/s")
        made.append(table("Training by jobs/train.py's worker under torchrun", columns, rows))
    if "scoring" in parts:
        rows = [
            [name, f"{way['examples_per_second']:.1f}", f"{way['most_difference']:.1e}"]
            for name, way in parts["scoring"]["ways"].items()
        ]
        made.append(table("Scoring", ("by", "examples/s", "probabilities differ from the CPU's by"), rows))
    return made


def _data(options: GpuOptions) -> str:
    """The drawn examples, made once."""
    counts = {"train": 2 if options.small else 40, "validation": 1, "test": 0}
    px = 32 if options.small else 224
    folder = str(options.folder / "data")
    write_made_examples(folder, frames_per_pair=counts, num_people=3, places_per_scene=1, px=px, seed=0)
    return folder


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    _worker(sys.argv[1])
