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

import hashlib
import itertools
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
import yaml
from ray.exceptions import RayActorError
from ray.train import FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from pipeline import report
from pipeline.checkpoint import (
    FIXED_FIELDS,
    best_of,
    drop_old_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    put,
    read_checkpoint_info,
    save_checkpoint,
)
from pipeline.console import is_json, log_as_json, say, tell
from pipeline.dataset import (
    AUGMENTATIONS,
    Batch,
    EvaluationBatches,
    ExampleDataset,
    Manifest,
    TrainingBatches,
    normalised,
    read_manifest,
)
from pipeline.examine import examine
from pipeline.metrics import confusion_matrix, metrics_of
from pipeline.models import Reads, build_model, default_reads
from pipeline.models.backbones import BACKBONES, Backbone, imagenet_weights, read_weights
from pipeline.models.batch_norm import synchronised
from pipeline.pool import check_nodes, start_ray, stop_ray
from pipeline.preflight import check_output
from pipeline.records import EMOTIONS, UsageError
from pipeline.storage import absolute_url, read_url, redacted, redacted_values
from pipeline.tracking import MlflowRun, RunLogs, TrainingDisplay, import_mlflow, write_history

T = TypeVar("T")

START_SECONDS = 300  # for workers to start; Ray's 60 are short on a busy machine that imports torch
LOSS_CHECK_STEPS = 50  # a GPU is waited for once in so many steps to see whether the loss is still finite


class TrainingStopped(UsageError):
    """Every worker agreed to stop, for the reason in the message. Trying again would end the same way."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a network on preprocessed examples; one checkpoint per epoch, the best by validation top-1 accuracy."""

    data: str
    """Output of jobs/preprocess.py with labelled train and validation splits: a folder, or any fsspec URL."""
    output: str
    """RUN: a folder, or any fsspec URL, for checkpoints, metrics and logs. Several nodes must share it."""
    model: str = "cahfw"
    """Network: cahfw, se-ca-aa, se-af (caer-net-s is the same), or a backbone: alexnet, vgg16 or resnet50."""
    input: Reads | None = None
    """Images that decide: the pair, the face or the context. None: the pair, and for a backbone, which sees one, the
    face. se-af with one is that stream of it alone."""
    pretrained: Literal["none", "frozen", "finetune"] = "none"
    """ImageNet's weights for a backbone: none, frozen (only the new head of seven is trained), or finetune (all is)."""
    weights: str | None = None
    """safetensors file or URL of those weights, in torchvision's names. None: torchvision's own, from its server."""
    epochs: int = 50
    """Passes over the training examples."""
    batch_size: int = 128
    """Examples of one optimizer step, over all workers together."""
    lr: float = 0.01
    """Learning rate of the first step; a cosine anneals it to 0 over the whole run, step by step."""
    momentum: float = 0.9
    """Momentum of SGD, 0 up to 1 (exclusive)."""
    nesterov: bool = True
    """Nesterov's form of momentum."""
    weight_decay: float = 0.0
    """L2 penalty on all parameters."""
    flooding: float = 0.05
    """Level b of |loss - b| + b, in nats: the training loss is kept from falling under it. 0 turns it off."""
    dropout: float = 0.5
    """Share of features that dropout zeroes, 0 up to 1 (exclusive)."""
    attention_gain: Literal["area", "paper"] = "area"
    """Gain of the context attention: area multiplies by its number of positions, paper is Eq. 7 to the letter."""
    recalibration_scale: Literal["sqrt", "paper"] = "sqrt"
    """Scale before the softmax of element recalibration: sqrt is 1/sqrt(positions), paper is Eq. 13 to the letter."""
    input_px: int | None = None
    """Side of the face and context squares that the network reads, pixels. None: as they are stored."""
    flip: bool = True
    """Mirror half of the training pairs left to right, the face and its context together."""
    augment_face: tuple[str, ...] = ()
    """Changes of the training faces, not of their context: crop (70 to 100 % of the area) and colour."""
    label_smoothing: float = 0.0
    """Share of the training target that is spread over all seven classes, 0 up to 1 (exclusive)."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weights of the training loss. balanced: each class counts as much as any other, however many examples it has."""
    warmup_steps: int = 0
    """Steps over which the learning rate grows to --lr before the cosine begins."""
    clip_grad_norm: float | None = None
    """Largest norm of the gradient of a step; a larger one is scaled down to it. None: any."""
    accumulate: int = 1
    """Parts that a worker cuts its share of a batch into, one forward and backward pass each, to save memory."""
    ema: float | None = None
    """Decay per step of an exponential moving average of the weights, such as 0.999, which then is what is evaluated
    and saved. None: the weights themselves."""
    sync_batchnorm: bool = False
    """Statistics of batch norm over all workers' examples instead of each worker's own."""
    seed: int = 0
    """Seed of the order, the augmentation, dropout and the initial weights; 0 or more."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass. auto: bf16 on CUDA, fp32 on CPU. Weights are always fp32."""
    compile: bool = False
    """Compile the network with torch.compile: a minute or so more at the start, faster steps on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs. auto: on CUDA if the cluster has a GPU. cuda: also where the GPUs only come when asked
    for, as on a cluster that scales from zero."""
    workers: int = 0
    """Training processes. 0: one per GPU of the cluster, 1 where there is none."""
    loader_processes: int | None = None
    """Processes per worker that decode images. 0: the worker itself. None: 0 on CPU; on CUDA its share of cores."""
    cache_dir: str | None = None
    """Folder on each node for copies of the shards, about as large as they are. None: ~/.cache/emotion-pipeline."""
    cache_decoded: bool = False
    """Keep the decoded images in --cache-dir too, 0.3 MB an example at 224 px: epochs then decode nothing. Worth it
    where they fit in the node's memory and decoding is what training waits for."""
    checkpoint_every_steps: int | None = None
    """Steps between two resume points within an epoch. None: a run that was cut off repeats its last epoch."""
    keep: int = 2
    """Checkpoints of the last epochs to keep; the best one and the newest resume point are kept besides."""
    no_thumbnails: bool = False
    """Put no picture of a person into report.html."""
    blur_faces: bool = False
    """Blur the pictures of report.html beyond recognition: faces most, and all around them."""
    json_logs: bool = False
    """For machines: nothing but one JSON object a line on stderr (event, time, counts)."""
    tracking: Literal["none", "mlflow"] = "none"
    """Where epochs are logged besides RUN. mlflow: to MLFLOW_TRACKING_URI, if mlflow is installed."""
    max_failures: int = 2
    """Lost workers after which training gives up; before, it goes on from the last checkpoint by itself."""
    resume: bool = False
    """Go on from the last checkpoint of --output. --epochs may grow: the cosine is then that of the longer run."""

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, wanted: str) -> None:
            if not holds:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)!r}: give {wanted}")

        require(bool(self.data), "data", "the output of jobs/preprocess.py")
        require(bool(self.output), "output", "a folder or URL to write to")
        object.__setattr__(self, "augment_face", tuple(self.augment_face))  # a list where it comes from JSON
        for name in ("epochs", "batch_size", "accumulate", "keep"):
            require(getattr(self, name) >= 1, name, "1 or more")
        for name in ("weight_decay", "flooding"):
            require(0 <= getattr(self, name) < math.inf, name, "0 or more")
        for name in ("workers", "max_failures", "seed", "warmup_steps"):
            require(getattr(self, name) >= 0, name, "0 or more")
        for name in ("momentum", "dropout", "label_smoothing"):
            require(0 <= getattr(self, name) < 1, name, "a number from 0 up to 1 (exclusive)")
        require(0 < self.lr < math.inf, "lr", "a number above 0")
        require(self.momentum > 0 or not self.nesterov, "momentum", "a number above 0, or --nesterov false")
        require(self.input_px is None or self.input_px >= 1, "input_px", "1 or more pixels, or leave it out")
        require(self.loader_processes is None or self.loader_processes >= 0, "loader_processes", "0 or more")
        require(self.pretrained in ("none", "frozen", "finetune"), "pretrained", "none, frozen or finetune")
        require(self.pretrained == "none" or self.model in BACKBONES, "pretrained", f"none with --model {self.model}")
        require(self.weights is None or self.pretrained != "none", "weights", "--pretrained frozen or finetune too")
        require(set(self.augment_face) <= set(AUGMENTATIONS), "augment_face", f"some of {', '.join(AUGMENTATIONS)}")
        require(self.class_weights in ("none", "balanced"), "class_weights", "none or balanced")
        require(self.clip_grad_norm is None or self.clip_grad_norm > 0, "clip_grad_norm", "a number above 0")
        require(self.ema is None or 0 < self.ema < 1, "ema", "a number between 0 and 1, such as 0.999")
        every = self.checkpoint_every_steps
        require(every is None or every >= 1, "checkpoint_every_steps", "1 or more, or leave it out")
        require(self.tracking in ("none", "mlflow"), "tracking", "none or mlflow")
        require(self.precision in ("auto", "fp32", "bf16"), "precision", "auto, fp32 or bf16")


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
    _check_model(config, manifest)
    saved = saved_run(config, manifest.sha256)
    if saved is not None and not config.resume:
        raise UsageError(
            f"output {config.output} already holds checkpoints up to epoch {saved['epoch']}, step {saved['step']};"
            " add --resume to go on from there, or choose another --output"
        )
    if saved is None or saved["epoch"] < config.epochs:
        say(f"checked: {check_output(config.output)}")
        put(
            config.output,
            "config.yaml",
            content=yaml.safe_dump(redacted_values(asdict(config)), sort_keys=False).encode(),
        )
        say(start_ray())
        check_nodes(config.output)
        workers, use_gpu = _workers(config)
        try:
            history = saved["history"] if saved else []
            _fit(config, workers=workers, use_gpu=use_gpu, history=history)
        finally:
            stop_ray()
    else:
        say(f"run {config.output} has its {config.epochs} epochs already; nothing to do")
    saved = read_checkpoint_info(config.output, "last")
    summary, history = summary_of(saved), saved["history"]
    write_history(config.output, history)  # A worker that was killed just after its last commit has not.
    put(config.output, "summary.json", content=json.dumps(summary, indent=1).encode())
    found = examine(config.output, config.data, cache_dir=config.cache_dir, pictures=not config.no_thumbnails)
    page = report.training_page(
        summary,
        history,
        title="Training",
        best=found.metrics,
        attended=found.attended,
        wrong=found.wrong,
        num_examined=found.num_examined,
        no_thumbnails=config.no_thumbnails,
        blur_faces=config.blur_faces,
    )
    put(config.output, "report.html", content=page.encode())
    return summary


def train_worker(
    config: TrainConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
    loader_processes: int = 0,
    announce: Callable[[dict[str, Any]], None] = lambda _: None,
) -> None:
    """The loop of one worker, from the last checkpoint of RUN to the last epoch; without Ray it is a whole training.

    With world_size above 1 a torch process group must be there. Rank 0 writes RUN and announces its start and every
    epoch. Raises TrainingStopped on every rank where data, RUN or loss don't allow to go on.
    """
    device = device or torch.device("cpu")
    share = {"rank": rank, "world_size": world_size}

    def opened() -> tuple[TrainingBatches, EvaluationBatches, dict[str, Any] | None]:
        train_set, validation_set = (
            ExampleDataset(
                config.data,
                split=split,
                face_px=config.input_px,
                context_px=config.input_px,
                cache_dir=config.cache_dir,
                cache_decoded=config.cache_decoded,
            )
            for split in ("train", "validation")
        )
        train_set.require_every_class()
        batches = TrainingBatches(
            train_set,
            batch_size=config.batch_size,
            seed=config.seed,
            flip=config.flip,
            augment_face=config.augment_face,
            **share,
        )
        _require_possible(config, batches)
        return (
            batches,
            EvaluationBatches(validation_set, batch_size=max(1, config.batch_size // world_size), **share),
            saved_run(config, train_set.manifest.sha256),
        )

    batches, validation_batches, saved = _together(opened, world_size=world_size)
    steps_per_epoch = batches.steps_per_epoch
    total_steps = config.epochs * steps_per_epoch

    def lr_of(step: int) -> float:
        return cosine_lr(step, total_steps, config.lr, warmup_steps=config.warmup_steps)

    run = _together(lambda: _started(config, saved, rank=rank), world_size=world_size)
    learner = _Learner(config, run, labels=batches.examples.labels, device=device, rank=rank, world_size=world_size)
    if rank == 0:
        first = {"epoch": run.step // steps_per_epoch + 1, "step": run.step, "steps_per_epoch": steps_per_epoch}
        announce({"event": "start", "world_size": world_size, "device": device.type, **first})
    logs = RunLogs(config.output, first_step=run.step, lr_of=lr_of) if rank == 0 else None

    def commit(after: Literal["epoch", "step"], metrics: Mapping[str, Any], seconds: float) -> None:
        if logs is None:
            return
        save_checkpoint(
            config.output,
            epoch=run.step // steps_per_epoch,
            step=run.step,
            model=learner.evaluated,
            optimizer_state=learner.state(),
            config=_checkpoint_config(config, batches.examples),
            info={
                "metrics": dict(metrics),
                "temperature": metrics.get("temperature", 1.0),
                "manifest_sha256": batches.examples.manifest.sha256,
                "pretrained_from": run.pretrained_from,
                "seconds_of_epoch": seconds,
                "history": run.history,
            },
            after=after,
        )
        if after == "epoch":
            logs.write_epoch(run.history, run.losses)
        else:
            logs.write_steps(run.losses)
        drop_old_checkpoints(config.output, keep=config.keep)

    if logs is not None and saved is not None:
        logs.write_tables(run.history, run.losses)  # a kill may have come between the checkpoint and these
    progress = _Progress(config, first_step=run.step, total_steps=total_steps)
    training = _loader(batches, range(run.step, total_steps), processes=loader_processes, device=device)
    for epoch in range(run.step // steps_per_epoch + 1, config.epochs + 1):
        started = time.perf_counter() - run.seconds_of_epoch
        while run.step < epoch * steps_per_epoch:
            loss = learner.learn(next(training), lr=lr_of(run.step))
            run.step += 1
            every = config.checkpoint_every_steps
            ends, commits = run.step == epoch * steps_per_epoch, bool(every) and run.step % (every or 1) == 0
            if ends or commits or run.step % LOSS_CHECK_STEPS == 0:
                learner.note_losses()
            if commits and not ends:
                learner.average_buffers()
                seconds = time.perf_counter() - started
                _together(lambda seconds=seconds: commit("step", {}, seconds), world_size=world_size)
            if rank == 0 and progress.is_due():
                announce(progress.event(run.step, epoch=epoch, loss=float(loss)))
        train_loss = float(np.mean(run.losses[(epoch - 1) * steps_per_epoch :]))
        train_seconds = time.perf_counter() - started

        learner.average_buffers()
        validation = _loader(
            validation_batches, range(len(validation_batches)), processes=loader_processes, device=device
        )
        metrics = evaluate(
            learner.evaluated, validation, device=device, autocast=learner.autocast, world_size=world_size
        )
        metrics |= {"train_loss": train_loss, "lr": lr_of(run.step - 1)}
        metrics |= {"train_examples_per_second": steps_per_epoch * config.batch_size / train_seconds}
        metrics |= {"seconds": time.perf_counter() - started, "world_size": world_size}
        run.history.append({"epoch": epoch, "step": run.step, **_row(metrics)})
        run.seconds_of_epoch = 0.0
        _together(lambda metrics=metrics: commit("epoch", metrics, 0.0), world_size=world_size)
        if rank == 0:
            announce({"event": "epoch", "epochs": config.epochs, **run.history[-1]})
    if logs is not None:
        logs.close()


@dataclass(kw_only=True)
class _RunState:
    """Where a run is. losses: of every step so far, nats. training_state: the last checkpoint's, or nothing."""

    model: nn.Module
    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds_of_epoch: float = 0.0
    pretrained_from: str | None = None
    training_state: dict[str, Tensor] = field(default_factory=dict)


def _started(config: TrainConfig, saved: Mapping[str, Any] | None, *, rank: int) -> _RunState:
    """A run at its first step, or where `saved`, its newest checkpoint, left it."""
    torch.manual_seed(config.seed)
    model = _model(config)
    if saved is None:
        origin = _load_pretrained(model, config) if rank == 0 and config.pretrained != "none" else None
        return _RunState(model=model, pretrained_from=origin)
    checkpoint = load_checkpoint(config.output, "newest")
    model.load_state_dict(checkpoint.model.state_dict())
    unknown = torch.full((saved["step"],), math.nan)  # of a checkpoint that has no losses
    return _RunState(
        model=model,
        step=saved["step"],
        losses=checkpoint.training_state.get("losses", unknown).tolist(),
        history=saved["history"],
        seconds_of_epoch=saved.get("seconds_of_epoch", 0.0),
        pretrained_from=saved.get("pretrained_from"),
        training_state=checkpoint.training_state,
    )


class _Learner:
    """The network of one worker and its optimizer: `learn` does one step on this worker's share of a global batch."""

    def __init__(
        self,
        config: TrainConfig,
        run: _RunState,
        *,
        labels: np.ndarray,
        device: torch.device,
        rank: int,
        world_size: int,
    ) -> None:
        self._config, self._run, self._device, self._rank, self._world_size = config, run, device, rank, world_size
        self._layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.autocast = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
        self._average = None
        if config.ema is not None:
            self._average = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
            self._resume_average(self._average)
        model = run.model
        if config.sync_batchnorm and world_size > 1:
            model = synchronised(model, device=device)
        self._optimizer = _optimizer(config, model)
        _load_optimizer_state(self._optimizer, model, run.training_state)
        for network in (model, self._average):
            if network is not None:
                network.to(device, memory_format=self._layout)  # pyright: ignore[reportCallIssue]
        _move_optimizer_state(self._optimizer)
        if config.compile:
            model.compile()
        self._model = model
        # Running statistics are averaged over the ranks once an epoch instead of being sent by rank 0 at every step.
        self._parallel = DistributedDataParallel(model, forward_sync_buffers=False) if world_size > 1 else model
        self._weights = class_weights(labels).to(device) if config.class_weights == "balanced" else None
        self._new_losses: list[Tensor] = []

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and saved: the average of the weights where there is one."""
        return self._model if self._average is None else self._average.module

    def learn(self, batch: Batch, *, lr: float) -> Tensor:
        """One optimizer step; the loss of the global batch before it, without flooding."""
        config, run = self._config, self._run
        self._optimizer.param_groups[0]["lr"] = lr
        # Dropout's masks then need no saved generator: they follow from (seed, step, rank).
        key = np.random.SeedSequence([config.seed, run.step, self._rank])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))
        self._parallel.train()
        self._optimizer.zero_grad(set_to_none=True)
        face, context, labels = _on_device(batch, device=self._device, layout=self._layout)
        parts = list(zip(*(tensor.chunk(config.accumulate) for tensor in (face, context, labels)), strict=True))
        loss = torch.zeros((), device=self._device)
        for i, (face_part, context_part, labels_part) in enumerate(parts):
            with self._without_sync() if i + 1 < len(parts) else nullcontext():
                with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self.autocast):
                    logits = self._parallel(face_part, context_part)
                sum_of_part = cross_entropy(
                    logits.float(),
                    labels_part,
                    weight=self._weights,
                    label_smoothing=config.label_smoothing,
                    reduction="sum",
                )
                # Divided by the number of examples, not by their weights: then the mean over workers is the mean.
                part_of_loss = sum_of_part / len(labels)
                part_of_loss.backward()  # DDP averages the gradients over ranks of equal shares
                loss += part_of_loss.detach()
        if self._world_size > 1:
            dist.all_reduce(loss)
            loss /= self._world_size
        flood_gradients(self._model.parameters(), loss, level=config.flooding)
        if config.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), config.clip_grad_norm)
        self._optimizer.step()
        if self._average is not None:
            self._average.update_parameters(self._model)
        self._new_losses.append(loss)
        return loss

    def note_losses(self) -> None:
        """Bring the losses of the steps since the last call into the run. TrainingStopped if one is not finite."""
        first = len(self._run.losses) + 1
        values = torch.stack(self._new_losses).tolist()
        self._new_losses.clear()
        for step, loss in enumerate(values, first):
            if not math.isfinite(loss):
                raise TrainingStopped(
                    f"the loss is {loss} at step {step}: the training diverged; lower --lr (now {self._config.lr}) or"
                    " take --precision fp32, in another --output; checkpoints up to then are kept"
                )
        self._run.losses.extend(values)

    def average_buffers(self) -> None:
        """Batch norm's running statistics as the mean over the ranks, on all of them."""
        if self._world_size > 1:
            for model in (self._model, *([] if self._average is None else [self._average.module])):
                for buffer in model.buffers():
                    if buffer.is_floating_point():
                        dist.all_reduce(buffer)
                        buffer.div_(self._world_size)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs besides the weights: momentum, losses, and the weights where their average is it."""
        tensors = _optimizer_state(self._optimizer, self._model)
        tensors["losses"] = torch.tensor(self._run.losses)
        if self._average is not None:
            tensors["average/num_steps"] = self._average.n_averaged
            tensors |= {f"weights/{name}": tensor for name, tensor in self._model.state_dict().items()}
        return tensors

    def _resume_average(self, average: AveragedModel) -> None:
        """Of a checkpoint the model is the average, and the weights lie beside it."""
        state = self._run.training_state
        if "average/num_steps" in state:
            average.n_averaged.copy_(state["average/num_steps"])
            prefix = "weights/"
            self._run.model.load_state_dict(
                {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            )

    def _without_sync(self) -> AbstractContextManager[Any]:
        parallel = self._parallel
        return parallel.no_sync() if isinstance(parallel, DistributedDataParallel) else nullcontext()


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


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterator[Batch] | DataLoader[Batch],
    *,
    device: torch.device,
    autocast: bool = False,
    world_size: int = 1,
) -> dict[str, Any]:
    """`metrics_of` all examples of all ranks, their mean cross-entropy `loss` in nats, and their `temperature`.

    Each rank brings its own batches, possibly none; what is gathered over ranks is examples, so none counts twice.
    """
    model.eval()
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    found = [(np.empty((0, len(EMOTIONS)), np.float32), np.empty(0, np.int64))]
    for batch in batches:
        face, context, labels = _on_device(batch, device=device, layout=layout)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            logits = model(face, context).float()
        found.append((logits.cpu().numpy(), labels.cpu().numpy()))
    own = tuple(np.concatenate(parts) for parts in zip(*found, strict=True))
    ranks: list[Any] = [own]
    if world_size > 1:
        ranks = [None] * world_size
        dist.all_gather_object(ranks, own)
    logits, labels = (np.concatenate(parts) for parts in zip(*ranks, strict=True))
    counts = confusion_matrix(labels, logits.argmax(axis=1))
    loss = float(cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)))
    return {"loss": loss, "temperature": fitted_temperature(logits, labels), **metrics_of(counts)}


def fitted_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T of softmax(logits / T) with the least cross-entropy, from 0.05 to 20 (Guo et al. 2017); 1.0 of no examples.

    logits: (N, 7), labels: (N,) int64.
    """
    if not len(labels) or not np.isfinite(logits).all():
        return 1.0
    scores = logits.astype(np.float64)
    of_label = scores[np.arange(len(labels)), labels].mean()
    low, high = 1 / 20, 20.0
    for _ in range(40):  # the cross-entropy is convex in 1 / T, so its slope changes sign once
        inverse = math.sqrt(low * high)
        weights = np.exp((scores - scores.max(axis=1, keepdims=True)) * inverse)
        expected = ((weights / weights.sum(axis=1, keepdims=True)) * scores).sum(axis=1).mean()
        low, high = (low, inverse) if expected > of_label else (inverse, high)
    return 1 / math.sqrt(low * high)


def cosine_lr(step: int, total_steps: int, lr: float, *, warmup_steps: int = 0) -> float:
    """The learning rate of a step: it grows evenly to `lr` at `warmup_steps`, then half a cosine takes it to 0."""
    if step < warmup_steps:
        return lr * (step + 1) / (warmup_steps + 1)
    return lr * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps))) / 2


def flood_gradients(parameters: Iterable[nn.Parameter], mean_loss: Tensor, *, level: float) -> None:
    """Make the gradients of the loss L those of |L - b| + b (flooding): turned round where L is under the level b.

    mean_loss: L, averaged over all ranks. One sign then holds on every rank, so that the average of the ranks'
    gradients is the gradient of the flooded L, whatever the number of workers.
    """
    if level:
        sign = torch.sign(mean_loss - level)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(sign)


def saved_run(config: TrainConfig, manifest_sha256: str) -> dict[str, Any] | None:
    """The last checkpoint's JSON of RUN; None where there is none yet.

    Raises UsageError where it was trained with another config or on other data, naming each difference.
    """
    if newest_checkpoint(config.output) is None:
        return None
    saved = read_checkpoint_info(config.output, "newest")
    then, now = saved["config"]["training"], json.loads(json.dumps(asdict(config)))  # tuples as lists
    # A field that is younger than RUN had its default there.
    defaults = json.loads(
        json.dumps({one.name: one.default for one in fields(TrainConfig) if one.name in FIXED_FIELDS})
    )
    differences = [
        f"--{name.replace('_', '-')} is {now[name]!r} here and {then.get(name)!r} there"
        for name in FIXED_FIELDS
        if then.get(name, defaults[name]) != now[name]
    ]
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
        tell("summary", **summary, output=run_url)
        return
    say(
        f"best epoch {summary['best_epoch']} of {summary['epochs']}: validation top-1"
        f" {summary['best']['validation_top1_accuracy']:.2%}, macro-F1 {summary['best']['validation_macro_f1']:.3f};"
        f" {summary['seconds']:.1f} s, {summary['train_examples_per_second']:.1f} examples/s"
    )
    say(f"output: {run_url}")


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


def class_weights(labels: np.ndarray) -> Tensor:
    """A weight for each class, inverse to its share of `labels`; their mean over the labels is 1."""
    counts = np.bincount(labels, minlength=len(EMOTIONS))
    return torch.from_numpy(len(labels) / (len(EMOTIONS) * counts)).float()


def _require_possible(config: TrainConfig, batches: TrainingBatches) -> None:
    """Raise UsageError for what only a worker can know to be impossible."""
    share, total_steps = config.batch_size // batches.world_size, config.epochs * batches.steps_per_epoch
    if share % config.accumulate:
        raise UsageError(
            f"--accumulate {config.accumulate}: a worker's share of {share} examples can't be cut into equal parts;"
            " give a divisor of it"
        )
    if config.warmup_steps >= total_steps:
        raise UsageError(f"--warmup-steps {config.warmup_steps}: the run has {total_steps} steps; give fewer")
    if config.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise UsageError("--compile: this machine has no C++ compiler; install g++, or leave it out")


def _on_device(batch: Batch, *, device: torch.device, layout: torch.memory_format) -> tuple[Tensor, Tensor, Tensor]:
    """Face and context (B, 3, H, W) float32, normalised on the device: bytes travel, not floats. Labels (B,)."""
    face, context = (
        normalised(images.to(device, non_blocking=True)).contiguous(memory_format=layout)
        for images in (batch.face, batch.context)
    )
    return face, context, batch.labels.to(device, non_blocking=True)


def _loader(
    batches: TrainingBatches | EvaluationBatches, steps: range, *, processes: int, device: torch.device
) -> Iterator[Batch]:
    return iter(
        DataLoader(
            batches,
            sampler=steps,
            batch_size=None,  # a batch is one item: the data set decodes it whole
            num_workers=processes,
            prefetch_factor=4 if processes else None,
            pin_memory=device.type == "cuda",
            # Ray's worker has threads, and a fork beside threads may hold one of their locks for ever.
            multiprocessing_context="forkserver" if processes else None,
        )
    )


def _model_options(config: TrainConfig) -> dict[str, Any]:
    options = {name: getattr(config, name) for name in ("attention_gain", "recalibration_scale", "dropout")}
    return {"reads": config.input or default_reads(config.model), **options}


def _model(config: TrainConfig) -> nn.Module:
    model = build_model(config.model, **_model_options(config))
    if config.pretrained == "frozen" and isinstance(model, Backbone):
        model.freeze()
    return model


def _load_pretrained(model: nn.Module, config: TrainConfig) -> str:
    """ImageNet's weights into a backbone: the first worker's, from which DDP sends them to the others; their origin."""
    assert isinstance(model, Backbone)  # --pretrained is refused for any other
    if config.weights is None:
        model.load_pretrained(imagenet_weights(config.model), source="of torchvision")
        return "torchvision IMAGENET1K_V1"
    try:
        content = read_url(absolute_url(config.weights))
    except OSError as error:
        raise UsageError(f"--weights {config.weights}: it can't be read ({error}); give a safetensors file") from None
    model.load_pretrained(read_weights(content, source=config.weights), source=config.weights)
    return f"sha256 {hashlib.sha256(content).hexdigest()}"


def _check_model(config: TrainConfig, manifest: Manifest) -> None:
    """Raise UsageError, before any process starts, where the model's name, options or input size are wrong."""
    face_px, context_px = (config.input_px or manifest.config[name] for name in ("face_px", "context_px"))
    try:
        model = _model(config).eval()
        if config.pretrained != "none":
            _load_pretrained(model, config)
        with torch.inference_mode():
            model(torch.zeros(1, 3, face_px, face_px), torch.zeros(1, 3, context_px, context_px))
    except ValueError as error:
        raise UsageError(f"--model {config.model}, --input-px {config.input_px}: {error}") from None


def _checkpoint_config(config: TrainConfig, examples: ExampleDataset) -> dict[str, Any]:
    return {
        "model": {
            "name": config.model,
            "options": _model_options(config),
            "face_px": examples.face_px,
            "context_px": examples.context_px,
        },
        "training": redacted_values(asdict(config)),
        "preprocessing": examples.manifest.config,
    }


def _optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(
        (parameter for parameter in model.parameters() if parameter.requires_grad),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def _optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """SGD's momentum by parameter name; a parameter that had no gradient yet has none."""
    buffers = {name: optimizer.state[parameter].get("momentum_buffer") for name, parameter in model.named_parameters()}
    return {f"momentum/{name}": buffer for name, buffer in buffers.items() if buffer is not None}


def _load_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if f"momentum/{name}" in state:
            optimizer.state[parameter]["momentum_buffer"] = state[f"momentum/{name}"]


def _move_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Momentum onto the device and into the layout of its parameter."""
    for parameter, state in optimizer.state.items():
        if "momentum_buffer" in state:
            state["momentum_buffer"] = torch.empty_like(parameter).copy_(state["momentum_buffer"])


def _workers(config: TrainConfig) -> tuple[int, bool]:
    """How many workers, and whether each has a GPU. UsageError where the cluster can't hold them: Ray would wait."""
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 0)
    use_gpu = config.device == "cuda" or (config.device == "auto" and gpus > 0)
    if config.device == "cuda" and not gpus and not os.environ.get("RAY_ADDRESS"):
        raise UsageError("--device is cuda, but this machine has no GPU that Ray sees; give auto or cpu")
    workers = config.workers or max(gpus if use_gpu else 1, 1)
    room = gpus if use_gpu else int(cpus // 0.5)
    if workers > room and config.device == "cuda":
        say(f"the cluster has {gpus} GPUs now: asking it for {workers}")
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
            with tempfile.TemporaryDirectory(prefix="ray-train-") as folder:
                trainer = TorchTrainer(
                    _ray_worker,
                    train_loop_config={"config": asdict(config), "events": events},
                    # Whole CPUs would leave none for Ray's own tasks, which then wait for ever without a word.
                    scaling_config=ScalingConfig(
                        num_workers=workers,
                        use_gpu=use_gpu,
                        resources_per_worker={"CPU": 0.5, "GPU": 1} if use_gpu else {"CPU": 0.5},
                    ),
                    run_config=RunConfig(storage_path=folder, failure_config=failures),
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
    tracker = MlflowRun(config.output, parameters=asdict(config), history=history)
    finished = False
    try:
        yield tracker
        finished = True
    finally:
        tracker.close(finished=finished)


def _ray_worker(payload: dict[str, Any]) -> str | None:
    """train_worker in a process of Ray Train; why it stopped, or None where it came to the end."""
    context = ray.train.get_context()
    config, device = TrainConfig(**payload["config"]), get_device()
    cores = max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size())
    if device.type == "cpu":
        torch.set_num_threads(cores)  # Ray sets 1 for half a CPU
    processes = config.loader_processes
    if processes is None:
        processes = 0 if device.type == "cpu" else min(cores, 12)
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
