"""Training state goes out to storage after every epoch, and comes back: safetensors and JSON only, never a pickle.

    RUN/checkpoints/epoch-0003/model.safetensors      the weights after 3 epochs
                               training.safetensors   the optimizer's tensors, and the loss of every step so far
                               checkpoint.json        written last: the commit. Config, sha256 of both files, history
    RUN/checkpoints/step-00000350/                    the same in the middle of an epoch: a resume point
    RUN/best.json                                     names the best epoch by validation top-1 accuracy

RUN is a folder or any fsspec URL. A folder without `checkpoint.json` was cut off and is not seen. Besides records this
room imports `models`, so that a checkpoint comes back as its network, and `storage`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.models.build import build_model
from pipeline.models.onnx_models import OnnxNetwork, is_onnx, onnx_info, read_onnx
from pipeline.models.shipped import run_url_of
from pipeline.records.vocabulary import UsageError
from pipeline.storage.retry import StorageError
from pipeline.storage.store import TEMPORARY, Storage

FORMAT_VERSION = 1


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


Which = Literal["best", "last", "newest"] | int
"""Of a run: the epoch with the best validation top-1 accuracy, the last one, one by its number (from 1), or the newest
state of all, which may be a resume point in the middle of an epoch."""


_PASS_BY = "use another epoch, or delete its folder"


_GIVE_A_RUN = "give the --output of a jobs/train.py that ran"


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
    folder = _epoch_folder(epoch) if after == "epoch" else _step_folder(step)
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
    kept = {_epoch_folder(epoch) for epoch in committed_epochs(run_url)[-keep:]} | {newest, _named_best(run_url)}
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


def write_best(run_url: str, *, epoch: int, top1_accuracy: float) -> None:
    """Name the best epoch of a run in RUN/best.json."""
    best = {"epoch": epoch, "checkpoint": _epoch_folder(epoch), "validation_top1_accuracy": top1_accuracy}
    put(run_url, "best.json", content=json.dumps(best, indent=1).encode())


def best_of(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of rows of epochs, that with the highest validation top-1 accuracy; the earliest of equals."""
    return max(history, key=lambda row: (row["validation_top1_accuracy"], -row["epoch"]))


def put(run_url: str, name: str, *, content: bytes) -> None:
    """Write one object of a run, whole or not at all. UsageError where the store does not take it, after every try."""
    try:
        Storage(run_url).put(name, content)
    except (StorageError, NotADirectoryError) as error:
        raise UsageError(f"run {run_url}: {name} can't be written: {error}") from None


def committed_epochs(run_url: str) -> list[int]:
    """The epochs with a committed checkpoint, ascending; [] where there is none, or no run."""
    matches = (re.search(r"/epoch-(\d+)/checkpoint\.json$", name) for name in Storage(run_url).sizes("checkpoints"))
    return sorted(int(match[1]) for match in matches if match)


def newest_checkpoint(run_url: str) -> str | None:
    """The folder of the committed state with the most steps, an epoch's or a resume point's; None where none is."""
    epochs = committed_epochs(run_url)
    matches = (re.search(r"/step-(\d+)/checkpoint\.json$", name) for name in Storage(run_url).sizes("checkpoints"))
    steps = sorted(int(match[1]) for match in matches if match)
    if steps and (not epochs or steps[-1] > _read_commit(run_url, _epoch_folder(epochs[-1]))["step"]):
        return _step_folder(steps[-1])
    return _epoch_folder(epochs[-1]) if epochs else None


def read_checkpoint_info(run_url: str, which: Which = "best") -> dict[str, Any]:
    """The JSON of a checkpoint without its tensors: {"config", "epoch", "step", ...}, as info and config are loaded.

    run_url: a run, or the name of one that comes with the package (`shipped`).

    Raises UsageError where there is none, or where it is damaged.
    """
    run_url = run_url_of(run_url)
    if is_onnx(run_url):
        return onnx_info(read_onnx(run_url))
    return _read_commit(run_url, _chosen_folder(run_url, which))


def load_checkpoint(run_url: str, which: Which = "best") -> LoadedCheckpoint:
    """A checkpoint of a run, or of one of the package's by its name (`shipped`): see Which.

    Raises UsageError where there is none, where a file is missing or is not the one that was committed (sha256), and
    where the weights don't fit the model that it names.
    """
    run_url = run_url_of(run_url)
    if is_onnx(run_url):
        outside = read_onnx(run_url)
        info = onnx_info(outside)
        model = OnnxNetwork(outside, where=run_url).eval()
        return LoadedCheckpoint(model=model, config=info.pop("config"), info=info, training_state={})
    folder = _chosen_folder(run_url, which)
    commit = _read_commit(run_url, folder)
    where = f"checkpoint {run_url.rstrip('/')}/{folder}"
    weights, training_state = (
        _read_tensors(run_url, folder, name=name, sha256=commit["sha256"].get(name))
        for name in ("model.safetensors", "training.safetensors")
    )
    description = commit["config"].get("model", {})
    try:
        model = build_model(description["name"], **_options_of(description["options"], weights))
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


def _epoch_folder(epoch: int) -> str:
    return f"checkpoints/epoch-{epoch:04d}"


def _step_folder(step: int) -> str:
    return f"checkpoints/step-{step:08d}"


def _serialised(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _chosen_folder(run_url: str, which: Which) -> str:
    if which == "newest":
        newest = newest_checkpoint(run_url)
        if newest is None:
            raise UsageError(f"run {run_url}: it holds no checkpoint; {_GIVE_A_RUN}")
        return newest
    epochs = committed_epochs(run_url)
    if not epochs:
        raise UsageError(f"run {run_url}: it holds no checkpoint of an epoch; {_GIVE_A_RUN}")
    if which == "last":
        return _epoch_folder(epochs[-1])
    if which == "best":
        named = _named_best(run_url)
        # A run that was cut off between its first epoch's commit and best.json says in its history which it would be.
        history = [] if named else _read_commit(run_url, _epoch_folder(epochs[-1])).get("history", [])
        if not named and not history:
            raise UsageError(f"run {run_url}: best.json is missing or damaged; name an epoch, or use last")
        which = int(named.rpartition("-")[2]) if named else best_of(history)["epoch"]
    if which not in epochs:
        there = ", ".join(map(str, epochs))
        raise UsageError(f"run {run_url}: it has no checkpoint of epoch {which!r}; it has those of {there}")
    return _epoch_folder(which)


def _named_best(run_url: str) -> str | None:
    try:
        return _epoch_folder(int(json.loads(Storage(run_url).read("best.json"))["epoch"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _read_commit(run_url: str, folder: str) -> dict[str, Any]:
    """checkpoint.json as one dict: what training added as `info` lies beside the rest."""
    path = f"{folder}/checkpoint.json"
    kind, _, number = folder.rpartition("/")[2].partition("-")
    try:
        commit = json.loads(Storage(run_url).read(path))
        version = commit["format_version"] if commit["kind"] == "checkpoint" else None
        flat = {**commit.pop("info"), **commit, "checkpoint_sha256": commit["sha256"]["model.safetensors"]}
        complete = flat[kind] == int(number) and isinstance(flat["step"], int) and isinstance(flat["config"], dict)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"run {run_url}: {path} is damaged or foreign ({error!r}); {_PASS_BY}") from None
    if version != FORMAT_VERSION or not complete:
        raise UsageError(
            f"run {run_url}: {path} is not a checkpoint of {kind} {int(number)} in format {FORMAT_VERSION};"
            f" {_PASS_BY}, or use the version that wrote it"
        )
    return flat


def _read_tensors(run_url: str, folder: str, *, name: str, sha256: str | None) -> dict[str, Tensor]:
    path = f"{folder}/{name}"
    try:
        content = Storage(run_url).read(path)
    except FileNotFoundError:
        raise UsageError(f"run {run_url}: {path} is missing; {_PASS_BY}") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise UsageError(
            f"run {run_url}: {path} was changed after it was saved: its sha256 is {digest[:12]}…, checkpoint.json says"
            f" {str(sha256)[:12]}…; restore it, or {_PASS_BY}"
        )
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise UsageError(f"run {run_url}: {path} is not safetensors ({error}); {_PASS_BY}") from None
