"""Builds the network that a config asks for, and loads pretrained weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor, nn

from pipeline.dataset.dataset import ExampleDataset
from pipeline.dataset.shards import Manifest
from pipeline.dataset.views import PUBLIC_PX
from pipeline.models.backbones import BACKBONES, Backbone, check_weights, imagenet_weights, read_weights
from pipeline.models.build import PAIR_MODELS, READINGS, build_model, check_network, default_reads, head_of
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.claims import model_classes
from pipeline.models.encoders import check_imagenet, load_imagenet
from pipeline.models.shipped import portable
from pipeline.models.tensors import MAX_WEIGHTS_BYTES
from pipeline.records.columns import classes_in
from pipeline.records.vocabulary import EMOTIONS, UsageError, class_named
from pipeline.storage.redaction import redacted_values
from pipeline.storage.remote import absolute_url, read_url
from pipeline.train.config import TrainConfig

PUBLIC_FACE_PX = 96  # of the public CAER-Net-S


# What older runs did where they have no such setting.
BEFORE: dict[str, Any] = {"attention_gain": "area", "pooled_norm": "none", "context_crop": "none", "dropout": 0.5}
# What the networks of the paper learn at, where pooled vectors pass batch norm: benchmarks/README.md has the figures.
NORMED_DROPOUT = 0.2


def with_readings(config: TrainConfig, saved: Mapping[str, Any] | None = None) -> TrainConfig:
    """The config with a reading for each that was left open: that of the run so far, or today's.

    saved: the training config in a checkpoint of the run that goes on.
    """
    if saved is not None:
        found = {name: before if saved.get(name) is None else saved[name] for name, before in BEFORE.items()}
    elif config.model == "caer-net-s":
        found = {**BEFORE, **READINGS[config.model], "context_crop": "none" if config.input_px else "public"}
    elif (config.pooled_norm or "batch") == "batch":
        found = {**BEFORE, "pooled_norm": "batch", "attention_gain": "paper"}
        if config.model in PAIR_MODELS:
            found["dropout"] = NORMED_DROPOUT
    else:
        found = BEFORE
    given = {name: getattr(config, name) for name in found}
    return replace(config, **{name: found[name] if value is None else value for name, value in given.items()})


def input_sizes(config: TrainConfig) -> dict[str, Any]:
    """face_px, context_px and context_crop of a config with readings, as ExampleDataset takes them."""
    is_public = config.model == "caer-net-s" and config.input_px is None
    face_px, context_px = (PUBLIC_FACE_PX, PUBLIC_PX) if is_public else (config.input_px, config.input_px)
    return {"face_px": face_px, "context_px": context_px, "context_crop": config.context_crop or "none"}


def _model_options(config: TrainConfig) -> dict[str, Any]:
    names = ("attention_gain", "recalibration_scale", "dropout", "pooled_norm", "encoder")
    return {"reads": config.input or default_reads(config.model), **{name: getattr(config, name) for name in names}}


def new_model(config: TrainConfig) -> nn.Module:
    """The untrained network of a config, its backbone frozen where that is asked for."""
    model = build_model(config.model, num_classes=len(config.classes or EMOTIONS), **_model_options(config))
    if config.pretrained == "frozen" and isinstance(model, Backbone):
        model.freeze()
    return model


def load_pretrained(model: nn.Module, config: TrainConfig) -> str:
    """ImageNet's weights into a backbone or into the encoders: the first worker's, from which DDP sends them to the
    others; their origin."""
    tensors, source, origin = _pretrained(config)
    if isinstance(model, Backbone):
        model.load_pretrained(tensors, source=source)
    else:
        load_imagenet(model, tensors, source=source)
    return origin


def load_initial(model: nn.Module, config: TrainConfig) -> str:
    """The weights of --init into a network; where they are from. Raises UsageError where it is another network.

    Of other classes the head keeps what it has of those that --init does not know.
    """
    assert config.init is not None
    try:
        checkpoint = load_checkpoint(portable(config.init), "best")
    except UsageError as error:
        raise UsageError(f"--init: {error}") from None
    found = checkpoint.config["model"]
    theirs = {"model": found["name"], "pooled_norm": "none", "encoder": "paper", **found["options"]}
    ours = {"model": config.model, **_model_options(config)}
    # Dropout has no weights, and how Eq. 7 and 13 are read says nothing of a network without them.
    unread = {"dropout"} if config.model in PAIR_MODELS else ours.keys() - {"model", "reads"}
    changed = [name for name in ours if name not in unread and theirs.get(name) != ours[name]]
    if changed:
        told = ", ".join(f"{name} {theirs.get(name)!r}, and here it is {ours[name]!r}" for name in changed)
        raise UsageError(f"--init {config.init} was trained with {told}; give the same")
    weights = checkpoint.model.state_dict()
    known, classes = model_classes(checkpoint.config), config.classes or EMOTIONS
    if known != classes:
        head, own = head_of(model), model.state_dict()
        places = [class_named(name, known) for name in classes]
        for part in (f"{head}.weight", f"{head}.bias"):
            old, weights[part] = weights[part], own[part].clone()
            for row, name in enumerate(places):
                if name is not None:
                    weights[part][row] = old[known.index(name)]
    model.load_state_dict(weights)
    return f"checkpoint sha256 {checkpoint.info['checkpoint_sha256']}"


def _pretrained(config: TrainConfig) -> tuple[dict[str, Tensor], str, str]:
    """The tensors of --pretrained, where they come from, and what a checkpoint says of that."""
    if config.weights is None:
        return imagenet_weights(_pretrained_network(config)), "of torchvision", "torchvision IMAGENET1K_V1"
    try:
        content = read_url(
            absolute_url(config.weights), max_bytes=MAX_WEIGHTS_BYTES, what=f"--weights {config.weights}"
        )
    except OSError as error:
        raise UsageError(f"--weights {config.weights}: it can't be read ({error}); give a safetensors file") from None
    origin = f"sha256 {hashlib.sha256(content).hexdigest()}"
    return read_weights(content, source=config.weights), config.weights, origin


def check_model(config: TrainConfig, manifest: Manifest) -> None:
    """Raise UsageError, before any process starts, where the model's name, options, weights or input size are wrong."""
    config = with_readings(replace(config, classes=classes_for(config, manifest)))
    stored = {name: manifest.config[name] for name in ("face_px", "context_px")}
    sizes = {name: px or stored[name] for name, px in input_sizes(config).items() if name in stored}
    try:
        check_network(config.model, **_model_options(config), **sizes)
        if config.pretrained != "none":
            tensors, source, _ = _pretrained(config)
            if config.model in BACKBONES:
                check_weights(config.model, tensors, source=source)
            else:
                check_imagenet(tensors, source=source)
    except ValueError as error:
        raise UsageError(f"--model {config.model}, --input-px {config.input_px}: {error}") from None
    if config.init is not None:
        load_initial(new_model(config), config)


def classes_for(config: TrainConfig, manifest: Manifest) -> tuple[str, ...]:
    """The classes that a network of this config has: --classes, or those of the data.

    Raises UsageError where the data has one that --classes does not name.
    """
    own = classes_in({"config": manifest.config})
    if config.classes and (unknown := [name for name in own if class_named(name, config.classes) is None]):
        raise UsageError(
            f"--classes {','.join(config.classes)}: the data has the classes {', '.join(unknown)} too; name them, or"
            " preprocess without them"
        )
    return config.classes or own


def _pretrained_network(config: TrainConfig) -> str:
    return config.model if config.model in BACKBONES else config.encoder


def checkpoint_config(config: TrainConfig, examples: ExampleDataset) -> dict[str, Any]:
    """What a checkpoint says of its network, its training and how clips have to be read for it."""
    return {
        "model": {
            "name": config.model,
            "options": _model_options(config),
            "face_px": examples.face_px,
            "context_px": examples.context_px,
            "context_crop": examples.context_crop,
            "flip_at_test": config.flip_at_test,
            **({} if examples.classes == EMOTIONS else {"classes": list(examples.classes)}),
        },
        "training": redacted_values(asdict(config)),
        "preprocessing": examples.manifest.config,
    }
