"""What a checkpoint's commits say, read without its tensors: epochs, the best one, config, metrics.

The layout of a run is told in `checkpoint`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipeline.models.claims import MAX_EPOCH, check_claims
from pipeline.models.hf_folder import is_hf_folder, read_hf_folder
from pipeline.models.hf_hub import fetched, is_hub_id
from pipeline.models.shipped import run_url_of
from pipeline.models.sidecar import is_onnx, outside_info, read_onnx
from pipeline.records.documents import MAX_TEXT_BYTES, DocumentError, parse_json
from pipeline.records.vocabulary import UsageError
from pipeline.storage.remote import read_url
from pipeline.storage.retry import StorageError
from pipeline.storage.store import Storage

FORMAT_VERSION = 1

# Of checkpoint.json: its history has a kilobyte an epoch.
MAX_JSON_BYTES = 2**26

Which = Literal["best", "last", "newest"] | int
"""Of a run: the epoch with the best validation top-1 accuracy, the last one, one by its number (from 1), or the newest
state of all, which may be a resume point in the middle of an epoch."""

PASS_BY = "use another epoch, or delete its folder"
_GIVE_A_RUN = "give the --output of a jobs/train.py that ran"


def write_best(run_url: str, *, epoch: int, top1_accuracy: float) -> None:
    """Name the best epoch of a run in RUN/best.json."""
    best = {"epoch": epoch, "checkpoint": epoch_folder(epoch), "validation_top1_accuracy": top1_accuracy}
    put(run_url, "best.json", content=json.dumps(best, indent=1).encode())


def best_of(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of rows of epochs, that with the highest validation top-1 accuracy; the earliest of equals."""
    return max(history, key=lambda row: (row["validation_top1_accuracy"], -row["epoch"]))


def put(run_url: str, name: str, *, content: bytes) -> None:
    """Write one object of a run, whole or not at all. Raises UsageError where the store does not take it."""
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
    if steps and (not epochs or steps[-1] > read_commit(run_url, epoch_folder(epochs[-1]))["step"]):
        return step_folder(steps[-1])
    return epoch_folder(epochs[-1]) if epochs else None


def read_checkpoint_info(run_url: str, which: Which = "best") -> dict[str, Any]:
    """The JSON of a checkpoint without its tensors: {"config", "epoch", "step", ...}, as info and config are loaded.

    run_url: a run, or the name of one that comes with the package (`shipped`).

    Raises UsageError where there is none, or where it is damaged.
    """
    if is_hub_id(run_url):
        model = fetched(run_url)
        return {**outside_info(read_hf_folder(model.folder).sidecar), "source": model.source}
    run_url = run_url_of(run_url)
    if is_onnx(run_url):
        return outside_info(read_onnx(run_url).sidecar)
    if is_hf_folder(run_url):
        return outside_info(read_hf_folder(run_url).sidecar)
    return read_commit(run_url, chosen_folder(run_url, which))


def epoch_folder(epoch: int) -> str:
    """Where the checkpoint of an epoch lies in its run."""
    return f"checkpoints/epoch-{epoch:04d}"


def step_folder(step: int) -> str:
    """Where the resume point within an epoch lies in its run."""
    return f"checkpoints/step-{step:08d}"


def chosen_folder(run_url: str, which: Which) -> str:
    """The folder of the checkpoint that `which` names in a run. Raises UsageError where there is none."""
    if which == "newest":
        newest = newest_checkpoint(run_url)
        if newest is None:
            raise UsageError(f"run {run_url}: it holds no checkpoint; {_GIVE_A_RUN}")
        return newest
    epochs = committed_epochs(run_url)
    if not epochs:
        raise UsageError(f"run {run_url}: it holds no checkpoint of an epoch; {_GIVE_A_RUN}")
    if which == "last":
        return epoch_folder(epochs[-1])
    if which == "best":
        named = named_best(run_url)
        # A run that was cut off between its first epoch's commit and best.json says in its history which it would be.
        history = [] if named else read_commit(run_url, epoch_folder(epochs[-1])).get("history", [])
        if not named and not history:
            raise UsageError(f"run {run_url}: best.json is missing or damaged; name an epoch, or use last")
        which = int(named.rpartition("-")[2]) if named else best_of(history)["epoch"]
    if which not in epochs:
        there = ", ".join(map(str, epochs))
        raise UsageError(f"run {run_url}: it has no checkpoint of epoch {which!r}; it has those of {there}")
    return epoch_folder(which)


def named_best(run_url: str) -> str | None:
    """The best epoch as the run names it; None where it names none."""
    try:
        named = parse_json(read_bounded(run_url, "best.json", max_bytes=MAX_TEXT_BYTES), "best.json")["epoch"]
        return epoch_folder(named) if type(named) is int and 0 < named <= MAX_EPOCH else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def read_commit(run_url: str, folder: str) -> dict[str, Any]:
    """checkpoint.json as one dict: what training added as `info` lies beside the rest."""
    path = f"{folder}/checkpoint.json"
    kind, _, number = folder.rpartition("/")[2].partition("-")
    try:
        content = read_bounded(run_url, path, max_bytes=MAX_JSON_BYTES)
        commit = parse_json(content, "checkpoint.json", max_bytes=MAX_JSON_BYTES)
        version = commit["format_version"] if commit["kind"] == "checkpoint" else None
        flat = {**commit.pop("info"), **commit, "checkpoint_sha256": commit["sha256"]["model.safetensors"]}
        complete = flat[kind] == int(number) and isinstance(flat["step"], int) and isinstance(flat["config"], dict)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        told = str(error) if isinstance(error, DocumentError) else repr(error)
        raise UsageError(f"run {run_url}: {path} is damaged or foreign ({told}); {PASS_BY}") from None
    if version != FORMAT_VERSION or not complete:
        raise UsageError(
            f"run {run_url}: {path} is not a checkpoint of {kind} {int(number)} in format {FORMAT_VERSION};"
            f" {PASS_BY}, or use the version that wrote it"
        )
    check_claims(flat, f"run {run_url}: {path}")
    return flat


def read_bounded(run_url: str, path: str, *, max_bytes: int) -> bytes:
    """The bytes of one object of a run, which are no more than this."""
    return read_url(f"{run_url.rstrip('/')}/{path}", max_bytes=max_bytes, what=f"run {run_url}: {path}")


def temperature_of(info: dict[str, Any]) -> float:
    """What the checkpoint's logits are divided by; 1.0 where it was never fitted. Raises UsageError if it is none."""
    temperature = info.get("temperature", 1.0)
    if not isinstance(temperature, int | float) or not math.isfinite(temperature) or temperature <= 0:
        raise UsageError(f"the checkpoint's temperature is {temperature!r}; it must be above 0: train it again")
    return float(temperature)
