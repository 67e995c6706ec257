"""One network and its optimizer: a step of training."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.dataset.dataset import Batch
from pipeline.models.batch_norm import synchronised
from pipeline.models.predict import memory_layout, move_images
from pipeline.records.vocabulary import EMOTIONS, UsageError
from pipeline.train.config import TrainConfig


class TrainingStopped(UsageError):
    """Every worker agreed to stop, for the reason in the message. Trying again would end the same way."""


@dataclass(kw_only=True)
class RunState:
    """Where a run is. losses: of every step so far, nats. training_state: the last checkpoint's, or nothing."""

    model: nn.Module
    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds_of_epoch: float = 0.0
    pretrained_from: str | None = None
    training_state: dict[str, Tensor] = field(default_factory=dict)


class Learner:
    """The network of one worker and its optimizer: `train_step` learns from its share of a global batch."""

    def __init__(
        self,
        config: TrainConfig,
        run: RunState,
        *,
        labels: np.ndarray,
        device: torch.device,
        rank: int,
        world_size: int,
    ) -> None:
        self._config, self._run, self._device, self._rank, self._world_size = config, run, device, rank, world_size
        self._layout = memory_layout(device)
        self.autocast = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
        self._average = None
        if config.ema is not None:
            self._average = AveragedModel(run.model, multi_avg_fn=self._averaged, use_buffers=True)
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
        self._num_classes = len(config.classes or EMOTIONS)
        self._weights = None
        if config.class_weights == "balanced":
            self._weights = class_weights(labels, num_classes=self._num_classes).to(device)
        self._new_losses: list[Tensor] = []

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and saved: the average of the weights where there is one."""
        return self._model if self._average is None else self._average.module

    def train_step(self, batch: Batch, *, lr: float) -> Tensor:
        """One optimizer step; the loss of the global batch before it, without flooding.

        batch: float CHW images of this rank; the loss: a scalar, detached.
        """
        config, run = self._config, self._run
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        # Dropout's masks then need no saved generator: they follow from (seed, step, rank).
        key = np.random.SeedSequence([config.seed, run.step, self._rank])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))
        self._parallel.train()
        self._optimizer.zero_grad(set_to_none=True)
        face, context = move_images(batch, device=self._device)
        labels = batch.labels.to(self._device, non_blocking=True)  # (B,), and (B, classes) where they are blended
        if config.mixup:
            face, context, labels = self._blended(face, context, labels)
        parts = list(zip(*(tensor.chunk(config.accumulate) for tensor in (face, context, labels)), strict=True))
        loss = torch.zeros((), device=self._device)
        for i, (face_part, context_part, labels_part) in enumerate(parts):
            with self._without_sync() if i + 1 < len(parts) else nullcontext():
                logits = self._logits(face_part, context_part)
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

    def _logits(self, face: Tensor, context: Tensor) -> Tensor:
        try:
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self.autocast):
                return self._parallel(face, context)
        except ValueError as error:
            if not str(error).startswith("Expected more than 1 value per channel"):
                raise
            raise TrainingStopped(
                f"batch norm needs more than the {len(face)} example that this network sees at a time; give a larger"
                " --batch-size, a smaller --accumulate, or larger images"
            ) from None

    def _blended(self, face: Tensor, context: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each example mixed with another of this worker's share, and their labels: (B, classes) float32."""
        key = np.random.default_rng([self._config.seed, self._run.step, self._rank, 1])
        share = float(key.beta(self._config.mixup, self._config.mixup))
        other = torch.from_numpy(key.permutation(len(labels))).to(self._device)
        targets = one_hot(labels, self._num_classes).float()
        blended = (share * each + (1 - share) * each[other] for each in (face, context, targets))
        return next(blended), next(blended), next(blended)

    def _averaged(self, averages: Any, weights: Any, _: Any) -> None:
        """One step of the moving average, in place. Its decay grows with the steps: early weights would stay in it."""
        assert self._config.ema is not None
        step = self._run.step
        get_ema_multi_avg_fn(min(self._config.ema, (1 + step) / (10 + step)))(averages, weights, step)

    def note_losses(self) -> None:
        """Bring the losses since the last call into the run. Raises TrainingStopped if one is not finite."""
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


def cosine_lr(step: int, total_steps: int, lr: float, *, warmup_steps: int = 0) -> float:
    """The learning rate of a step: it grows evenly to `lr` at `warmup_steps`, then half a cosine takes it to 0."""
    if step < warmup_steps:
        return lr * (step + 1) / (warmup_steps + 1)
    return lr * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps))) / 2


def constant_lr(step: int, lr: float, *, warmup_steps: int = 0) -> float:
    """The learning rate of a step: it grows evenly to `lr` at `warmup_steps`, and stays."""
    return lr * (step + 1) / (warmup_steps + 1) if step < warmup_steps else lr


def make_deterministic() -> None:
    """Compute in this process so that neither threads nor the choice of kernels change a bit."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product runs
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


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


def class_weights(labels: np.ndarray, *, num_classes: int = len(EMOTIONS)) -> Tensor:
    """A weight for each class, inverse to its share of `labels`; their mean over the labels is 1.

    labels: (N,) class indices; the weights: (num_classes,) float32, that of a class without a label 0.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(np.where(counts > 0, weights, 0.0)).float()


def _optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    spared = [parameter for _, parameter in trained if config.decay == "weights" and parameter.ndim < 2]
    decayed = [parameter for _, parameter in trained if config.decay == "all" or parameter.ndim >= 2]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": config.weight_decay}]
    groups += [{"params": spared, "weight_decay": 0.0}] * bool(spared)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


# What optimizers keep of each parameter, and under which name a checkpoint has it.
STATE_NAMES = {"momentum_buffer": "momentum", "exp_avg": "adam_mean", "exp_avg_sq": "adam_square", "step": "adam_step"}


def _optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Momentum and the like by parameter name; a parameter that had no gradient yet has none."""
    return {
        f"{STATE_NAMES[key]}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
        if value is not None
    }


def _load_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        for key, saved in STATE_NAMES.items():
            if f"{saved}/{name}" in state:
                optimizer.state[parameter][key] = state[f"{saved}/{name}"]


def _move_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Momentum onto the device and into the layout of its parameter."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if key != "step":  # a count, which stays on the CPU
                state[key] = torch.empty_like(parameter).copy_(value)
