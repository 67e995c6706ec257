"""Examples come in, checkpoints and metrics go out: the loop of one worker, and the same loop on Ray Train.

    RUN/config.yaml      every field as it was resolved
    RUN/checkpoints/     one per epoch, see pipeline/checkpoint.py; RUN/best.json names the best
    RUN/metrics.csv      one row per epoch; the same in RUN/tensorboard/
    RUN/summary.json     written last

SGD with Nesterov momentum, the learning rate annealed by a cosine to 0 step by step, cross-entropy on logits with
flooding (Ishida et al. 2020; the paper's Eq. 27). Everything random (order, mirroring, dropout, initial weights) is a
function of (seed, step, rank), so nothing of it needs saving: a run that was killed goes on from its last checkpoint
as if it never stopped, and every number of workers sees the same global batches.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
import yaml
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Empty, Queue
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.tensorboard.writer import SummaryWriter

from pipeline import report
from pipeline.checkpoint import (
    committed_epochs,
    load_checkpoint,
    put,
    read_checkpoint_info,
    save_checkpoint,
    write_best,
)
from pipeline.dataset import (
    Batch,
    EvaluationBatches,
    ExampleDataset,
    Manifest,
    TrainingBatches,
    normalised,
    read_manifest,
)
from pipeline.metrics import confusion_matrix, metrics_of
from pipeline.models import Reads, build_model, default_reads
from pipeline.models.backbones import BACKBONES, Backbone, imagenet_weights, read_weights
from pipeline.pool import say, start_ray
from pipeline.records import EMOTIONS, UsageError
from pipeline.storage import Storage, absolute_url, read_url

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
    seed: int = 0
    """Seed of the order, the mirroring, dropout and the initial weights; 0 or more."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass. auto: bf16 on CUDA, fp32 on CPU. Weights are always fp32."""
    workers: int = 0
    """Training processes. 0: one per GPU of the cluster, 1 where there is none."""
    loader_processes: int | None = None
    """Processes per worker that decode images. 0: the worker itself. None: 0 on CPU; on CUDA its share of cores."""
    cache_dir: str | None = None
    """Folder on each node for copies of the shards, about as large as they are. None: ~/.cache/emotion-pipeline."""
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
        for name in ("epochs", "batch_size"):
            require(getattr(self, name) >= 1, name, "1 or more")
        for name in ("weight_decay", "flooding"):
            require(0 <= getattr(self, name) < math.inf, name, "0 or more")
        for name in ("workers", "max_failures", "seed"):
            require(getattr(self, name) >= 0, name, "0 or more")
        for name in ("momentum", "dropout"):
            require(0 <= getattr(self, name) < 1, name, "a number from 0 up to 1 (exclusive)")
        require(0 < self.lr < math.inf, "lr", "a number above 0")
        require(self.momentum > 0 or not self.nesterov, "momentum", "a number above 0, or --nesterov false")
        require(self.input_px is None or self.input_px >= 1, "input_px", "1 or more pixels, or leave it out")
        require(self.loader_processes is None or self.loader_processes >= 0, "loader_processes", "0 or more")
        require(self.pretrained in ("none", "frozen", "finetune"), "pretrained", "none, frozen or finetune")
        require(self.pretrained == "none" or self.model in BACKBONES, "pretrained", f"none with --model {self.model}")
        require(self.weights is None or self.pretrained != "none", "weights", "--pretrained frozen or finetune too")
        require(self.precision in ("auto", "fp32", "bf16"), "precision", "auto, fp32 or bf16")


# What a resumed run may not change. Not here: where it runs, where its data lies (the manifest's sha256 says whether
# it is the same), and for how long.
FIXED_FIELDS = (
    *("model", "input", "pretrained", "batch_size", "lr", "momentum", "nesterov", "weight_decay", "flooding"),
    *("dropout", "attention_gain", "recalibration_scale", "input_px", "flip", "seed", "precision"),
)


def train(config: TrainConfig) -> dict[str, Any]:
    """Train on Ray, print one line per epoch, and give the summary that also lies in RUN/summary.json.

    Raises UsageError where the data, the config or an earlier run in RUN don't allow it, and where the loss is no
    longer finite; RuntimeError where more workers were lost than `max_failures`.
    """
    config = replace(config, data=absolute_url(config.data), output=absolute_url(config.output))
    manifest = read_manifest(config.data)
    for split in ("train", "validation"):
        manifest.shards_of(split)
    _check_model(config, manifest)
    saved = saved_run(config, manifest.sha256)
    if saved is not None and not config.resume:
        raise UsageError(
            f"output {config.output} already holds checkpoints up to epoch {saved['epoch']};"
            " add --resume to go on from there, or choose another --output"
        )
    if saved is None or saved["epoch"] < config.epochs:
        put(config.output, "config.yaml", content=yaml.safe_dump(asdict(config), sort_keys=False).encode())
        start_ray()
        workers, use_gpu = _workers(config)
        try:
            _fit(config, workers=workers, use_gpu=use_gpu)
        finally:
            ray.shutdown()
    else:
        say(f"run {config.output} has its {config.epochs} epochs already; nothing to do")
    saved = read_checkpoint_info(config.output, "last")
    summary, history = summary_of(saved), saved["history"]
    _write_history(config.output, history)  # A worker that was killed just after its last commit has not.
    put(config.output, "summary.json", content=json.dumps(summary, indent=1).encode())
    put(config.output, "report.html", content=report.training_page(summary, history, title="Training").encode())
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

    def opened() -> tuple[TrainingBatches, EvaluationBatches, dict[str, Any] | None]:
        train_set, validation_set = (
            ExampleDataset(
                config.data,
                split=split,
                face_px=config.input_px,
                context_px=config.input_px,
                cache_dir=config.cache_dir,
            )
            for split in ("train", "validation")
        )
        train_set.require_every_class()
        share = {"rank": rank, "world_size": world_size}
        return (
            TrainingBatches(train_set, batch_size=config.batch_size, seed=config.seed, flip=config.flip, **share),
            EvaluationBatches(validation_set, batch_size=max(1, config.batch_size // world_size), **share),
            saved_run(config, train_set.manifest.sha256),
        )

    batches, validation_batches, saved = _together(opened, world_size=world_size)
    steps_per_epoch = batches.steps_per_epoch
    total_steps = config.epochs * steps_per_epoch

    torch.manual_seed(config.seed)
    model = _model(config)
    if saved is None and config.pretrained != "none":
        _together(lambda: _load_pretrained(model, config) if rank == 0 else None, world_size=world_size)
    optimizer = _optimizer(config, model)
    step, history = 0, []
    if saved is not None:
        step, history = saved["step"], saved["history"]
        checkpoint = _together(lambda: load_checkpoint(config.output, saved["epoch"]), world_size=world_size)
        model.load_state_dict(checkpoint.model.state_dict())
        _load_optimizer_state(optimizer, model, checkpoint.training_state)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model.to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    _move_optimizer_state(optimizer)
    # Running statistics are averaged over the ranks once an epoch instead of being sent by rank 0 before every step.
    parallel = DistributedDataParallel(model, forward_sync_buffers=False) if world_size > 1 else model
    autocast = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")

    if rank == 0:
        first_epoch = step // steps_per_epoch + 1
        announce({"event": "start", "epoch": first_epoch, "world_size": world_size, "device": device.type})
    logs = _EpochLogs(config.output, first_step=step) if rank == 0 else None
    training = _loader(batches, range(step, total_steps), processes=loader_processes, device=device)
    for epoch in range(step // steps_per_epoch + 1, config.epochs + 1):
        started = time.perf_counter()
        parallel.train()
        losses = []
        while step < epoch * steps_per_epoch:
            optimizer.param_groups[0]["lr"] = cosine_lr(step, total_steps, config.lr)
            # Dropout's masks then need no saved generator: they follow from (seed, step, rank).
            torch.manual_seed(int(np.random.SeedSequence([config.seed, step, rank]).generate_state(1, np.uint64)[0]))
            face, context, labels = _on_device(next(training), device=device, layout=layout)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
                logits = parallel(face, context)
            losses.append(_optimizer_step(optimizer, logits, labels, flooding=config.flooding, world_size=world_size))
            step += 1
            if step % LOSS_CHECK_STEPS == 0 or step == epoch * steps_per_epoch:
                _require_finite(losses, step=step, config=config)
        train_loss = float(torch.stack(losses).mean())
        train_seconds = time.perf_counter() - started

        _average_buffers(model, world_size=world_size)
        validation = _loader(
            validation_batches, range(len(validation_batches)), processes=loader_processes, device=device
        )
        metrics = evaluate(model, validation, device=device, autocast=autocast, world_size=world_size)
        metrics |= {"train_loss": train_loss, "lr": optimizer.param_groups[0]["lr"]}
        metrics |= {"train_examples_per_second": steps_per_epoch * config.batch_size / train_seconds}
        metrics |= {"seconds": time.perf_counter() - started, "world_size": world_size}
        history.append({"epoch": epoch, "step": step, **_row(metrics)})

        def commit(epoch: int = epoch, step: int = step, metrics: Mapping[str, Any] = metrics) -> None:
            if logs is None:
                return
            save_checkpoint(
                config.output,
                epoch=epoch,
                step=step,
                model=model,
                optimizer_state=_optimizer_state(optimizer, model),
                config=_checkpoint_config(config, batches.examples),
                info={
                    "metrics": dict(metrics),
                    "manifest_sha256": batches.examples.manifest.sha256,
                    "history": history,
                },
            )
            logs.write(history)

        _together(commit, world_size=world_size)
        if rank == 0:
            announce({"event": "epoch", "epochs": config.epochs, **history[-1]})
    if logs is not None:
        logs.close()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterator[Batch] | DataLoader[Batch],
    *,
    device: torch.device,
    autocast: bool = False,
    world_size: int = 1,
) -> dict[str, Any]:
    """`metrics_of` all examples of all ranks, and their mean cross-entropy `loss` in nats.

    Each rank brings its own batches, possibly none; what is summed over ranks is counts, so no example counts twice.
    """
    model.eval()
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    counts = torch.zeros((len(EMOTIONS), len(EMOTIONS)), dtype=torch.int64, device=device)
    for batch in batches:
        face, context, labels = _on_device(batch, device=device, layout=layout)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            logits = model(face, context).float()
        loss_sum += cross_entropy(logits, labels, reduction="sum").double()
        pairs = confusion_matrix(labels.cpu().numpy(), logits.argmax(dim=1).cpu().numpy())
        counts += torch.from_numpy(pairs).to(device)
    if world_size > 1:
        dist.all_reduce(loss_sum)
        dist.all_reduce(counts)
    metrics = metrics_of(counts.cpu().numpy())
    return {"loss": float(loss_sum) / metrics["num_examples"], **metrics}


def cosine_lr(step: int, total_steps: int, lr: float) -> float:
    """The learning rate of a step: `lr` at step 0, annealed by half a cosine to 0 at `total_steps`."""
    return lr * (1 + math.cos(math.pi * step / total_steps)) / 2


def flooded(loss: Tensor, mean_loss: Tensor, *, level: float) -> Tensor:
    """A scalar whose gradient is that of |L - b| + b (flooding), where L is the loss averaged over all ranks.

    loss: this rank's, with its graph. mean_loss: L, without. One sign then holds on every rank, so that the average
    of the ranks' gradients is the gradient of the flooded L, whatever the number of workers.
    """
    return torch.sign(mean_loss - level) * loss


def saved_run(config: TrainConfig, manifest_sha256: str) -> dict[str, Any] | None:
    """The last checkpoint's JSON of RUN; None where there is none yet.

    Raises UsageError where it was trained with another config or on other data, naming each difference.
    """
    if not committed_epochs(config.output):
        return None
    saved = read_checkpoint_info(config.output, "last")
    then, now = saved["config"]["training"], asdict(config)
    defaults = {field.name: field.default for field in fields(TrainConfig)}  # of fields that are younger than RUN
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
    say(
        f"best epoch {summary['best_epoch']} of {summary['epochs']}: validation top-1"
        f" {summary['best']['validation_top1_accuracy']:.2%}, macro-F1 {summary['best']['validation_macro_f1']:.3f};"
        f" {summary['seconds']:.1f} s, {summary['train_examples_per_second']:.1f} examples/s"
    )
    say(f"output: {run_url}")


def best_of(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The epoch with the highest validation top-1 accuracy; the earliest of equals."""
    return max(history, key=lambda row: (row["validation_top1_accuracy"], -row["epoch"]))


class _EpochLogs:
    """Best, CSV and TensorBoard of a run. On a remote RUN TensorBoard's files are written locally and copied."""

    def __init__(self, run_url: str, *, first_step: int) -> None:
        self.run_url = run_url
        storage = Storage(run_url)
        self.local = storage.is_local
        folder = storage.path("tensorboard") if self.local else tempfile.mkdtemp(prefix="tensorboard-")
        self.folder = Path(folder)
        # Steps that a killed worker wrote past the last checkpoint are hidden, not drawn twice.
        self.writer = SummaryWriter(folder, purge_step=first_step + 1)

    def write(self, history: list[dict[str, Any]]) -> None:
        _write_history(self.run_url, history)
        for name, value in history[-1].items():
            if name not in ("epoch", "step") and value is not None:
                self.writer.add_scalar(name, value, history[-1]["step"])
        self.writer.flush()
        if not self.local:
            for file in sorted(self.folder.iterdir()):
                put(self.run_url, f"tensorboard/{file.name}", content=file.read_bytes())

    def close(self) -> None:
        self.writer.close()
        if not self.local:
            shutil.rmtree(self.folder)


def _write_history(run_url: str, history: list[dict[str, Any]]) -> None:
    """best.json and metrics.csv of the epochs so far."""
    best = best_of(history)
    write_best(run_url, epoch=best["epoch"], top1_accuracy=best["validation_top1_accuracy"])
    text = io.StringIO()
    rows = csv.DictWriter(text, fieldnames=list(history[-1]), lineterminator="\n")
    rows.writeheader()
    rows.writerows(history)
    put(run_url, "metrics.csv", content=text.getvalue().encode())


def _row(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """One epoch's metrics as flat numbers: a row of metrics.csv."""
    return {
        "train_loss": metrics["train_loss"],
        "validation_loss": metrics["loss"],
        "validation_top1_accuracy": metrics["top1_accuracy"],
        "validation_macro_f1": metrics["macro_f1"],
        **{f"validation_accuracy_{name}": value for name, value in metrics["per_class_accuracy"].items()},
        "validation_examples": metrics["num_examples"],
        **{name: metrics[name] for name in ("lr", "train_examples_per_second", "seconds", "world_size")},
    }


def _together(action: Callable[[], T], *, world_size: int) -> T:
    """Do `action` on every rank; if a UsageError ends it on any, raise TrainingStopped on all.

    Otherwise the other ranks would wait for the failed one, and Ray would start everything again, to the same end.
    """
    value, error = None, None
    try:
        value = action()
    except UsageError as failure:
        error = str(failure)
    errors: list[str | None] = [error]
    if world_size > 1:
        errors = [None] * world_size
        dist.all_gather_object(errors, error)
    for message in errors:
        if message is not None:
            raise TrainingStopped(message)
    return value  # pyright: ignore[reportReturnType]


def _optimizer_step(
    optimizer: torch.optim.Optimizer, logits: Tensor, labels: Tensor, *, flooding: float, world_size: int
) -> Tensor:
    """One step on this rank's part of a global batch; the cross-entropy of the global batch, before flooding."""
    loss = cross_entropy(logits.float(), labels)
    mean_loss = loss.detach().clone()
    if world_size > 1:
        dist.all_reduce(mean_loss)
        mean_loss /= world_size
    optimizer.zero_grad(set_to_none=True)
    flooded(loss, mean_loss, level=flooding).backward()  # DDP averages the gradients over ranks of equal batches
    optimizer.step()
    return mean_loss


def _require_finite(losses: list[Tensor], *, step: int, config: TrainConfig) -> None:
    finite = torch.isfinite(torch.stack(losses)).tolist()
    if all(finite):
        return
    wrong = step - len(losses) + finite.index(False)
    raise TrainingStopped(
        f"the loss is {float(losses[finite.index(False)])} at step {wrong}: the training diverged;"
        f" lower --lr (now {config.lr}) or take --precision fp32, in another --output; checkpoints up to then are kept"
    )


def _average_buffers(model: nn.Module, *, world_size: int) -> None:
    """Batch norm's running statistics as the mean over the ranks, on all of them."""
    if world_size > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(world_size)


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


def _load_pretrained(model: nn.Module, config: TrainConfig) -> None:
    """ImageNet's weights into a backbone: the first worker's, from which DDP sends them to the others."""
    assert isinstance(model, Backbone)  # --pretrained is refused for any other
    if config.weights is None:
        model.load_pretrained(imagenet_weights(config.model), source="of torchvision")
        return
    try:
        content = read_url(absolute_url(config.weights))
    except OSError as error:
        raise UsageError(f"--weights {config.weights}: it can't be read ({error}); give a safetensors file") from None
    model.load_pretrained(read_weights(content, source=config.weights), source=config.weights)


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
        "training": asdict(config),
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
    workers = config.workers or max(gpus, 1)
    room = gpus or int(cpus // 0.5)
    if workers > room:
        raise UsageError(
            f"--workers {workers}: the cluster has room for {room} ({gpus} GPUs, {cpus:g} CPUs); give {room} or fewer"
        )
    if config.batch_size % workers:
        raise UsageError(f"--batch-size {config.batch_size} can't be shared by {workers} workers; give a multiple")
    return workers, gpus > 0


def _fit(config: TrainConfig, *, workers: int, use_gpu: bool) -> None:
    """Run the workers on Ray Train to the end, and print what rank 0 announces meanwhile."""
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_SECONDS))
    failures = FailureConfig(max_failures=config.max_failures, controller_failure_limit=config.max_failures)
    events = Queue(actor_options={"num_cpus": 0})
    with tempfile.TemporaryDirectory(prefix="ray-train-") as folder, ThreadPoolExecutor(1) as thread:
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={"config": asdict(config), "events": events},
            # Whole CPUs would leave none for Ray's own tasks, which then wait for ever without a word.
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": 0.5, "GPU": 1} if use_gpu else {"CPU": 0.5},
            ),
            # The folder is for Ray's own notes: checkpoints are committed by the worker, not by report().
            run_config=RunConfig(storage_path=folder, failure_config=failures),
        )
        # In a thread, since in the main one fit() takes Ctrl-C for itself and ends the process with code 0.
        result = thread.submit(trainer.fit)
        try:
            while not result.done() or not events.empty():
                try:
                    say(_line(events.get(timeout=1)))
                except Empty:
                    continue
        except KeyboardInterrupt:
            ray.shutdown()  # ends fit(), for which the pool of this one thread would wait
            raise
        failure = result.exception()
        if failure is not None:
            raise RuntimeError(
                f"training stopped after {config.max_failures} restarts: {failure}; go on with --resume"
            ) from failure
        stopped = result.result().return_value
        if stopped:
            raise TrainingStopped(stopped)


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


def _line(event: Mapping[str, Any]) -> str:
    if event["event"] == "start":
        return f"training on {event['world_size']} x {event['device']} from epoch {event['epoch']}"
    return (
        f"epoch {event['epoch']}/{event['epochs']}  train loss {event['train_loss']:.4f}"
        f"  validation loss {event['validation_loss']:.4f}  top-1 {event['validation_top1_accuracy']:.2%}"
        f"  lr {event['lr']:.2g}  {event['train_examples_per_second']:.1f} examples/s"
    )
