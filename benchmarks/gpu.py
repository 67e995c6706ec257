"""What needs a GPU, tried and measured on one machine in under ten minutes: `python benchmarks/gpu.py --output DIR`.

It wants this package's libraries but Ray, and no network. Each part stands alone: one that fails is told with its error
and the others go on. Without a GPU the same parts run on the CPU, which shows that they work and nothing of speed.
What is measured on what is drawn says so: frames of a made corpus, whose faces Dlib's CNN finds.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Where this package is not installed, it lies beside this folder.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import gpu_detection, gpu_training
from benchmarks.config import GpuOptions
from benchmarks.ingest import peak_flops
from benchmarks.machine import machine
from benchmarks.tables import table
from pipeline.faces.devices import resolve_device
from pipeline.records.vocabulary import UsageError
from pipeline.storage.store import Storage

LIMIT_SECONDS = 540.0


# In the order in which they run; a part sees what those before it found.
PARTS: dict[str, Callable[[GpuOptions, Mapping[str, Any]], dict[str, Any]]] = {
    "matmul": lambda options, _: {
        kind: peak_flops(torch.device(options.device), bf16=kind == "bf16") / 1e9 for kind in ("fp32", "bf16")
    },
    "parity": gpu_detection.parity,
    "detection": gpu_detection.speed,
    "decoding": gpu_detection.decoding,
    "crops": gpu_detection.crops,
    "network": gpu_training.network,
    "training": gpu_training.training,
    "scoring": gpu_training.scoring,
}


def run(options: GpuOptions, *, parts: tuple[str, ...] = tuple(PARTS)) -> dict[str, Any]:
    """Each part's results by its name, or its error; `seconds` of each, and what was left out for want of time."""
    started = time.monotonic()
    found: dict[str, Any] = {}
    for name in parts:
        begun = time.monotonic()
        if begun - started > LIMIT_SECONDS:
            found[name] = {"left_out": f"{LIMIT_SECONDS:.0f} s are over"}
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            found[name] = PARTS[name](options, found)
        except UsageError as error:  # Something is not installed, or not there.
            found[name] = {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - that of one part, told with it: the others are wanted too
            traceback.print_exc()
            found[name] = {"error": f"{type(error).__name__}: {error}"}
        found[name]["seconds"] = round(time.monotonic() - begun, 1)
    return {
        "machine": {**machine(), **_gpus()},
        "settings": {"device": options.device, "small": options.small},
        "device": _named(options.device),
        "seconds": round(time.monotonic() - started, 1),
        "parts": found,
    }


def _gpus() -> dict[str, Any]:
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"gpus": names, "cuda": torch.version.cuda, "torch": torch.__version__}


def _named(device: str) -> str:
    """The device by its name on this machine."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU: nothing here was run on CUDA"


def tables(results: Mapping[str, Any]) -> list[Table]:
    """The figures, a table a part; parts without any are a row each of the last."""
    parts = {name: part for name, part in results["parts"].items() if "error" not in part and "left_out" not in part}
    made = [*gpu_detection.tables(parts), *gpu_training.tables(parts)]
    rows = [
        [name, f"{part.get('seconds', 0):.0f}", part.get("error") or part.get("left_out") or "ran"]
        for name, part in results["parts"].items()
    ]
    return [*made, table(f"Parts on {results['device']}", ("part", "s", "end"), rows)]


def main(arguments: list[str] | None = None) -> int:
    """0, 1 where a part failed, 2 for wrong use."""
    parser = argparse.ArgumentParser(description="Runs and measures what needs a GPU, without Ray and without network.")
    parser.add_argument("--output", required=True, help="folder of gpu.json and gpu.txt")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="all by default")
    parser.add_argument("--small", action="store_true", help="sizes for a try on a CPU")
    chosen = parser.parse_args(arguments)
    try:
        device = resolve_device(chosen.device)
    except UsageError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        options = GpuOptions(device=device, small=chosen.small, folder=Path(folder))
        results = run(options, parts=tuple(name for name in PARTS if name in chosen.parts))
    text = io.StringIO()
    for console in (Console(file=text, width=120), Console(width=None if sys.stdout.isatty() else 120)):
        for each in tables(results):
            console.print(each)
    output = Storage(chosen.output)
    output.put("gpu.json", (json.dumps(results, indent=1) + "\n").encode())
    output.put("gpu.txt", text.getvalue().encode())
    return 1 if any("error" in part for part in results["parts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
