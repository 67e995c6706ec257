"""The training loop of one worker."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.dataset.batches import EvaluationBatches, TrainingBatches, load_batches
from pipeline.dataset.dataset import Batch, ExampleDataset
from pipeline.dataset.description import describe_data, describe_examples
from pipeline.dataset.shards import read_manifest
from pipeline.evaluate.validation import evaluate
from pipeline.models.backbones import BACKBONES
from pipeline.models.checkpoint import FIXED_FIELDS, drop_old_checkpoints, load_checkpoint, save_checkpoint
from pipeline.models.checkpoint_info import best_of, newest_checkpoint, read_checkpoint_info
from pipeline.models.claims import model_classes
from pipeline.models.shipped import portable
from pipeline.records.vocabulary import UsageError
from pipeline.storage.redaction import redacted
from pipeline.train.config import TrainConfig
from pipeline.train.learner import (
    Learner,
    RunState,
    TrainingStopped,
    constant_lr,
    cosine_lr,
    make_deterministic,
)
from pipeline.train.network import (
    BEFORE,
    checkpoint_config,
    classes_for,
    input_sizes,
    load_initial,
    load_pretrained,
    new_model,
    with_readings,
)
from pipeline.train.training_log import RunLogs

T = TypeVar("T")


LOSS_CHECK_STEPS = 50  # a GPU is waited for once in so many steps to see whether the loss is still finite


def train_worker(config: TrainConfig, **options: Any) -> None:
    """`Trainer(config, ...).train()`: without Ray a whole training."""
    Trainer(config, **options).train()


class Trainer:
    """The training of one worker, from the newest checkpoint of RUN to the last epoch; without Ray it is a whole one.

    Args:
        config: what to train, on which data, into which RUN.
        rank, world_size: of this worker; above 1 a torch process group must be there.
        device: where the network runs.
        loader_processes: that decode images; 0: this process itself.
        announce: takes the events of rank 0: its start, steps now and then, and every epoch.
        training: batches to train on instead of those of the data, one a step.

    Raises TrainingStopped on every rank where data, RUN or loss don't allow to go on.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        loader_processes: int = 0,
        announce: Callable[[dict[str, Any]], None] = lambda _: None,
        training: Iterator[Batch] | None = None,
    ) -> None:
        self._config, self._rank, self._world_size = config, rank, world_size
        self._device, self._announce = device or torch.device("cpu"), announce if rank == 0 else lambda _: None
        self._loading: dict[str, Any] = {"processes": loader_processes, "device": self._device}
        if config.deterministic:
            make_deterministic()
        batches, self._validation, self._saved = self._together(self._open)
        config = with_readings(config, self._saved and self._saved["config"]["training"])
        self._examples, self._steps_per_epoch = batches.examples, batches.steps_per_epoch
        self._config = config = replace(config, classes=self._examples.classes)
        self._data = describe_examples(describe_data(config.data), self._examples.labels, classes=config.classes)
        self._total_steps = config.epochs * batches.steps_per_epoch
        self._run = run = self._together(lambda: _started(config, self._saved, rank=rank))
        self._training = training or load_batches(batches, range(run.step, self._total_steps), **self._loading)
        self._learner = Learner(
            config, run, labels=batches.examples.labels, device=self._device, rank=rank, world_size=world_size
        )

    def train(self) -> None:
        """Every step that is left, a validation after each epoch, and what is saved of them."""
        config, run, steps_per_epoch = self._config, self._run, self._steps_per_epoch
        first = {"epoch": run.step // steps_per_epoch + 1, "step": run.step, "steps_per_epoch": steps_per_epoch}
        self._announce({"event": "start", "world_size": self._world_size, "device": self._device.type, **first})
        self._logs = RunLogs(config.output, first_step=run.step, lr_of=self._lr) if self._rank == 0 else None
        if self._logs is not None and self._saved is not None:
            self._logs.write_tables(run.history, run.losses)  # a kill may have come between the checkpoint and these
        progress = _Progress(config, first_step=run.step, total_steps=self._total_steps)
        for epoch in range(first["epoch"], config.epochs + 1):
            if is_finished(config, run.history):
                break
            started = time.perf_counter() - run.seconds_of_epoch
            while run.step < epoch * steps_per_epoch:
                loss = self.train_step(started=started)
                if self._rank == 0 and progress.is_due():
                    self._announce(progress.event(run.step, epoch=epoch, loss=float(loss)))
            metrics = self.validate(started=started)
            run.history.append({"epoch": epoch, "step": run.step, **_row(metrics)})
            run.seconds_of_epoch = 0.0
            self._together(lambda metrics=metrics: self.save("epoch", metrics))
            self._announce({"event": "epoch", "epochs": config.epochs, **run.history[-1]})
        if self._logs is not None:
            self._logs.close()

    def train_step(self, *, started: float) -> Tensor:
        """One optimizer step, and a resume point where one is due; the loss before the step, a scalar on the device.

        started: when the epoch began, by time.perf_counter.
        """
        run, every = self._run, self._config.checkpoint_every_steps
        loss = self._learner.train_step(next(self._training), lr=self._lr(run.step))
        run.step += 1
        ends, commits = run.step % self._steps_per_epoch == 0, bool(every) and run.step % (every or 1) == 0
        if ends or commits or run.step % LOSS_CHECK_STEPS == 0:
            self._learner.note_losses()
        if commits and not ends:
            self._learner.average_buffers()
            seconds = time.perf_counter() - started
            self._together(lambda: self.save("step", {}, seconds=seconds))
        return loss

    def validate(self, *, started: float) -> dict[str, Any]:
        """Metrics of the epoch that ended, over all ranks: of training, and of every validation example."""
        run, steps = self._run, self._steps_per_epoch
        train_seconds = time.perf_counter() - started
        self._learner.average_buffers()
        metrics = evaluate(
            self._learner.evaluated,
            load_batches(self._validation, range(len(self._validation)), **self._loading),
            device=self._device,
            autocast=self._learner.autocast,
            world_size=self._world_size,
            flip=self._config.flip_at_test,
            classes=self._examples.classes,
        )
        return metrics | {
            "train_loss": float(np.mean(run.losses[run.step - steps :])),
            "lr": self._lr(run.step - 1),
            "train_examples_per_second": steps * self._config.batch_size / train_seconds,
            "seconds": time.perf_counter() - started,
            "world_size": self._world_size,
        }

    def save(self, after: Literal["epoch", "step"], metrics: Mapping[str, Any], *, seconds: float = 0.0) -> None:
        """Commit the state after an epoch or within one, and its tables; on rank 0 alone.

        seconds: that the unfinished epoch has taken so far.
        """
        if self._logs is None:
            return
        run = self._run
        save_checkpoint(
            self._config.output,
            epoch=run.step // self._steps_per_epoch,
            step=run.step,
            model=self._learner.evaluated,
            optimizer_state=self._learner.state(),
            config=checkpoint_config(self._config, self._examples),
            info={
                "metrics": dict(metrics),
                "temperature": metrics.get("temperature", 1.0),
                "manifest_sha256": self._examples.manifest.sha256,
                "pretrained_from": run.pretrained_from,
                "seconds_of_epoch": seconds,
                "history": run.history,
                "data": self._data,
                "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            after=after,
        )
        if after == "epoch":
            self._logs.write_epoch(run.history, run.losses)
        else:
            self._logs.write_steps(run.losses)
        drop_old_checkpoints(self._config.output, keep=self._config.keep)

    def _open(self) -> tuple[TrainingBatches, EvaluationBatches, dict[str, Any] | None]:
        """The data, and the newest checkpoint's JSON; raises UsageError for what only a worker can know."""
        manifest = read_manifest(self._config.data)
        saved = saved_run(self._config, manifest.sha256)
        config = with_readings(self._config, saved and saved["config"]["training"])
        share, sizes = {"rank": self._rank, "world_size": self._world_size}, input_sizes(config)
        cache: dict[str, Any] = {"cache_dir": config.cache_dir, "cache_decoded": config.cache_decoded}
        cache["classes"] = classes_for(config, manifest)
        train_set, validation_set = (
            ExampleDataset(config.data, split=split, **sizes, **cache) for split in ("train", "validation")
        )
        # A network that has learned a class goes on without examples of it: people correct what they see.
        init = None if config.init is None else read_checkpoint_info(portable(config.init))
        learned = () if init is None else model_classes(init["config"])
        train_set.require_every_class(learned=learned)
        batches = TrainingBatches(
            train_set,
            batch_size=config.batch_size,
            seed=config.seed,
            flip=config.flip,
            augment_face=config.augment_face,
            parts=config.accumulate,
            **share,
        )
        _require_possible(config, batches)
        validation = EvaluationBatches(
            validation_set, batch_size=max(1, config.batch_size // self._world_size), **share
        )
        return batches, validation, saved

    def _lr(self, step: int) -> float:
        config = self._config
        if config.schedule == "constant":
            return constant_lr(step, config.lr, warmup_steps=config.warmup_steps)
        return cosine_lr(step, self._total_steps, config.lr, warmup_steps=config.warmup_steps)

    def _together(self, action: Callable[[], T]) -> T:
        return _together(action, world_size=self._world_size)


def _started(config: TrainConfig, saved: Mapping[str, Any] | None, *, rank: int) -> RunState:
    """A run at its first step, or where `saved`, its newest checkpoint, left it."""
    torch.manual_seed(config.seed)
    model = new_model(config)
    if saved is None:
        origin = None
        if rank == 0 and config.init is not None:
            origin = load_initial(model, config)
        elif rank == 0 and config.pretrained != "none":
            origin = load_pretrained(model, config)
        return RunState(model=model, pretrained_from=origin)
    checkpoint = load_checkpoint(config.output, "newest")
    model.load_state_dict(checkpoint.model.state_dict())
    unknown = torch.full((saved["step"],), math.nan)  # of a checkpoint that has no losses
    return RunState(
        model=model,
        step=saved["step"],
        losses=checkpoint.training_state.get("losses", unknown).tolist(),
        history=saved["history"],
        seconds_of_epoch=saved.get("seconds_of_epoch", 0.0),
        pretrained_from=saved.get("pretrained_from"),
        training_state=checkpoint.training_state,
    )


class _Progress:
    """When to tell how far a training is, and what: once a second at most, since the loss is fetched for it."""

    def __init__(self, config: TrainConfig, *, first_step: int, total_steps: int) -> None:
        self._epochs, self._batch_size = config.epochs, config.batch_size
        self._first_step, self._total_steps = first_step, total_steps
        self._started = self._told_at = time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self._told_at >= 1

    def event(self, step: int, *, epoch: int, loss: float) -> dict[str, Any]:
        self._told_at = time.monotonic()
        steps_per_second = (step - self._first_step) / (self._told_at - self._started)  # validation's time is in it
        return {
            "event": "step",
            "step": step,
            "total_steps": self._total_steps,
            "epoch": epoch,
            "epochs": self._epochs,
            "loss": loss,
            "examples_per_second": steps_per_second * self._batch_size,
            "seconds_left": (self._total_steps - step) / steps_per_second,
        }


def is_finished(config: TrainConfig, history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the epochs done are all that the config asks for, or --early-stop ends the run after them."""
    if not history:
        return False
    last = history[-1]["epoch"]
    return last >= config.epochs or (
        config.early_stop is not None and last - best_of(history)["epoch"] >= config.early_stop
    )


def saved_run(config: TrainConfig, manifest_sha256: str) -> dict[str, Any] | None:
    """The last checkpoint's JSON of RUN; None where there is none yet.

    Raises UsageError where it was trained with another config or on other data, naming each difference.
    """
    if newest_checkpoint(config.output) is None:
        return None
    saved = read_checkpoint_info(config.output, "newest")
    then, now = saved["config"]["training"], json.loads(json.dumps(asdict(config)))  # tuples as lists
    # A field that is younger than RUN had its default there, or what BEFORE says; one left open here is as there.
    defaults = {one.name: one.default for one in fields(TrainConfig) if one.name in FIXED_FIELDS}
    then = {**json.loads(json.dumps(defaults)), **BEFORE, **then}
    differences = [
        f"--{name.replace('_', '-')} is {now[name]!r} here and {then[name]!r} there"
        for name in FIXED_FIELDS
        if then[name] != now[name] and not (name in BEFORE and now[name] is None)
    ]
    if config.classes and config.classes != (had := model_classes(saved["config"])):
        differences.append(f"--classes is {','.join(config.classes)} here and {','.join(had)} there")
    if saved["manifest_sha256"] != manifest_sha256:
        differences.append(
            f"the data's manifest is {manifest_sha256[:12]}… here and {saved['manifest_sha256'][:12]}… there"
        )
    if differences:
        raise UsageError(
            f"run {config.output} was trained otherwise: {'; '.join(differences)}; go on with what it had, or choose"
            " another --output"
        )
    return saved


def _row(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """One epoch's metrics as flat numbers: a row of metrics.csv."""
    return {
        "train_loss": metrics["train_loss"],
        "validation_loss": metrics["loss"],
        "validation_top1_accuracy": metrics["top1_accuracy"],
        "validation_macro_f1": metrics["macro_f1"],
        **{f"validation_accuracy_{name}": value for name, value in metrics["per_class_accuracy"].items()},
        "validation_examples": metrics["num_examples"],
        "temperature": metrics["temperature"],
        **{name: metrics[name] for name in ("lr", "train_examples_per_second", "seconds", "world_size")},
    }


def _together(action: Callable[[], T], *, world_size: int) -> T:
    """Do `action` on every rank; if a UsageError or a fault of storage ends it on any, raise TrainingStopped on all.

    Otherwise the other ranks would wait for the failed one, and Ray would start everything again, to the same end.
    """
    value, error = None, None
    try:
        value = action()
    except (UsageError, OSError) as failure:  # Storage has tried again what may pass.
        error = redacted(str(failure))
    errors: list[str | None] = [error]
    if world_size > 1:
        errors = [None] * world_size
        dist.all_gather_object(errors, error)
    for message in errors:
        if message is not None:
            raise TrainingStopped(message)
    return value  # pyright: ignore[reportReturnType]


def _require_possible(config: TrainConfig, batches: TrainingBatches) -> None:
    """Raise UsageError for what only a worker can know to be impossible."""
    total_steps = config.epochs * batches.steps_per_epoch
    met = config.batch_size // config.accumulate // (1 if config.sync_batchnorm else batches.world_size)
    if met < 2 and config.model not in BACKBONES and with_readings(config).pooled_norm == "batch":
        raise UsageError(
            f"--batch-size {config.batch_size}: on {batches.world_size} workers and with --accumulate"
            f" {config.accumulate} batch norm would see one example at a time; give a larger batch"
        )
    if config.warmup_steps >= total_steps:
        raise UsageError(f"--warmup-steps {config.warmup_steps}: the run has {total_steps} steps; give fewer")
    if config.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise UsageError("--compile: this machine has no C++ compiler; install g++, or leave it out")
