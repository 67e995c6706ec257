"""Measurements on this machine: clips in, `benchmark.json` and tables out. One module a study, listed in `STUDIES`.

A study has `measure(clips, folder, *, config)`, which returns what goes into benchmark.json, and `tables(measured)`,
which shows it. `timing` has what studies share: every contender runs once a round, side by side. Those that
`jobs/benchmark.py` lists have flags and an output of their own, `learn` (what the networks learn) among them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from benchmarks import calls, decode, detect, looks, parity, poison, preprocess, recall, soak
from benchmarks.clips import usable_clips
from benchmarks.config import BenchmarkConfig
from benchmarks.core_hours import core_hours_table, corpus_core_hours
from benchmarks.machine import machine
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import log_status
from pipeline.storage.store import Storage
from pipeline.synthetic.corpus import FACELESS_PATH, make_corpus

STUDIES: dict[str, ModuleType] = {
    "detect": detect,
    "decode": decode,
    "preprocess": preprocess,
    "parity": parity,
    "recall": recall,
    "looks": looks,
    "poison": poison,
    "soak": soak,
    "calls": calls,
}
MAX_DISTINCT = 20
ALL = ("detect", "decode", "preprocess")  # what `all` runs


def benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Run a study; writes benchmark.json and returns what it holds. Raises UsageError for an unknown study."""
    chosen = ALL if config.study == "all" else (config.study,)
    if not set(chosen) <= set(STUDIES):
        raise UsageError(f"study is {config.study!r}; give one of {', '.join(STUDIES)}, all")
    storage = Storage(config.output)
    settings = json.loads(json.dumps(asdict(config)))  # As it will be read: tuples are lists there.
    results: dict[str, Any] = {"machine": machine(), "settings": settings}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        source = config.clips
        if source is None:
            log_status("making a SYNTHETIC corpus")
            source = str(Path(folder) / "corpus")
            make_corpus(source, clips_per_class=(3, 0, 0))
            (Path(source) / FACELESS_PATH).unlink()
        clips = usable_clips(source, most=config.num_clips or MAX_DISTINCT)
        for study in chosen:
            log_status(study)
            before = os.getloadavg()
            measured = STUDIES[study].measure(clips, Path(folder), config=config)
            results[study] = {**measured, "load_average": {"before": before[0], "after": os.getloadavg()[0]}}
    results["core_hours"] = corpus_core_hours(results)
    storage.put("benchmark.json", (json.dumps(results, indent=1) + "\n").encode())
    log_status(f"output: {storage.path('benchmark.json')}")
    return results


def print_tables(results: Mapping[str, Any]) -> None:
    """Print the machine and the tables of each study that ran."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    told = results["machine"]
    console.print(
        f"{told['cpu']}, family/model {told['cpu_family_model']}, {told['cores']} cores, {told['memory_gib']} GiB, "
        f"{' '.join(told['flags'])}; load {told['load_average']:.2f}"
    )
    console.print(", ".join(f"{name} {version}" for name, version in told["versions"].items()))
    for study, module in STUDIES.items():
        if study in results:
            for table in module.tables(results[study]):
                console.print(table)
            load = results[study]["load_average"]
            console.print(f"load average {load['before']:.2f} before, {load['after']:.2f} after")
    if results["core_hours"]:
        console.print(core_hours_table(results["core_hours"]))
