"""Trains `face-resnet` on FER2013's faces: one process, one thread, a checkpoint after every epoch.

The schedule ends after its epochs or its minutes, whatever comes first, so that a busy machine ends in time as well;
pictures grow on the way (Touvron et al. 2019: small ones first are cheaper and lose nothing).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from benchmarks.fer2013_images import PX, Split
from pipeline.dataset.dataset import normalised
from pipeline.evaluate.validation import fitted_temperature
from pipeline.models.checkpoint import drop_old_checkpoints, load_checkpoint, save_checkpoint
from pipeline.models.checkpoint_info import best_of, committed_epochs, write_best
from pipeline.models.face_resnet import FaceResNet, standardised

SIZES = ((0.4, 32), (0.85, 40), (1.0, 48))  # up to which part of the schedule, side of the pictures in pixels


@dataclass(frozen=True)
class Training:
    """How the network is trained; what `checkpoint.json` says of it."""

    epochs: int = 100
    minutes: float = 85.0
    batch_size: int = 128
    lr: float = 0.1
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    mixup: float = 0.2
    ema: float = 0.998
    dropout: float = 0.3
    seed: int = 0
    precision: str = "bf16"
    augmentation: tuple[str, ...] = field(default=("flip", "rotate", "scale", "shift", "gamma", "cutout", "mixup"))


@dataclass
class _State:
    model: FaceResNet
    averaged: FaceResNet
    optimizer: torch.optim.SGD
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def train_faces(
    run_url: str,
    *,
    train: Split,
    validation: Split,
    training: Training,
    data: dict[str, Any],
    announce: Callable[[dict[str, Any]], None] = lambda _: None,
) -> None:
    """Checkpoints in RUN, the best by validation top-1 named; goes on where RUN was left. `data` is said in each."""
    state = _new_state(training)
    if committed_epochs(run_url):
        _restore(state, run_url)
    steps_per_epoch = math.ceil(len(train) / training.batch_size)
    images = torch.from_numpy(train.images).unsqueeze(1)
    labels = torch.from_numpy(train.labels)
    epoch = state.step // steps_per_epoch
    while epoch < training.epochs and state.seconds < training.minutes * 60:
        started, before = time.perf_counter(), state.seconds
        random = torch.Generator().manual_seed(training.seed * 1_000_003 + epoch)
        order = torch.randperm(len(train), generator=random)
        losses = []
        for rows in order.split(training.batch_size):
            done = max(state.step / (steps_per_epoch * training.epochs), state.seconds / (training.minutes * 60))
            losses.append(
                _learn(state, images[rows], labels[rows], done=min(done, 1.0), training=training, random=random)
            )
            state.seconds = before + time.perf_counter() - started
        epoch += 1
        logits = logits_of(state.averaged, validation.images)
        temperature = fitted_temperature(logits, validation.labels)
        state.seconds = before + time.perf_counter() - started
        row = {
            "epoch": epoch,
            "loss": float(np.mean(losses)),
            "validation_top1_accuracy": float((logits.argmax(axis=1) == validation.labels).mean()),
            "temperature": temperature,
            "seconds": round(state.seconds, 1),
            "images_per_second": round(len(train) / (state.seconds - before), 1),
        }
        state.history.append(row)
        _save(state, run_url, training=training, data=data)
        announce(row)


@torch.inference_mode()
def logits_of(model: nn.Module, images: np.ndarray, *, batch_size: int = 256) -> np.ndarray:
    """Logits (N, 7) float32 of grey images (N, 48, 48) uint8, in bfloat16, through the same call as any network's."""
    model = model.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    found = []
    for part in torch.from_numpy(images).unsqueeze(1).split(batch_size):
        face = normalised(part.expand(-1, 3, -1, -1)).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(model(face, face).float().numpy())
    return np.concatenate(found)


def augmented(images: Tensor, *, px: int, random: torch.Generator) -> Tensor:
    """(B, 1, 48, 48) uint8 -> (B, 1, px, px) float32, standardised; mirrored, turned, scaled, shifted, some holed."""
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=random)

    angle, scale = uniform(-0.2, 0.2), uniform(0.8, 1.05)  # radians; side of what is seen, of the picture's
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    turn = torch.zeros(count, 2, 3)
    turn[:, 0, 0], turn[:, 0, 1] = scale * angle.cos() * mirror, -scale * angle.sin()
    turn[:, 1, 0], turn[:, 1, 1] = scale * angle.sin() * mirror, scale * angle.cos()
    turn[:, 0, 2], turn[:, 1, 2] = uniform(-0.12, 0.12), uniform(-0.12, 0.12)
    grid = affine_grid(turn, [count, 1, px, px], align_corners=False)
    seen = grid_sample(images.float() / 255, grid, mode="bilinear", padding_mode="border", align_corners=False)
    seen = standardised(seen.pow(uniform(-0.4, 0.4).exp().view(-1, 1, 1, 1)))
    side, places = uniform(0.0, 0.4) * px, torch.arange(px)
    side = torch.where(uniform(0, 1) < 0.3, side, 0.0).view(-1, 1)
    y, x = (uniform(0, px).view(-1, 1) for _ in range(2))
    hole_y, hole_x = ((places - centre).abs() < side / 2 for centre in (y, x))
    return seen.masked_fill((hole_y[:, None, :, None]) & (hole_x[:, None, None, :]), 0.0)


def _learn(
    state: _State, images: Tensor, labels: Tensor, *, done: float, training: Training, random: torch.Generator
) -> float:
    """One step; the loss in nats. done: the part of the schedule that is over, from 0 to 1."""
    if done < training.warmup:
        lr = training.lr * max(done / training.warmup, 0.01)
    else:
        lr = training.lr * 0.5 * (1 + math.cos(math.pi * (done - training.warmup) / (1 - training.warmup)))
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    px = next(px for end, px in SIZES if done <= end)
    state.model.train()
    batch = augmented(images, px=px, random=random)
    share, other = _mixing(len(batch), alpha=training.mixup, random=random)
    batch = batch.lerp(batch[other], 1 - share).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=training.precision == "bf16"):
        logits = state.model.logits(batch)
    alone = cross_entropy(logits.float(), labels, label_smoothing=training.label_smoothing)
    mixed = cross_entropy(logits.float(), labels[other], label_smoothing=training.label_smoothing)
    loss = share * alone + (1 - share) * mixed
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    state.optimizer.step()
    state.step += 1
    decay = min(training.ema, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for mean, now in zip(state.averaged.state_dict().values(), state.model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)
    return loss.item()


def _mixing(count: int, *, alpha: float, random: torch.Generator) -> tuple[float, Tensor]:
    """How much of a picture stays, and which one the rest is taken from (mixup of Zhang et al., ICLR 2018)."""
    if not alpha:
        return 1.0, torch.arange(count)
    drawn = np.random.default_rng(int(torch.randint(2**31, (), generator=random))).beta(alpha, alpha)
    return float(drawn), torch.randperm(count, generator=random)


def _new_state(training: Training) -> _State:
    torch.manual_seed(training.seed)
    model = FaceResNet(dropout=training.dropout).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    spared = [weight for weight in model.parameters() if weight.ndim <= 1]  # norms and biases
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": training.weight_decay}, {"params": spared, "weight_decay": 0.0}],
        lr=training.lr,
        momentum=training.momentum,
        nesterov=True,
    )
    return _State(model=model, averaged=copy.deepcopy(model), optimizer=optimizer)


def _restore(state: _State, run_url: str) -> None:
    loaded = load_checkpoint(run_url, "last")
    state.averaged.load_state_dict(loaded.model.state_dict())
    saved = loaded.training_state
    state.model.load_state_dict({name: saved[f"model.{name}"] for name in state.model.state_dict()})
    for name, weight in state.model.named_parameters():
        state.optimizer.state[weight]["momentum_buffer"] = saved[f"momentum.{name}"]
    state.step, state.history = loaded.info["step"], list(loaded.info["history"])
    state.seconds = state.history[-1]["seconds"]


def _save(state: _State, run_url: str, *, training: Training, data: dict[str, Any]) -> None:
    row = state.history[-1]
    momentum = {
        f"momentum.{name}": state.optimizer.state[weight]["momentum_buffer"]
        for name, weight in state.model.named_parameters()
    }
    save_checkpoint(
        run_url,
        epoch=row["epoch"],
        step=state.step,
        model=state.averaged,
        optimizer_state={**{f"model.{name}": value for name, value in state.model.state_dict().items()}, **momentum},
        config={
            "model": {
                "name": "face-resnet",
                "options": {"reads": "face", "dropout": training.dropout},
                "face_px": PX,
                "context_px": PX,
            },
            "training": {**asdict(training), "augmentation": list(training.augmentation)},
            "preprocessing": {"face_px": PX, "context_px": PX},
        },
        info={
            "metrics": {"top1_accuracy": row["validation_top1_accuracy"]},
            "temperature": row["temperature"],
            "manifest_sha256": data["sha256"],
            "data": data,
            "history": state.history,
        },
    )
    best = best_of(state.history)
    write_best(run_url, epoch=best["epoch"], top1_accuracy=best["validation_top1_accuracy"])
    drop_old_checkpoints(run_url, keep=2)
