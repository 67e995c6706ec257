"""Does it learn what the paper claims? Networks and a budget come in; test accuracy, mean and spread over seeds, out.

The corpus is SYNTHETIC: the class is decided by face and context together, and either alone is bounded by computation.
Every run is `train_worker`, the loop of jobs/train.py without Ray, one thread a run and several runs side by side. A
run that is in the output with the same settings is not done again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.attention_use import attention_use
from benchmarks.made_examples import NUM_PAIRS, write_made_examples
from benchmarks.tables import table
from pipeline.dataset.dataset import ExampleDataset
from pipeline.evaluate.job import evaluate
from pipeline.faces.devices import resolve_device
from pipeline.models.checkpoint import load_checkpoint
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import log_status
from pipeline.storage.store import Storage
from pipeline.synthetic.corpus import MadeCorpus, single_stream_bounds
from pipeline.synthetic.cues import cue_bounds
from pipeline.train.config import TrainConfig
from pipeline.train.network import NORMED_DROPOUT
from pipeline.train.worker import train_worker

NETWORKS: dict[str, dict[str, Any]] = {  # name in the table: fields of TrainConfig
    "cahfw": {"model": "cahfw"},
    "se-ca-aa": {"model": "se-ca-aa"},
    "se-af": {"model": "se-af"},
    "face-only": {"model": "se-af", "input": "face"},
    "context-only": {"model": "se-af", "input": "context"},
    "area-gain": {"model": "cahfw", "attention_gain": "area"},
    "literal-eq-13": {"model": "cahfw", "recalibration_scale": "paper"},
    "no-norm": {"model": "cahfw", "pooled_norm": "none", "attention_gain": "paper"},
    "no-norm-area-gain": {"model": "cahfw", "pooled_norm": "none", "attention_gain": "area"},
    "no-norm-se-af": {"model": "se-af", "pooled_norm": "none", "attention_gain": "area"},
}
WHAT = {
    "cahfw": "CAHFW-Net: SE + CA + ER + AA, Eq. 7 to the letter, batch norm on pooled vectors",
    "se-ca-aa": "without ER",
    "se-af": "two streams, weighted",
    "face-only": "the face's stream alone",
    "context-only": "the context's stream alone",
    "area-gain": "CAHFW-Net, attention times its number of places",
    "literal-eq-13": "CAHFW-Net, recalibration of Eq. 13 to the letter",
    "no-norm": "CAHFW-Net without the norm, Eq. 7 to the letter",
    "no-norm-area-gain": "CAHFW-Net without the norm, attention times its number of places",
    "no-norm-se-af": "two streams without the norm, attention times its number of places",
}

# By corpus: what the best model can reach that sees the face alone, and the context alone.
BOUNDS = {"scenes": single_stream_bounds, "cues": cue_bounds}


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """Trains the paper's networks on a SYNTHETIC corpus whose class face and context decide together."""

    study: str
    """learn."""
    output: str = "build/learn"
    """Local folder of learn.json, learn.md, the corpus and one JSON a run; what is there is not done again."""
    corpus: MadeCorpus = "scenes"
    """What decides the class: scenes (the face's expression and the scene) or cues (the sign on the side from which the
    face is lit, of up to three)."""
    networks: tuple[str, ...] = tuple(NETWORKS)
    """Which to train: cahfw, se-ca-aa, se-af, face-only, context-only, area-gain, literal-eq-13, no-norm,
    no-norm-area-gain, no-norm-se-af."""
    seeds: int = 3
    """Trainings of each network, with seeds 0, 1, ... (count)."""
    train_examples: int = 1470
    """Examples to train on, a multiple of 21: every expression in every scene equally often; of cues every class with
    every number of signs."""
    validation_examples: int = 210
    """Examples that choose the best epoch, a multiple of 21."""
    test_examples: int = 1050
    """Examples that are counted, a multiple of 21."""
    people: int = 40
    """People of each split, none of them in another (count)."""
    places_per_scene: int = 12
    """Places of each kind of scene and split, none of them in another (count)."""
    px: int = 32
    """Side of the face and context squares, pixels, a multiple of 16; 224 is the paper's."""
    epochs: int = 6
    """Passes over the training examples."""
    batch_size: int = 32
    """Examples of one optimizer step."""
    lr: float = 0.02
    """Learning rate of the first step."""
    dropout: float = NORMED_DROPOUT
    """Share of features that dropout zeroes; the paper's is 0.5."""
    precision: str = "auto"
    """auto (bf16 on CUDA, fp32 on CPU), fp32 or bf16."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu or cuda."""
    processes: int | None = None
    """Trainings side by side. None: one a core on CPU, one thread each; one on a GPU."""
    loader_processes: int | None = None
    """Processes that decode images for a training on a GPU. None: one a core, up to 12; 0 on CPU."""

    def __post_init__(self) -> None:
        if self.corpus not in BOUNDS:
            raise UsageError(f"--corpus {self.corpus}: give one of {', '.join(BOUNDS)}")
        if unknown := set(self.networks) - set(NETWORKS):
            raise UsageError(f"--networks {', '.join(sorted(unknown))}: give any of {', '.join(NETWORKS)}")
        for name in ("train_examples", "validation_examples", "test_examples"):
            if getattr(self, name) < NUM_PAIRS or getattr(self, name) % NUM_PAIRS:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: give a multiple of {NUM_PAIRS}")
        for name in ("seeds", "people", "places_per_scene"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 1 or more")
        if self.px < 16 or self.px % 16:
            raise UsageError(f"--px {self.px}: give a multiple of 16 pixels")
        if not Storage(self.output).is_local:
            raise UsageError(f"--output {self.output}: give a local folder, from which every training reads")
        resolve_device(self.device)


# What a run's result depends on; the rest is where and how fast.
SETTINGS = (
    *("train_examples", "validation_examples", "test_examples", "people", "places_per_scene", "px", "epochs"),
    *("batch_size", "lr", "dropout", "precision"),
)


def learn(config: LearnConfig) -> dict[str, Any]:
    """Train what is missing, write learn.json and learn.md, and return what learn.json holds."""
    storage = Storage(config.output)
    settings = {name: getattr(config, name) for name in SETTINGS}
    settings["device"] = resolve_device(config.device).partition(":")[0]
    parts = ("train", "validation", "test")
    data = f"{storage.path()}/examples-{'-'.join(str(settings[f'{part}_examples']) for part in parts)}"
    data += f"-{config.people}-{config.places_per_scene}-{config.px}px"
    if config.corpus != "scenes":
        settings["corpus"] = config.corpus
        data += f"-{config.corpus}"
    log_status("drawing the SYNTHETIC corpus, where it is not there yet")
    manifest_sha256 = write_made_examples(
        data,
        frames_per_pair={part: settings[f"{part}_examples"] // NUM_PAIRS for part in parts},
        num_people=config.people,
        places_per_scene=config.places_per_scene,
        px=config.px,
        seed=0,
        corpus=config.corpus,
    )
    settings["manifest_sha256"] = manifest_sha256
    # Seed by seed: a study that is cut off has every network at the seeds that it has.
    wanted = [(name, seed) for seed in range(config.seeds) for name in NETWORKS if name in config.networks]
    missing = [job for job in wanted if _saved(storage, *job, settings) is None]
    log_status(f"{len(wanted)} trainings, {len(wanted) - len(missing)} of them done already")
    gpu = settings["device"] == "cuda"
    processes = config.processes or (1 if gpu else _cores())
    loaders = config.loader_processes if config.loader_processes is not None else (min(_cores(), 12) if gpu else 0)
    started = time.monotonic()
    with _training_processes(processes) as pool:
        jobs = [
            pool.submit(_train_and_test, name, seed, settings=settings, data=data, loader_processes=loaders)
            for name, seed in missing
        ]
        for done, job in enumerate(as_completed(jobs), start=1):
            run = job.result()
            storage.put(_path(run["network"], run["seed"]), (json.dumps(run, indent=1) + "\n").encode())
            left = (time.monotonic() - started) / done * (len(missing) - done)
            log_status(
                f"{done}/{len(missing)}  {run['network']} seed {run['seed']}: test top-1 {run['top1_accuracy']:.1%},"
                f" {run['seconds']:.0f} s; about {left / 60:.0f} min left"
            )
    return _written(storage, config, settings)


@contextmanager
def _training_processes(num: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for trainings, which are given up where this one is stopped."""
    with ProcessPoolExecutor(num, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _path(network: str, seed: int) -> str:
    return f"runs/{network}-seed-{seed}.json"


def _saved(storage: Storage, network: str, seed: int, settings: dict[str, Any]) -> dict[str, Any] | None:
    if not storage.exists(_path(network, seed)):
        return None
    run = json.loads(storage.read(_path(network, seed)))
    return run if run["settings"] == settings else None


def _train_and_test(
    name: str, seed: int, *, settings: dict[str, Any], data: str, loader_processes: int
) -> dict[str, Any]:
    """One training in a process of its own, and its best epoch by validation on the test split."""
    device = torch.device(settings["device"])
    if device.type == "cpu":
        torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="learn-"))
    started = time.perf_counter()
    try:
        config = TrainConfig(
            data=data,
            output=str(folder / "run"),
            cache_dir=f"{data}/cache",
            seed=seed,
            epochs=settings["epochs"],
            batch_size=settings["batch_size"],
            lr=settings["lr"],
            dropout=settings["dropout"],
            precision=settings["precision"],
            **NETWORKS[name],
        )
        history: list[dict[str, Any]] = []
        train_worker(config, device=device, loader_processes=loader_processes, announce=history.append)
        evaluation = evaluate(
            data,
            config.output,
            splits=("test",),
            device=settings["device"],
            cache_dir=config.cache_dir,
            loader_processes=loader_processes,
        )
        examples = ExampleDataset(data, split="test", cache_dir=config.cache_dir)
        use = attention_use(load_checkpoint(config.output).model, examples, device=settings["device"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    test = evaluation["splits"]["test"]
    epochs = [event for event in history if event["event"] == "epoch"]
    return {
        "network": name,
        "seed": seed,
        "settings": settings,
        "top1_accuracy": test["top1_accuracy"],
        "macro_f1": test["macro_f1"],
        "confusion_matrix": test["confusion_matrix"],
        "cross_attention": use,
        "best_epoch": evaluation["epoch"],
        "seconds": time.perf_counter() - started,
        "history": [
            {key: epoch[key] for key in ("epoch", "train_loss", "validation_loss", "validation_top1_accuracy")}
            for epoch in epochs
        ],
    }


def _written(storage: Storage, config: LearnConfig, settings: dict[str, Any]) -> dict[str, Any]:
    face, context = BOUNDS[config.corpus]()
    bound_of = {"face-only": face, "context-only": context}
    rows = []
    for name in NETWORKS:
        runs = [run for seed in range(config.seeds) if (run := _saved(storage, name, seed, settings))]
        if not runs:
            continue
        accuracies = [run["top1_accuracy"] for run in runs]
        rows.append(
            {
                "network": name,
                "what": WHAT[name],
                "bound": bound_of.get(name, 1.0),
                "top1_accuracies": accuracies,
                "mean": statistics.mean(accuracies),
                "standard_deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                "cross_attention": [use for run in runs if (use := run.get("cross_attention"))],
                "final_train_loss": statistics.mean(run["history"][-1]["train_loss"] for run in runs),
                "seconds": sum(run["seconds"] for run in runs),
            }
        )
    results = {"settings": settings, "chance": 1 / 7, "rows": rows, "config": asdict(config)}
    storage.put("learn.json", (json.dumps(results, indent=1) + "\n").encode())
    storage.put("learn.md", learn_markdown(results).encode())
    log_status(f"output: {storage.path('learn.json')}, learn.md")
    return results


COLUMNS = (
    *("network", "what", "test top-1, %", "each seed", "cannot pass", "with another's keys, %", "channels mixed"),
    "train loss, nats",
)


def _cells(row: dict[str, Any]) -> list[str]:
    spread = "" if row["standard_deviation"] is None else f" ± {100 * row['standard_deviation']:.1f}"
    return [
        row["network"],
        row["what"],
        f"{100 * row['mean']:.1f}{spread}",
        ", ".join(f"{100 * accuracy:.1f}" for accuracy in row["top1_accuracies"]),
        f"{100 * row['bound']:.1f}",
        ", ".join(f"{100 * use['top1_with_other_keys']:.1f}" for use in row["cross_attention"]),
        ", ".join(f"{use['channels_mixed']:.1f}" for use in row["cross_attention"]),
        f"{row['final_train_loss']:.2f}",
    ]


def _budget(settings: dict[str, Any]) -> str:
    return (
        f"SYNTHETIC corpus of {settings.get('corpus', 'scenes')}, {settings['train_examples']:,} examples to train on"
        f" and {settings['test_examples']:,} to test, {settings['people']} people and"
        f" {7 * settings['places_per_scene']} places a split (no person or place in two splits); {settings['px']} px"
        f" (attention over {(settings['px'] // 16) ** 2} positions; at 224 px 196), {settings['epochs']} epochs,"
        f" batches of {settings['batch_size']}, lr {settings['lr']}, dropout {settings['dropout']}, best epoch by"
        " validation; chance 14.3 %. ±: standard deviation over seeds. With another's keys: where cross-attention is"
        " given the other stream of another example. Channels mixed: over how many of 256 a row of its softmax spreads."
    )


def learn_markdown(results: dict[str, Any]) -> str:
    """The study's table with its budget, as Markdown."""
    lines = [_budget(results["settings"]), "", f"| {' | '.join(COLUMNS)} |", "|---|---|" + (len(COLUMNS) - 2) * "---:|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in results["rows"]]
    return "\n".join(lines) + "\n"


def print_learned(results: dict[str, Any]) -> None:
    """The study's table in a terminal."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table("What is learnt", COLUMNS, [_cells(row) for row in results["rows"]]))
    console.print(_budget(results["settings"]), highlight=False)
