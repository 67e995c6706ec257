"""Examples come in, checkpoints and metrics go out: the loop of one worker, and the same loop on Ray Train.

    RUN/config.yaml      every field as it was resolved
    RUN/checkpoints/     after epochs and within them, see pipeline/checkpoint.py; RUN/best.json names the best
    RUN/metrics.csv      one row per epoch; RUN/steps.csv: per step; both in RUN/tensorboard/, see pipeline/tracking.py
    RUN/summary.json     written last

SGD with Nesterov momentum, the learning rate annealed by a cosine to 0 step by step, cross-entropy on logits with
flooding (Ishida et al. 2020; the paper's Eq. 27). Everything random (order, augmentation, dropout, initial weights) is
a function of (seed, step, rank), so nothing of it needs saving: a run that was killed goes on from its last checkpoint
as if it never stopped. Every number of workers sees the same global batches; only dropout's masks and, without
--sync-batchnorm, the statistics of batch norm are each worker's own.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import ray
import ray.train
import torch
import yaml
from ray.exceptions import RayActorError
from ray.train import FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import report
from pipeline.dataset.batches import num_loader_processes
from pipeline.dataset.shards import read_manifest
from pipeline.models.checkpoint_info import best_of, put, read_checkpoint_info
from pipeline.models.claims import model_classes
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.cluster import check_nodes, start_ray, stop_ray
from pipeline.runtime.console import is_json, log_as_json, log_event, log_status
from pipeline.runtime.preflight import check_output
from pipeline.runtime.worker_device import resolve_worker_device
from pipeline.storage.modes import own_umask
from pipeline.storage.redaction import redacted_values
from pipeline.storage.remote import absolute_url
from pipeline.storage.scratch import scratch
from pipeline.train.card import put_card
from pipeline.train.config import TrainConfig, notes_of
from pipeline.train.examine import examine
from pipeline.train.learner import TrainingStopped
from pipeline.train.network import check_model, classes_for
from pipeline.train.training_log import MlflowRun, TrainingDisplay, import_mlflow, write_history
from pipeline.train.worker import is_finished, saved_run, train_worker

START_SECONDS = 300  # for workers to start; Ray's 60 are short on a busy machine that imports torch


def train(config: TrainConfig) -> dict[str, Any]:
    """Train on Ray, print one line per epoch, and give the summary that also lies in RUN/summary.json.

    Raises UsageError where the data, the config or an earlier run in RUN don't allow it, and where the loss is no
    longer finite; RuntimeError where more workers were lost than `max_failures`.
    """
    log_as_json(config.json_logs)
    config = replace(config, data=absolute_url(config.data), output=absolute_url(config.output))
    manifest = read_manifest(config.data)
    for split in ("train", "validation"):
        manifest.shards_of(split)
    if config.tracking == "mlflow":
        import_mlflow()
    check_model(config, manifest)
    saved = saved_run(config, manifest.sha256)
    if saved is not None and not config.resume:
        raise UsageError(
            f"output {config.output} already holds checkpoints up to epoch {saved['epoch']}, step {saved['step']};"
            " add --resume to go on from there, or choose another --output"
        )
    if saved is None or not is_finished(config, saved["history"]):
        log_status(f"checked: {check_output(config.output)}")
        resolved = yaml.safe_dump(redacted_values(asdict(config)), sort_keys=False)
        put(config.output, "config.yaml", content=resolved.encode())
        for note in notes_of(config, num_classes=len(classes_for(config, manifest))):
            log_status(f"note: {note}", event="note")
        log_status(start_ray())
        check_nodes(config.output)
        workers, use_gpu = _workers(config)
        try:
            history = saved["history"] if saved else []
            _fit(config, workers=workers, use_gpu=use_gpu, history=history)
        finally:
            stop_ray()
    else:
        log_status(f"run {config.output} has its {config.epochs} epochs already; nothing to do")
    saved = read_checkpoint_info(config.output, "last")
    summary, history = summary_of(saved), saved["history"]
    write_history(config.output, history)  # A worker that was killed just after its last commit has not.
    put(config.output, "summary.json", content=json.dumps(summary, indent=1).encode())
    put_card(config.output, summary, saved)
    found = examine(config.output, config.data, cache_dir=config.cache_dir, pictures=not config.no_thumbnails)
    page = report.training_page(
        summary,
        history,
        title="Training",
        best=found.metrics,
        classes=model_classes(saved["config"]),
        attended=found.attended,
        wrong=found.wrong,
        num_examined=found.num_examined,
        data=saved.get("data"),
        settings=saved["config"]["training"],
        no_thumbnails=config.no_thumbnails,
        blur_faces=config.blur_faces,
    )
    put(config.output, "report.html", content=page.encode())
    return summary


def summary_of(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A run in a few numbers, from its last checkpoint's JSON: the best epoch's metrics, seconds, examples/s."""
    history = saved["history"]
    best = best_of(history)
    seconds = sum(row["seconds"] for row in history)
    return {
        "model": saved["config"]["model"]["name"],
        "epochs": saved["epoch"],
        "steps": saved["step"],
        "best_epoch": best["epoch"],
        "best": {key: value for key, value in best.items() if key.startswith("validation_")},
        "seconds": round(seconds, 3),
        "train_examples_per_second": round(float(np.median([row["train_examples_per_second"] for row in history])), 3),
        "manifest_sha256": saved["manifest_sha256"],
    }


def print_summary(run_url: str, summary: Mapping[str, Any]) -> None:
    """The end of a training in words."""
    if is_json():
        log_event("summary", **summary, output=run_url)
        return
    log_status(
        f"best epoch {summary['best_epoch']} of {summary['epochs']}: validation top-1"
        f" {summary['best']['validation_top1_accuracy']:.2%}, macro-F1 {summary['best']['validation_macro_f1']:.3f};"
        f" {summary['seconds']:.1f} s, {summary['train_examples_per_second']:.1f} examples/s"
    )
    log_status(f"output: {run_url}")


def _workers(config: TrainConfig) -> tuple[int, bool]:
    """How many workers, and whether each has a GPU. Raises UsageError where they don't fit: Ray would wait."""
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 0)
    use_gpu = resolve_worker_device(config.device) == "cuda"
    workers = config.workers or max(gpus if use_gpu else 1, 1)
    room = gpus if use_gpu else int(cpus // 0.5)
    if workers > room and config.device == "cuda":
        log_status(f"the cluster has {gpus} GPUs now: asking it for {workers}")
    elif workers > room:
        raise UsageError(
            f"--workers {workers}: the cluster has room for {room} ({gpus} GPUs, {cpus:g} CPUs); give {room} or fewer"
        )
    if config.batch_size % workers:
        raise UsageError(f"--batch-size {config.batch_size} can't be shared by {workers} workers; give a multiple")
    return workers, use_gpu


def _fit(config: TrainConfig, *, workers: int, use_gpu: bool, history: Sequence[Mapping[str, Any]]) -> None:
    """Run the workers on Ray Train to the end, and print what rank 0 announces meanwhile."""
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_SECONDS))
    failures = FailureConfig(max_failures=config.max_failures, controller_failure_limit=config.max_failures)
    # What carries a line of progress must not end a training of days: it lies where the driver lies, and comes back.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lasting = {"max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    events = Queue(actor_options={"num_cpus": 0, **lasting})

    def fit() -> Result:
        for num_lost in itertools.count():
            # The folder is for Ray's own notes: checkpoints are committed by the worker, not by report().
            with scratch("ray-train") as folder:
                trainer = TorchTrainer(
                    _ray_worker,
                    train_loop_config={"config": asdict(config), "events": events, "umask": own_umask()},
                    # Whole CPUs would leave none for Ray's own tasks, which then wait for ever without a word.
                    scaling_config=ScalingConfig(
                        num_workers=workers,
                        use_gpu=use_gpu,
                        resources_per_worker={"CPU": 0.5, "GPU": 1} if use_gpu else {"CPU": 0.5},
                    ),
                    run_config=RunConfig(storage_path=str(folder), failure_config=failures),
                )
                try:
                    return trainer.fit()
                except RayActorError:  # Ray's controller died, and with it the workers; nothing of theirs is needed.
                    if num_lost >= config.max_failures or not ray.is_initialized():
                        raise
        raise AssertionError("unreachable")

    with (
        _tracked(config, history) as tracker,
        TrainingDisplay() as display,
        ThreadPoolExecutor(1) as thread,
    ):
        # In a thread, since in the main one fit() takes Ctrl-C for itself and ends the process with code 0.
        result = thread.submit(fit)
        try:
            while not result.done() or not events.empty():
                try:
                    event = events.get(timeout=1)
                except Empty:
                    continue
                display.show(event)
                if tracker is not None and event["event"] == "epoch":
                    tracker.log(event)
        except KeyboardInterrupt:
            stop_ray()  # ends fit(), for which the pool of this one thread would wait
            raise
        failure = result.exception()
        if failure is not None:
            raise RuntimeError(
                f"training stopped after {config.max_failures} restarts: {failure}; go on with --resume"
            ) from failure
        stopped = result.result().return_value
        if stopped:
            raise TrainingStopped(stopped)


@contextmanager
def _tracked(config: TrainConfig, history: Sequence[Mapping[str, Any]]) -> Iterator[MlflowRun | None]:
    """The user's MLflow run, where one is asked for; it fails where the training fails."""
    if config.tracking == "none":
        yield None
        return
    tracker = MlflowRun(config.output, parameters=redacted_values(asdict(config)), history=history)
    finished = False
    try:
        yield tracker
        finished = True
    finally:
        tracker.close(finished=finished)


def _ray_worker(payload: dict[str, Any]) -> str | None:
    """train_worker in a process of Ray Train; why it stopped, or None where it came to the end."""
    os.umask(payload["umask"])  # The driver's: a cluster's own may let others read.
    context = ray.train.get_context()
    config, device = TrainConfig(**payload["config"]), get_device()
    cores = max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size())
    if device.type == "cpu":
        torch.set_num_threads(cores)  # Ray sets 1 for half a CPU
    processes = num_loader_processes(config.loader_processes, device=device, cores=cores)
    try:
        train_worker(
            config,
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
            device=device,
            loader_processes=processes,
            announce=payload["events"].put,
        )
    except TrainingStopped as stopped:
        return str(stopped)
    return None
