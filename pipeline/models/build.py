"""The networks by name: `build_model("cahfw")` gives a module that is called as `model(face, context)`."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import nn

from pipeline.models.backbones import Backbone, check_backbone_size
from pipeline.models.caer_net import CAERNetS, CAHFWNetWithoutRecalibration, SingleStream
from pipeline.models.cahfw import AttentionGain, CAHFWNet, RecalibrationScale, check_options, check_sides
from pipeline.models.face_resnet import FaceResNet
from pipeline.records.vocabulary import BACKBONES, Reads, UsageError

PAIR_MODELS: tuple[str, ...] = ("cahfw", "se-ca-aa", "se-af", "caer-net-s")


MODELS: tuple[str, ...] = (*PAIR_MODELS, *BACKBONES, "face-resnet")


def default_reads(name: str) -> Reads:
    """The images that a network reads unless told otherwise: the face for one that sees a face alone, else the pair."""
    return "face" if name in (*BACKBONES, "face-resnet") else "pair"


def build_model(
    name: str,
    *,
    reads: Reads | None = None,
    attention_gain: AttentionGain = "area",
    recalibration_scale: RecalibrationScale = "sqrt",
    dropout: float = 0.5,
) -> nn.Module:
    """A new, randomly initialised network: `model(face, context)`, both `(B, 3, height, width)`, to logits `(B, 7)`.

    `name` is one of MODELS: `cahfw`; `se-ca-aa`, without element recalibration (`recalibration_scale` is then unused);
    `se-af` and `caer-net-s`, the same network, without cross-attention too; and the backbones of torchvision, which
    see one image. reads: the images that decide, None is the pair, and the face for a backbone; `se-af` that reads one
    is its stream of that image with a head. The other options are CAHFWNet's.
    Raises UsageError for a name or an option that is not known, and for a network that can't read what it should.
    """
    reads = reads or default_reads(name)
    check_network(
        name, reads=reads, attention_gain=attention_gain, recalibration_scale=recalibration_scale, dropout=dropout
    )
    match name, reads:
        case "cahfw", _:
            return CAHFWNet(attention_gain=attention_gain, recalibration_scale=recalibration_scale, dropout=dropout)
        case "se-ca-aa", _:
            return CAHFWNetWithoutRecalibration(attention_gain=attention_gain, dropout=dropout)
        case "se-af" | "caer-net-s", "pair":
            return CAERNetS(attention_gain=attention_gain, dropout=dropout)
        case "se-af" | "caer-net-s", ("face" | "context") as image:
            return SingleStream(reads=image, attention_gain=attention_gain, dropout=dropout)
        case "face-resnet", _:
            return FaceResNet(dropout=dropout)
        case backbone, ("face" | "context") as image:
            return Backbone(backbone, reads=image, dropout=dropout)
    raise AssertionError("checked above")


def check_network(
    name: str,
    *,
    reads: Reads | None = None,
    attention_gain: str = "area",
    recalibration_scale: str = "sqrt",
    dropout: float = 0.5,
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
    check_options(attention_gain=attention_gain, recalibration_scale=recalibration_scale)
    reads = reads or default_reads(name)
    if reads not in ("pair", "face", "context"):
        raise UsageError(f"input {reads!r} is not known; use pair, face or context")
    if name in BACKBONES and reads == "pair":
        raise UsageError(f"model {name} sees one image; take --input face or --input context")
    if name == "face-resnet" and reads != "face":
        raise UsageError(f"model {name} sees the face alone; take --input face")
    if name in ("cahfw", "se-ca-aa") and reads != "pair":
        raise UsageError(
            f"model {name} is made of attention between face and context; take --input pair, or the stream of one"
            f" image: --model se-af --input {reads}"
        )
    check_size: Callable[..., None] = functools.partial(check_backbone_size, name) if name in BACKBONES else check_sides
    for image, px in (("face", face_px), ("context", context_px)):
        if px is not None and reads in ("pair", image):
            check_size((3, px, px), image=image)
