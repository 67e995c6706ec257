"""The settings of training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from pipeline.records.settings import Setting
from pipeline.records.vocabulary import (
    AUGMENTATIONS,
    BACKBONES,
    EMOTIONS,
    AttentionGain,
    ContextCrop,
    Encoder,
    PooledNorm,
    Reads,
    UsageError,
    checked_classes,
)

# Settings that go together, by name: YAML files of fields of TrainConfig.
RECIPES = {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a network on preprocessed examples; one checkpoint per epoch, the best by validation top-1 accuracy."""

    data: Annotated[str, Setting("input", common=True)]
    """Output of jobs/preprocess.py with labelled train and validation splits: a folder, or any fsspec URL."""
    output: Annotated[str, Setting("input", common=True)]
    """RUN: a folder, or any fsspec URL, for checkpoints, metrics and logs. Several nodes must share it."""
    model: Annotated[str, Setting("network", common=True)] = "cahfw"
    """Network: cahfw, se-ca-aa, se-af, caer-net-s (the public network of that name: face 96 px, context 112 px cut from
    128 x 171, unless --input-px says otherwise), or a backbone: alexnet, vgg16 or resnet50."""
    input: Annotated[Reads | None, Setting("network", common=True)] = None
    """Images that decide: the pair, the face or the context. None: the pair, and for a backbone, which sees one, the
    face. se-af and caer-net-s with one are that stream of them alone."""
    encoder: Annotated[Encoder, Setting("network")] = "paper"
    """Front of each stream of a network that is no backbone: paper (five convolutions) or resnet18 (torchvision's, up
    to its third stage: the same channels and stride), which can be --pretrained finetune."""
    pretrained: Annotated[Literal["none", "frozen", "finetune"], Setting("network", common=True)] = "none"
    """ImageNet's weights for a backbone, or for --encoder resnet18: none, frozen (only the new head is
    trained; backbones alone), or finetune (all is)."""
    weights: Annotated[str | None, Setting("network")] = None
    """safetensors file or URL of those weights, in torchvision's names. None: torchvision's own, from its server."""
    classes: Annotated[tuple[str, ...], Setting("network", common=True)] = ()
    """Classes that the network tells apart, in the order of its outputs, those of the data among them. Default: those
    of the data."""
    init: Annotated[str | None, Setting("network", common=True)] = None
    """Output of jobs/train.py whose best checkpoint the weights start from (folder or URL), or baseline, to fine-tune
    it: the same --model and options. Classes that it does not know begin anew."""
    epochs: Annotated[int, Setting("training", common=True)] = 50
    """Passes over the training examples."""
    batch_size: Annotated[int, Setting("training", common=True)] = 128
    """Examples of one optimizer step, over all workers together."""
    lr: Annotated[float, Setting("training", common=True)] = 0.01
    """Learning rate of the first step; see --schedule."""
    schedule: Annotated[Literal["cosine", "constant"], Setting("training")] = "cosine"
    """Learning rate over the run: cosine anneals it to 0, step by step; constant keeps it."""
    early_stop: Annotated[int | None, Setting("training")] = None
    """Epochs without a better validation top-1 accuracy after which the training ends. None: it does all --epochs."""
    optimizer: Annotated[Literal["sgd", "adamw"], Setting("training")] = "sgd"
    """sgd, or adamw, which does without --momentum and --nesterov."""
    momentum: Annotated[float, Setting("training")] = 0.9
    """Momentum of SGD, 0 up to 1 (exclusive)."""
    nesterov: Annotated[bool, Setting("training")] = True
    """Nesterov's form of momentum."""
    weight_decay: Annotated[float, Setting("training")] = 0.0
    """L2 penalty (sgd) or decay (adamw) of parameters, see --decay."""
    decay: Annotated[Literal["all", "weights"], Setting("training")] = "all"
    """Parameters that --weight-decay is for: all, or weights, which spares norms and biases."""
    flooding: Annotated[float, Setting("training")] = 0.05
    """Level b of |loss - b| + b, in nats: the training loss is kept from falling under it. 0 turns it off."""
    dropout: Annotated[float | None, Setting("training")] = None
    """Share of features that dropout zeroes, 0 up to 1 (exclusive). None: 0.2 in the paper's networks where
    --pooled-norm is batch, 0.5 (the paper's) in all others, and in a resumed run what it had."""
    pooled_norm: Annotated[PooledNorm | None, Setting("network")] = None
    """What each pooled vector passes before it is weighted: batch (batch norm) or none. None: batch, and in a resumed
    run what it had."""
    attention_gain: Annotated[AttentionGain | None, Setting("network")] = None
    """Gain of the context attention: area multiplies by its number of positions, paper is Eq. 7 to the letter. None:
    paper with --pooled-norm batch, else area, and in a resumed run what it had."""
    recalibration_scale: Annotated[Literal["sqrt", "paper"], Setting("network")] = "sqrt"
    """Scale before the softmax of element recalibration: sqrt is 1/sqrt(positions), paper is Eq. 13 to the letter."""
    input_px: Annotated[int | None, Setting("network", common=True)] = None
    """Side of the face and context squares that the network reads, pixels. None: as they are stored."""
    context_crop: Annotated[ContextCrop | None, Setting("network")] = None
    """Part of the frame that the context is: none (all of it, squashed), public (a square from the frame at 128 x 171,
    as the public CAER-Net-S reads it), aspect (a square from the frame in its own proportions). Anywhere in training,
    the middle else. None: none, and public for a caer-net-s without --input-px."""
    flip: Annotated[bool, Setting("training")] = True
    """Mirror half of the training pairs left to right, the face and its context together."""
    augment_face: Annotated[tuple[str, ...], Setting("training")] = ()
    """Changes of the training faces, not of their context: crop (70 to 100 % of the area), colour (brightness, contrast
    and saturation), contrast (more of it), hue, flip (apart from the context) and erase (a grey rectangle)."""
    flip_at_test: Annotated[bool, Setting("training")] = False
    """Average the logits of a pair and of its mirror image wherever the network predicts, at twice the cost."""
    mixup: Annotated[float, Setting("training")] = 0.0
    """Blend pairs of training examples and their labels (Zhang et al. 2018), by shares of a beta distribution with this
    parameter, such as 0.2; 0: never. Who is blended with whom depends on the number of workers."""
    label_smoothing: Annotated[float, Setting("training")] = 0.0
    """Share of the training target that is spread over all classes, 0 up to 1 (exclusive)."""
    class_weights: Annotated[Literal["none", "balanced"], Setting("training")] = "none"
    """Weights of the training loss. balanced: each class counts as much as any other, however many examples it has."""
    warmup_steps: Annotated[int, Setting("training")] = 0
    """Steps over which the learning rate grows to --lr before the cosine begins."""
    clip_grad_norm: Annotated[float | None, Setting("training")] = None
    """Largest norm of the gradient of a step; a larger one is scaled down to it. None: any."""
    accumulate: Annotated[int, Setting("training")] = 1
    """Parts that a worker cuts its share of a batch into, one forward and backward pass each, to save memory. Batch
    norm's statistics are then those of a part, not of the batch."""
    ema: Annotated[float | None, Setting("training")] = None
    """Decay per step of an exponential moving average of the weights, such as 0.999, which then is what is evaluated
    and saved. It grows to that in the first steps: min(decay, (1 + n) / (10 + n)) after n. None: the weights
    themselves."""
    sync_batchnorm: Annotated[bool, Setting("training")] = False
    """Statistics of batch norm over all workers' examples instead of each worker's own."""
    seed: Annotated[int, Setting("training", common=True)] = 0
    """Seed of the order, the augmentation, dropout and the initial weights; 0 or more."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], Setting("machine")] = "auto"
    """Arithmetic of the forward pass. auto: bf16 on CUDA, fp32 on CPU. Weights are always fp32."""
    deterministic: Annotated[bool, Setting("machine")] = False
    """The same bytes whatever the number of cores, and on a GPU from run to run: one thread, and deterministic kernels.
    Without it a run repeats to the byte only on CPU, on a like machine with as many threads."""
    compile: Annotated[bool, Setting("machine")] = False
    """Compile the network with torch.compile: a minute or so more at the start, faster steps on a GPU."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Setting("machine", common=True)] = "auto"
    """Where the network runs. auto: on CUDA if the cluster has a GPU. cuda: also where the GPUs only come when asked
    for, as on a cluster that scales from zero."""
    workers: Annotated[int, Setting("machine", common=True)] = 0
    """Training processes. 0: one per GPU of the cluster, 1 where there is none."""
    loader_processes: Annotated[int | None, Setting("machine")] = None
    """Processes per worker that decode images. 0: the worker itself. None: 0 on CPU; on CUDA its share of cores."""
    cache_dir: Annotated[str | None, Setting("machine")] = None
    """Folder on each node for copies of the shards, about as large as they are. None: ~/.cache/emotion-pipeline."""
    cache_decoded: Annotated[bool, Setting("machine")] = False
    """Keep the decoded images in --cache-dir too, 0.3 MB an example at 224 px: epochs then decode nothing. Worth it
    where they fit in the node's memory and decoding is what training waits for."""
    checkpoint_every_steps: Annotated[int | None, Setting("work")] = None
    """Steps between two resume points within an epoch. None: a run that was cut off repeats its last epoch."""
    keep: Annotated[int, Setting("work")] = 2
    """Checkpoints of the last epochs to keep; the best one and the newest resume point are kept besides."""
    no_thumbnails: Annotated[bool, Setting("pages", common=True)] = False
    """Put no picture of a person into report.html."""
    blur_faces: Annotated[bool, Setting("pages")] = False
    """Blur the pictures of report.html beyond recognition: faces most, and all around them."""
    json_logs: Annotated[bool, Setting("machine")] = False
    """For machines: nothing but one JSON object a line on stderr (event, time, counts)."""
    tracking: Annotated[Literal["none", "mlflow"], Setting("pages", common=True)] = "none"
    """Where epochs are logged besides RUN. mlflow: to MLFLOW_TRACKING_URI, if mlflow is installed."""
    max_failures: Annotated[int, Setting("work")] = 2
    """Lost workers after which training gives up; before, it goes on from the last checkpoint by itself."""
    resume: Annotated[bool, Setting("work", common=True)] = False
    """Go on from the last checkpoint of --output. --epochs may grow: the cosine is then that of the longer run."""

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, wanted: str) -> None:
            if not holds:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)!r}: give {wanted}")

        require(bool(self.data), "data", "the output of jobs/preprocess.py")
        require(bool(self.output), "output", "a folder or URL to write to")
        for name in ("augment_face", "classes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list where it comes from JSON
        if self.classes:
            checked_classes(self.classes, what="--classes")
        for name in ("epochs", "batch_size", "accumulate", "keep"):
            require(getattr(self, name) >= 1, name, "1 or more")
        for name in ("weight_decay", "flooding"):
            require(0 <= getattr(self, name) < math.inf, name, "0 or more")
        for name in ("workers", "max_failures", "seed", "warmup_steps"):
            require(getattr(self, name) >= 0, name, "0 or more")
        for name in ("momentum", "dropout", "label_smoothing"):
            value = getattr(self, name)
            require(value is None or 0 <= value < 1, name, "a number from 0 up to 1 (exclusive)")
        require(0 <= self.mixup < math.inf, "mixup", "0 (never) or a number above it, such as 0.2")
        require(self.early_stop is None or self.early_stop >= 1, "early_stop", "1 or more epochs, or leave it out")
        for name, choices in CHOICES.items():
            require(getattr(self, name) in choices, name, " or ".join(str(each) for each in choices if each))
        require(0 < self.lr < math.inf, "lr", "a number above 0")
        is_sgd = self.optimizer == "sgd"
        require(
            self.momentum > 0 or not self.nesterov or not is_sgd, "momentum", "a number above 0, or --nesterov false"
        )
        require(self.input_px is None or self.input_px >= 1, "input_px", "1 or more pixels, or leave it out")
        require(self.loader_processes is None or self.loader_processes >= 0, "loader_processes", "0 or more")
        require(self.pretrained in ("none", "frozen", "finetune"), "pretrained", "none, frozen or finetune")
        is_encoder = self.encoder != "paper" and self.pretrained == "finetune"
        has_none = self.pretrained == "none" or self.model in BACKBONES or is_encoder
        require(has_none, "pretrained", f"none with --model {self.model}, or finetune with --encoder resnet18")
        require(self.init is None or self.pretrained == "none", "init", "no --pretrained beside it")
        require(self.weights is None or self.pretrained != "none", "weights", "--pretrained frozen or finetune too")
        require(set(self.augment_face) <= set(AUGMENTATIONS), "augment_face", f"some of {', '.join(AUGMENTATIONS)}")
        require(self.clip_grad_norm is None or self.clip_grad_norm > 0, "clip_grad_norm", "a number above 0")
        require(self.ema is None or 0 < self.ema < 1, "ema", "a number between 0 and 1, such as 0.999")
        every = self.checkpoint_every_steps
        require(every is None or every >= 1, "checkpoint_every_steps", "1 or more, or leave it out")
        require(self.tracking in ("none", "mlflow"), "tracking", "none or mlflow")
        require(self.precision in ("auto", "fp32", "bf16"), "precision", "auto, fp32 or bf16")


CHOICES: dict[str, tuple[str | None, ...]] = {
    "encoder": get_args(Encoder),
    "schedule": ("cosine", "constant"),
    "optimizer": ("sgd", "adamw"),
    "decay": ("all", "weights"),
    "pooled_norm": (None, *get_args(PooledNorm)),
    "attention_gain": (None, *get_args(AttentionGain)),
    "context_crop": (None, *get_args(ContextCrop)),
    "class_weights": ("none", "balanced"),
}


def notes_of(config: TrainConfig, *, num_classes: int = len(EMOTIONS)) -> list[str]:
    """What a user should know of settings that work against each other, one line each."""
    notes = []
    least = least_smoothed_loss(config.label_smoothing, num_classes=num_classes)
    if config.flooding and least > config.flooding:
        notes.append(
            f"--label-smoothing {config.label_smoothing}: the loss can't fall under {least:.3f}, so --flooding"
            f" {config.flooding} never acts; give --flooding 0, or a level above {least:.3f}"
        )
    if config.flooding and config.mixup:
        notes.append(f"--mixup {config.mixup} keeps the loss above --flooding {config.flooding}: give --flooding 0")
    if config.accumulate > 1:
        notes.append(
            f"--accumulate {config.accumulate}: batch norm's statistics are those of a part of"
            f" {config.batch_size // config.accumulate} examples (each worker's share of it, without --sync-batchnorm),"
            f" not of the batch of {config.batch_size}"
        )
    return notes


def least_smoothed_loss(smoothing: float, *, num_classes: int = len(EMOTIONS)) -> float:
    """The least cross-entropy in nats that smoothed labels allow: the entropy of the target."""
    others = num_classes - 1
    right, wrong = 1 - smoothing * others / num_classes, smoothing / num_classes
    return 0.0 if smoothing == 0 else -right * math.log(right) - others * wrong * math.log(wrong)
