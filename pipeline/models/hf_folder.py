"""Hugging Face's image classifiers: the folder of a `save_pretrained`, as a record like that of an `.onnx` file.

    FOLDER/config.json               architecture, and the names of its outputs (id2label)
           model.safetensors         the weights; nothing else is loaded, and no code of the folder is run
           preprocessor_config.json  size, scale, mean and std of its pixels
           sidecar.json              optional: fields of `sidecar.Sidecar`, in place of what these say

The folder lies on a disk or at any fsspec URL. PyTorch and transformers are not needed to read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.models.sidecar import AFFECT, Sidecar, read_sidecar
from pipeline.records.documents import MAX_TEXT_BYTES, parse_json, shown_value
from pipeline.records.vocabulary import EMOTIONS, UsageError, class_named
from pipeline.storage.remote import read_url
from pipeline.storage.store import Storage

CONFIG, WEIGHTS, PIXELS, OWN = "config.json", "model.safetensors", "preprocessor_config.json", "sidecar.json"
FILES = (CONFIG, WEIGHTS, PIXELS, OWN)
# As of every checkpoint's weights.
MAX_WEIGHTS_BYTES = 2**33
_CLASSIFIER = "ForImageClassification"


@dataclass(frozen=True, slots=True)
class HfFolder:
    """What is loaded of a folder, as bytes, and what it wants and gives."""

    config: bytes
    weights: bytes
    sidecar: Sidecar


def is_hf_folder(url: str) -> bool:
    """Whether a checkpoint is the folder of a `save_pretrained`."""
    storage = Storage(url)
    return storage.exists(CONFIG) and not storage.sizes("checkpoints")


def read_hf_folder(url: str) -> HfFolder:
    """The folder's files. Raises UsageError, naming file and cure, for what is missing, foreign or no classifier."""
    config_bytes = _read(url, CONFIG)
    config = _object(config_bytes, f"{url}/{CONFIG}")
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    if not any(isinstance(name, str) and name.endswith(_CLASSIFIER) for name in names):
        raise UsageError(
            f"checkpoint {url}: its architectures are {shown_value(architectures)}, none of which is an image"
            f" classifier (…{_CLASSIFIER}); give the folder of one"
        )
    weights = _read(url, WEIGHTS)
    digest = hashlib.sha256(f"{_sha256(weights)} {_sha256(config_bytes)}".encode()).hexdigest()
    own = _object(_read(url, OWN), f"{url}/{OWN}") if Storage(url).exists(OWN) else {}
    if given := {"sha256", "git_blob", "inputs"} & own.keys():
        raise UsageError(f"{url}/{OWN}: {', '.join(sorted(given))} is of .onnx files; leave it out")
    values = {
        "name": str(config.get("model_type") or names[0])[:100],
        "gives": "logits",
        "source": str(config.get("_name_or_path") or "not said")[:300],  # not where it lies: moved, it is the same
        **_outputs_of(config, url, own),
        **_pixels_of(url, own, num_channels=1 if config.get("num_channels") == 1 else 3),
        **own,
        "sha256": digest,
    }
    sidecar = read_sidecar(json.dumps(values).encode(), where=f"{url} ({CONFIG}, {PIXELS}, {OWN})")
    return HfFolder(config=config_bytes, weights=weights, sidecar=sidecar)


def _outputs_of(config: Mapping[str, Any], url: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """The names of the outputs, and those of the classes: the seven where the outputs are just these."""
    labels = config.get("id2label")
    if not isinstance(labels, dict) or sorted(labels) != sorted(map(str, range(len(labels)))):
        raise UsageError(f"{url}/{CONFIG}: id2label is {shown_value(labels)}; it must name every output by its number")
    outputs = [str(labels[str(number)]) for number in range(len(labels))]
    if "outputs" not in own and any(name.upper().startswith("LABEL_") for name in outputs):
        raise UsageError(
            f"{url}/{CONFIG}: id2label names outputs {outputs[0]}, which says nothing; name them in order in"
            f' {url}/{OWN}: {{"outputs": ["Anger", ...]}}'
        )
    asked = own.get("outputs", outputs)
    left_out = own.get("left_out", [])
    named = [name for name in asked if isinstance(name, str) and name not in left_out and name.lower() not in AFFECT]
    ours = [class_named(name, EMOTIONS) for name in named]
    are_ours = sorted(filter(None, ours)) == sorted(EMOTIONS) and None not in ours
    return {"outputs": outputs, "classes": list(EMOTIONS) if are_ours else named}


def _pixels_of(url: str, own: Mapping[str, Any], *, num_channels: int) -> dict[str, Any]:
    """Side, colour, scale, mean and std of the pixels that it wants."""
    grey: dict[str, Any] = {"colour": "grey", "mean": [0.0], "std": [1.0]} if num_channels == 1 else {}
    if not Storage(url).exists(PIXELS):
        if "face_px" in own:
            return grey
        raise UsageError(
            f"checkpoint {url}: {PIXELS} is missing, which says what pixels it wants; save its image processor there,"
            f" or write face_px, scale, mean and std into {url}/{OWN}"
        )
    pixels = _object(_read(url, PIXELS), f"{url}/{PIXELS}")
    size = pixels.get("crop_size") if pixels.get("do_center_crop") else pixels.get("size")
    size = _side_of(size)
    if "face_px" not in own and size is None:
        raise UsageError(
            f"{url}/{PIXELS}: size is {shown_value(pixels.get('size'))}, which is no square; write face_px into"
            f" {url}/{OWN}"
        )
    found = grey | ({} if size is None else {"face_px": size})
    whole = _side_of(pixels.get("size"))
    if pixels.get("do_center_crop") and "face_px" not in own and whole and size and whole > size:
        found |= {"face_px": whole, "cut_px": size}
    factor = pixels.get("rescale_factor", 1 / 255) if pixels.get("do_rescale", True) else 1.0
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor > 0:
        raise UsageError(f"{url}/{PIXELS}: rescale_factor is {shown_value(factor)}; give a number above 0")
    found["scale"] = 1 / factor
    if pixels.get("do_normalize", True) and "image_mean" in pixels:
        for name in ("mean", "std"):
            value = pixels.get(f"image_{name}")
            each = value if isinstance(value, list) else [value] * num_channels
            found[name] = each[:1] if num_channels == 1 and each == each[:1] * 3 else each
    return found


def _side_of(size: Any) -> int | None:
    """The side of the square that an image processor's file names; None where it names none."""
    if isinstance(size, dict):
        sides = {size.get(name) for name in ("height", "width") if name in size} or {size.get("shortest_edge")}
        size = sides.pop() if len(sides) == 1 else None
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _read(url: str, name: str) -> bytes:
    try:
        return read_url(f"{url.rstrip('/')}/{name}", max_bytes=MAX_WEIGHTS_BYTES if name == WEIGHTS else MAX_TEXT_BYTES)
    except OSError as error:
        cure = "; save it with safe_serialization, in one file" if name == WEIGHTS else ""
        raise UsageError(f"checkpoint {url}: {name} can't be read ({error}){cure}") from None


def _object(content: bytes, what: str) -> dict[str, Any]:
    values = parse_json(content, what)
    if not isinstance(values, dict):
        raise UsageError(f"{what} is not a JSON object")
    return values


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
