"""Builds the network that a config asks for, and loads pretrained weights."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from pipeline.dataset.dataset import ExampleDataset
from pipeline.dataset.shards import Manifest
from pipeline.models.backbones import Backbone, check_weights, imagenet_weights, read_weights
from pipeline.models.build import build_model, check_network, default_reads
from pipeline.models.checkpoint import load_checkpoint
from pipeline.records.vocabulary import UsageError
from pipeline.storage.redaction import redacted_values
from pipeline.storage.remote import absolute_url, read_url
from pipeline.train.config import TrainConfig


def _model_options(config: TrainConfig) -> dict[str, Any]:
    options = {name: getattr(config, name) for name in ("attention_gain", "recalibration_scale", "dropout")}
    return {"reads": config.input or default_reads(config.model), **options}


def new_model(config: TrainConfig) -> nn.Module:
    model = build_model(config.model, **_model_options(config))
    if config.pretrained == "frozen" and isinstance(model, Backbone):
        model.freeze()
    return model


def load_pretrained(model: nn.Module, config: TrainConfig) -> str:
    """ImageNet's weights into a backbone: the first worker's, from which DDP sends them to the others; their origin."""
    assert isinstance(model, Backbone)  # --pretrained is refused for any other
    tensors, source, origin = _pretrained(config)
    model.load_pretrained(tensors, source=source)
    return origin


def load_initial(model: nn.Module, config: TrainConfig) -> str:
    """The weights of --init into a network; where they are from. Raises UsageError where it is another network."""
    assert config.init is not None
    checkpoint = load_checkpoint(absolute_url(config.init), "best")
    found = checkpoint.config["model"]
    theirs = {"model": found["name"], **found["options"]}
    ours = {"model": config.model, **_model_options(config)}
    # Dropout has no weights.
    changed = [name for name in ours if name != "dropout" and theirs.get(name) != ours[name]]
    if changed:
        told = ", ".join(f"{name} {theirs.get(name)!r}, and here it is {ours[name]!r}" for name in changed)
        raise UsageError(f"--init {config.init} was trained with {told}; give the same")
    model.load_state_dict(checkpoint.model.state_dict())
    return f"checkpoint sha256 {checkpoint.info['checkpoint_sha256']}"


def _pretrained(config: TrainConfig) -> tuple[dict[str, Tensor], str, str]:
    """The tensors of --pretrained, where they come from, and what a checkpoint says of that."""
    if config.weights is None:
        return imagenet_weights(config.model), "of torchvision", "torchvision IMAGENET1K_V1"
    try:
        content = read_url(absolute_url(config.weights))
    except OSError as error:
        raise UsageError(f"--weights {config.weights}: it can't be read ({error}); give a safetensors file") from None
    origin = f"sha256 {hashlib.sha256(content).hexdigest()}"
    return read_weights(content, source=config.weights), config.weights, origin


def check_model(config: TrainConfig, manifest: Manifest) -> None:
    """Raise UsageError, before any process starts, where the model's name, options, weights or input size are wrong."""
    sizes: dict[str, Any] = {name: config.input_px or manifest.config[name] for name in ("face_px", "context_px")}
    try:
        check_network(config.model, **_model_options(config), **sizes)
        if config.init is not None:
            load_initial(new_model(config), config)
        if config.pretrained != "none":
            tensors, source, _ = _pretrained(config)
            check_weights(config.model, tensors, source=source)
    except ValueError as error:
        raise UsageError(f"--model {config.model}, --input-px {config.input_px}: {error}") from None


def checkpoint_config(config: TrainConfig, examples: ExampleDataset) -> dict[str, Any]:
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
