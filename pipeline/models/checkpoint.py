"""Training state goes out to storage after every epoch, and comes back: safetensors and JSON only, never a pickle.

    RUN/checkpoints/epoch-0003/model.safetensors      the weights after 3 epochs
                               training.safetensors   the optimizer's tensors, and the loss of every step so far
                               checkpoint.json        written last: the commit. Config, sha256 of both files, history
    RUN/checkpoints/step-00000350/                    the same in the middle of an epoch: a resume point
    RUN/best.json                                     names the best epoch by validation top-1 accuracy

RUN is a folder or any fsspec URL. A folder without `checkpoint.json` was cut off and is not seen. A checkpoint comes
back as its network.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from torch import Tensor, nn

from pipeline.models.build import build_model
from pipeline.models.checkpoint_info import (
    FORMAT_VERSION,
    PASS_BY,
    Which,
    chosen_folder,
    committed_epochs,
    epoch_folder,
    named_best,
    newest_checkpoint,
    put,
    read_bounded,
    read_commit,
    step_folder,
)
from pipeline.models.claims import model_classes
from pipeline.models.hf_folder import is_hf_folder, read_hf_folder
from pipeline.models.hf_models import HfNetwork
from pipeline.models.onnx_models import OnnxNetwork
from pipeline.models.shipped import run_url_of
from pipeline.models.sidecar import is_onnx, outside_info, read_onnx
from pipeline.models.tensors import MAX_WEIGHTS_BYTES, read_tensors
from pipeline.records.vocabulary import UsageError
from pipeline.storage.store import TEMPORARY, Storage

# Of a run's training: what decides what is learned, so that a resumed run may not change it. Not here: where it runs,
# where its data lies (the manifest's sha256 says whether it is the same), and for how long.
FIXED_FIELDS = (
    *("model", "input", "pretrained", "batch_size", "lr", "momentum", "nesterov", "weight_decay", "flooding"),
    *("dropout", "attention_gain", "recalibration_scale", "input_px", "flip", "augment_face", "label_smoothing"),
    *("class_weights", "warmup_steps", "clip_grad_norm", "accumulate", "ema", "sync_batchnorm", "seed", "precision"),
    *("pooled_norm", "encoder", "context_crop", "schedule", "optimizer", "decay", "mixup", "flip_at_test"),
)


# Of a checkpoint that is older than the option, whatever the network's name: what every network did then.
OPTIONS_BEFORE = {"attention_gain": "area", "pooled_norm": "none"}


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint: `model` on the CPU in evaluation mode, and what was saved beside it.

    config: {"model": {"name", "options", "face_px", "context_px"}, "training", "preprocessing"}; preprocessing is the
    data manifest's. info: epoch (epochs finished, from 1), step, metrics, manifest_sha256, checkpoint_sha256 (of
    model.safetensors), versions and whatever the training added. training_state: the optimizer's tensors by name.
    """

    model: nn.Module
    config: dict[str, Any]
    info: dict[str, Any]
    training_state: dict[str, Tensor]


def save_checkpoint(
    run_url: str,
    *,
    epoch: int,
    step: int,
    model: nn.Module,
    optimizer_state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    info: Mapping[str, Any],
    after: Literal["epoch", "step"] = "epoch",
) -> str:
    """Write and commit the state after `epoch` finished epochs and `step` steps; its sha256.

    config and info: see LoadedCheckpoint; info has at least `metrics` and `manifest_sha256`. after "step" makes a
    resume point of it, which nobody evaluates. Raises UsageError where the store is full or may not be written.
    """
    contents = {
        "model.safetensors": _serialised(model.state_dict()),
        "training.safetensors": _serialised(optimizer_state),
    }
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    commit = {
        "kind": "checkpoint",
        "format_version": FORMAT_VERSION,
        "epoch": epoch,
        "step": step,
        "sha256": sha256,
        "config": dict(config),
        "info": dict(info),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "ray")},
        },
    }
    # Everything that can fail by its content fails before the first write.
    commit_bytes = json.dumps(commit, indent=1, allow_nan=False).encode()
    folder = epoch_folder(epoch) if after == "epoch" else step_folder(step)
    for name, content in (*contents.items(), ("checkpoint.json", commit_bytes)):
        put(run_url, f"{folder}/{name}", content=content)
    return sha256["model.safetensors"]


def drop_old_checkpoints(run_url: str, *, keep: int) -> None:
    """Delete all epochs' checkpoints but the last `keep` and the one that best.json names, and old resume points.

    A commit goes before its tensors, so that a crash in between leaves nothing that looks whole. What a killed attempt
    left uncommitted goes too; the run's only writer is the caller.
    """
    storage, newest = Storage(run_url), newest_checkpoint(run_url)
    names = list(storage.sizes("checkpoints"))
    kept = {epoch_folder(epoch) for epoch in committed_epochs(run_url)[-keep:]} | {newest, named_best(run_url)}
    dropped = [name for name in names if name.rpartition("/")[0] not in kept]
    for name in sorted(dropped, key=lambda name: not name.endswith("/checkpoint.json")):
        storage.delete(name)
    if storage.is_local:  # where a killed attempt also leaves temporary files, which `sizes` does not name
        for folder in Path(storage.path("checkpoints")).iterdir():
            if f"checkpoints/{folder.name}" not in kept:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                for file in folder.glob(f"{TEMPORARY}*"):
                    file.unlink(missing_ok=True)


def load_checkpoint(run_url: str, which: Which = "best") -> LoadedCheckpoint:
    """A checkpoint of a run, or of one of the package's by its name (`shipped`): see Which.

    Raises UsageError where there is none, where a file is missing or is not the one that was committed (sha256), and
    where the weights don't fit the model that it names.
    """
    run_url = run_url_of(run_url)
    if is_onnx(run_url):
        outside = read_onnx(run_url)
        info = outside_info(outside.sidecar)
        model = OnnxNetwork(outside, where=run_url).eval()
        return LoadedCheckpoint(model=model, config=info.pop("config"), info=info, training_state={})
    if is_hf_folder(run_url):
        found = read_hf_folder(run_url)
        info = outside_info(found.sidecar)
        network = HfNetwork(found, where=run_url).eval()
        return LoadedCheckpoint(model=network, config=info.pop("config"), info=info, training_state={})
    folder = chosen_folder(run_url, which)
    commit = read_commit(run_url, folder)
    where = f"checkpoint {run_url.rstrip('/')}/{folder}"
    weights, training_state = (
        _read_tensors(run_url, folder, name=name, sha256=commit["sha256"].get(name))
        for name in ("model.safetensors", "training.safetensors")
    )
    description = commit["config"].get("model", {})
    try:
        model = build_model(
            description["name"],
            num_classes=len(model_classes(commit["config"])),
            **_options_of(description["options"], weights),
        )
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"{where} is not of a model this version builds ({description.get('name')!r}: {reason});"
            " use the version that trained it, or train again"
        ) from None
    info = {key: value for key, value in commit.items() if key not in ("config", "kind")}
    return LoadedCheckpoint(model=model.eval(), config=commit["config"], info=info, training_state=training_state)


def _options_of(options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """A network's options as a checkpoint has them, and those that it is too old for."""
    has_norms = any(name.startswith("pooled_norms.") for name in weights)
    return {**({} if has_norms else OPTIONS_BEFORE), **options}


def _serialised(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _read_tensors(run_url: str, folder: str, *, name: str, sha256: str | None) -> dict[str, Tensor]:
    path = f"{folder}/{name}"
    try:
        content = read_bounded(run_url, path, max_bytes=MAX_WEIGHTS_BYTES)
    except FileNotFoundError:
        raise UsageError(f"run {run_url}: {path} is missing; {PASS_BY}") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise UsageError(
            f"run {run_url}: {path} was changed after it was saved: its sha256 is {digest[:12]}…, checkpoint.json says"
            f" {str(sha256)[:12]}…; restore it, or {PASS_BY}"
        )
    return read_tensors(content, f"run {run_url}: {path}", cure=PASS_BY)
