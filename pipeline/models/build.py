"""The networks by name: `build_model("cahfw")` gives a module that is called as `model(face, context)`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from pipeline.models.backbones import Backbone, check_backbone_size
from pipeline.models.caer_net import CAERNetS, CAHFWNetWithoutRecalibration, SingleStream
from pipeline.models.cahfw import CAHFWNet, check_options
from pipeline.models.encoders import check_equal_sides, check_sides
from pipeline.models.face_resnet import FaceResNet
from pipeline.records.vocabulary import (
    BACKBONES,
    EMOTIONS,
    AttentionGain,
    Encoder,
    PooledNorm,
    Reads,
    RecalibrationScale,
    UsageError,
)

PAIR_MODELS: tuple[str, ...] = ("cahfw", "se-ca-aa", "se-af", "caer-net-s")


MODELS: tuple[str, ...] = (*PAIR_MODELS, *BACKBONES, "face-resnet")


# Networks of one size for face and context, which pair the places of both.
CROSS_ATTENTION = ("cahfw", "se-ca-aa")


# What a network is where no option says otherwise: the paper's, and the public CAER-Net-S (ruling).
READINGS: dict[str, dict[str, str]] = {name: {"attention_gain": "area", "pooled_norm": "none"} for name in MODELS} | {
    "caer-net-s": {"attention_gain": "paper", "pooled_norm": "batch"}
}


def default_reads(name: str) -> Reads:
    """The images that a network reads unless told otherwise: the face for one that sees a face alone, else the pair."""
    return "face" if name in (*BACKBONES, "face-resnet") else "pair"


def build_model(
    name: str,
    *,
    reads: Reads | None = None,
    attention_gain: AttentionGain | None = None,
    recalibration_scale: RecalibrationScale = "sqrt",
    dropout: float = 0.5,
    pooled_norm: PooledNorm | None = None,
    encoder: Encoder = "paper",
    num_classes: int = len(EMOTIONS),
) -> nn.Module:
    """A new, randomly initialised network: `model(face, context)`, both `(B, 3, height, width)`, to logits
    `(B, num_classes)`.

    Args:
        name: one of MODELS: `cahfw`; `se-ca-aa`, without element recalibration; `se-af`, without cross-attention too;
            `caer-net-s`, the public network of that name, which is `se-af` in other readings (READINGS); and the
            backbones of torchvision, which see one image.
        reads: the images that decide; None is the pair, and the face for a backbone. `se-af` and `caer-net-s` that
            read one are the stream of that image with a head.
        attention_gain, pooled_norm: None is what READINGS says. These and the others are CAHFWNet's.

    Raises:
        UsageError: what `check_network` raises.
    """
    reads, readings = reads or default_reads(name), READINGS.get(name, READINGS["cahfw"])
    options: dict[str, Any] = {
        "attention_gain": attention_gain or readings["attention_gain"],
        "pooled_norm": pooled_norm or readings["pooled_norm"],
        "dropout": dropout,
        "encoder": encoder,
    }
    check_network(name, reads=reads, recalibration_scale=recalibration_scale, **options)
    model = _built(name, reads, recalibration_scale=recalibration_scale, **options)
    if num_classes != len(EMOTIONS):
        place = head_of(model)
        parent, _, last = place.rpartition(".")
        in_features = model.get_parameter(f"{place}.weight").shape[1]
        setattr(model.get_submodule(parent), last, nn.Linear(in_features, num_classes))
    return model


def head_of(model: nn.Module) -> str:
    """Where the layer lies that gives the logits: the last linear one."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def _built(name: str, reads: Reads, *, recalibration_scale: RecalibrationScale, **options: Any) -> nn.Module:
    dropout = options["dropout"]
    match name, reads:
        case "cahfw", _:
            return CAHFWNet(recalibration_scale=recalibration_scale, **options)
        case "se-ca-aa", _:
            return CAHFWNetWithoutRecalibration(**options)
        case "se-af" | "caer-net-s", "pair":
            return CAERNetS(**options)
        case "se-af" | "caer-net-s", ("face" | "context") as image:
            return SingleStream(reads=image, **options)
        case "face-resnet", _:
            return FaceResNet(dropout=dropout)
        case backbone, ("face" | "context") as image:
            return Backbone(backbone, reads=image, dropout=dropout)
    raise AssertionError("checked above")


def check_network(
    name: str,
    *,
    reads: Reads | None = None,
    attention_gain: str | None = None,
    recalibration_scale: str = "sqrt",
    dropout: float = 0.5,
    pooled_norm: str | None = None,
    encoder: str = "paper",
    face_px: int | None = None,
    context_px: int | None = None,
) -> None:
    """Raise UsageError where `build_model` would, or where the network can't read images of these sizes.

    Nothing is built: what a network needs is known from its name. face_px, context_px: sides of the squares, pixels;
    None is not checked.
    """
    if not 0.0 <= dropout < 1.0:
        raise UsageError(f"dropout {dropout} is not a share; give a number from 0 up to, not including, 1")
    if name not in MODELS:
        raise UsageError(f"model {name!r} is not known; use one of {', '.join(MODELS)}")
    check_options(
        attention_gain=attention_gain or "area",
        recalibration_scale=recalibration_scale,
        pooled_norm=pooled_norm or "none",
        encoder=encoder,
    )
    reads = reads or default_reads(name)
    if reads not in ("pair", "face", "context"):
        raise UsageError(f"input {reads!r} is not known; use pair, face or context")
    if name in BACKBONES and reads == "pair":
        raise UsageError(f"model {name} sees one image; take --input face or --input context")
    if name == "face-resnet" and reads != "face":
        raise UsageError(f"model {name} sees the face alone; take --input face")
    if name in (*BACKBONES, "face-resnet") and encoder != "paper":
        raise UsageError(f"model {name} is an encoder of its own; leave --encoder out, or take --model se-af")
    if name in CROSS_ATTENTION and reads != "pair":
        raise UsageError(
            f"model {name} is made of attention between face and context; take --input pair, or the stream of one"
            f" image: --model se-af --input {reads}"
        )
    check_size: Callable[..., None] = functools.partial(check_backbone_size, name) if name in BACKBONES else check_sides
    for image, px in (("face", face_px), ("context", context_px)):
        if px is not None and reads in ("pair", image):
            check_size((3, px, px), image=image)
    if name in CROSS_ATTENTION and face_px and context_px:
        check_equal_sides((3, face_px, face_px), (3, context_px, context_px))
