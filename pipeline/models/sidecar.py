"""What a model from outside wants and gives: the JSON beside an `.onnx` file, checked.

{"name": "enet_b0_8_best_vgaf", "sha256": "...", "face_px": 224, "margin": 0.1, "colour": "rgb", "scale": 255,
 "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "outputs": ["Anger", "Contempt", ...], "gives": "logits",
 "left_out": ["Contempt"], "licence": "...", "source": "...", "card": "one line for whoever reads its labels"}
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.models.claims import MAX_MODEL_BYTES, check_claims
from pipeline.records.documents import MAX_TEXT_BYTES, mapping_of, parse_json, shown_value
from pipeline.records.vocabulary import EMOTIONS, MAX_MARGIN, MAX_PX, UsageError, checked_classes, class_named
from pipeline.storage.remote import read_url

# How pleasant and how excited a face looks, -1 to 1.
AFFECT = ("valence", "arousal")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sidecar:
    """One model.

    Args:
        name: of the model.
        sha256: of the .onnx file; another file is refused. Where nobody knows it `git_blob` does.
        inputs: images that it is given, in order.
        face_px, context_px: sides of its squares, pixels.
        margin: share of Dlib's box added on each side of the face; of an aligned one, of the square.
        alignment: none, or dlib5: upright by Dlib's five landmarks, as `faces.landmarks.upright` cuts it out.
        colour: order of its channels; grey is one channel.
        scale: pixels (0 to 255) are divided by this, then `mean` is taken away, then it is divided by `std`.
        output: the name of its output; by default the first.
        cut_px: side of the middle of the face's square that it is given; by default all of it.
        outputs: what the columns of this output are: classes, by their names or other names of the same one of the
            seven, `valence` and `arousal` (as they are, -1 to 1), or names in `left_out`.
        classes: what its labels are called, in their order; by default the seven.
        git_blob: the id that git gives the .onnx file, as its repository names it (SHA-1).
        gives: what the emotions' columns hold.
        left_out: columns that are none of these; the probabilities are shared among the others.
        temperature: logits are divided by it.
        preprocessing: how clips are read, as a checkpoint says it, beside `margin`.
        metrics, data, trained_at: as a checkpoint says them.
        licence, source, card: in words; `card` is one line.
    """

    name: str
    sha256: str
    face_px: int
    outputs: tuple[str, ...]
    gives: Literal["logits", "probabilities"]
    inputs: tuple[str, ...] = ("face",)
    context_px: int = 224
    margin: float = 0.0
    colour: Literal["rgb", "bgr", "grey"] = "rgb"
    scale: float = 255.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    left_out: tuple[str, ...] = ()
    temperature: float = 1.0
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    trained_at: str | None = None
    licence: str = "not said"
    source: str = "not said"
    card: str | None = None
    classes: tuple[str, ...] = EMOTIONS
    git_blob: str | None = None
    alignment: Literal["none", "dlib5"] = "none"
    output: str | None = None
    cut_px: int | None = None

    @property
    def shown_px(self) -> int:
        """Side of the face's square that the model is given."""
        return self.cut_px or self.face_px

    @property
    def num_channels(self) -> int:
        """Of an image that the model is given."""
        return 1 if self.colour == "grey" else 3

    @property
    def columns(self) -> tuple[int, ...]:
        """The column of its output that is each of its classes."""
        named = [None if name in self.left_out else class_named(name, self.classes) for name in self.outputs]
        return tuple(named.index(each) for each in self.classes)

    @property
    def affect_columns(self) -> tuple[int | None, ...]:
        """The columns of its output that are valence and arousal, None for what it does not give."""
        named = ["" if name in self.left_out else name.lower() for name in self.outputs]
        return tuple(named.index(name) if name in named else None for name in AFFECT)


def read_sidecar(content: bytes, *, where: str) -> Sidecar:
    """The record of a sidecar's bytes. Raises UsageError that names the field, its value and what to give."""
    values = parse_json(content, where)
    if not isinstance(values, dict):
        raise UsageError(f"{where} is not a JSON object; give one with {', '.join(_REQUIRED)}")
    values = mapping_of(values, {each.name for each in fields(Sidecar)}, where)
    needed = [*_REQUIRED, *([] if "git_blob" in values else ["sha256"])]
    if missing := [name for name in needed if name not in values]:
        raise UsageError(f"{where} lacks {', '.join(missing)}")
    for name, wanted in _TYPES.items():
        if name in values and (isinstance(values[name], bool) or not isinstance(values[name], wanted)):
            raise UsageError(f"{where}: {name} is {shown_value(values[name])}; give {_WORDS[wanted]}")
    _check_values(values, where=where)
    lists = {name: tuple(values[name]) for name in _LISTS if name in values}
    if "classes" in values:
        lists["classes"] = checked_classes(values["classes"], what=f"{where}: classes")
    found = Sidecar(**{"sha256": "", **values, **lists})
    _check_outputs(found, where=where)
    return found


_REQUIRED = ("name", "face_px", "outputs", "gives")
# Left out of what tells two models apart where they say nothing: they are younger than models that are in use.
_YOUNGER = ("classes", "git_blob", "alignment", "output", "cut_px")
_WORDS_ALLOWED = {
    "gives": ("logits", "probabilities"),
    "colour": ("rgb", "bgr", "grey"),
    "alignment": ("none", "dlib5"),
}
_LISTS = ("outputs", "inputs", "mean", "std", "left_out", "classes")
_NUMBER = (int, float)
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("name", "sha256", "gives", "colour", "licence", "source", "git_blob", "alignment", "output"), str),
    **dict.fromkeys(("face_px", "context_px", "cut_px"), int),
    **dict.fromkeys(("margin", "scale", "temperature"), _NUMBER),
    **dict.fromkeys(_LISTS, list),
    **dict.fromkeys(("preprocessing", "metrics", "data"), dict),
}
_WORDS: dict[Any, str] = {str: "a text", int: "a whole number", _NUMBER: "a number", list: "a list", dict: "an object"}


def _check_values(values: Mapping[str, Any], *, where: str) -> None:
    for name, allowed in _WORDS_ALLOWED.items():
        if name in values and values[name] not in allowed:
            raise UsageError(f"{where}: {name} is {shown_value(values[name])}; give one of {', '.join(allowed)}")
    for name, least, most in (("face_px", 8, MAX_PX), ("context_px", 8, MAX_PX), ("margin", 0, MAX_MARGIN)):
        if name in values and not least <= values[name] <= most:
            raise UsageError(f"{where}: {name} is {shown_value(values[name])}; give {least} to {most}")
    if not 8 <= values.get("cut_px", 8) <= values["face_px"]:
        raise UsageError(f"{where}: cut_px is {values['cut_px']}; give 8 to {values['face_px']}, which is its face_px")
    for name in ("scale", "temperature"):
        if name in values and not 0 < values[name] < float("inf"):
            raise UsageError(f"{where}: {name} is {shown_value(values[name])}; give a number above 0")
    channels = 1 if values.get("colour") == "grey" else 3
    for name in ("mean", "std"):
        given = values.get(name, [1.0] * channels)
        numbers = all(isinstance(each, _NUMBER) and not isinstance(each, bool) and abs(each) < 1e9 for each in given)
        if len(given) != channels or not numbers or (name == "std" and 0 in given):
            raise UsageError(
                f"{where}: {name} is {shown_value(given)}; give {channels} numbers, for std none of them 0"
            )
    if values.get("colour") == "grey" and "mean" not in values:
        raise UsageError(f"{where}: colour is grey, so give mean and std of one number each")
    if values.get("inputs", ["face"]) not in (["face"], ["context"], ["face", "context"]):
        raise UsageError(f"{where}: inputs is {shown_value(values['inputs'])}; give face, context, or face and context")


def _check_outputs(sidecar: Sidecar, *, where: str) -> None:
    if not all(isinstance(name, str) for name in (*sidecar.outputs, *sidecar.left_out)):
        raise UsageError(f"{where}: outputs is {list(sidecar.outputs)}; give names")
    asked = [name for name in sidecar.outputs if name not in sidecar.left_out]
    affect = [name.lower() for name in asked if name.lower() in AFFECT]
    if len(affect) != len(set(affect)):
        raise UsageError(f"{where}: outputs has {' or '.join(AFFECT)} twice; give each once, or name one in left_out")
    asked = [name for name in asked if name.lower() not in AFFECT]
    named = [class_named(name, sidecar.classes) for name in asked]
    if unknown := [name for name, found in zip(asked, named, strict=True) if found is None]:
        raise UsageError(
            f"{where}: outputs has {', '.join(unknown)}, which is none of {', '.join((*sidecar.classes, *AFFECT))}; or"
            " name it in left_out, or all classes of the model in classes"
        )
    if missing := [each for each in sidecar.classes if named.count(each) != 1]:
        raise UsageError(f"{where}: outputs must have each class once; it is not so for {', '.join(missing)}")


@dataclass(frozen=True, slots=True)
class OutsideModel:
    """An .onnx file and what its sidecar says."""

    content: bytes
    sidecar: Sidecar


def is_onnx(url: str) -> bool:
    """Whether a checkpoint is a model from outside."""
    return url.lower().endswith(".onnx")


def read_onnx(url: str) -> OutsideModel:
    """The file and the sidecar of its name: that beside it, or one of READY.

    Raises UsageError where one is missing or is not the other's.
    """
    beside = f"{url[: -len('.onnx')]}.json"
    try:
        content = read_url(url, max_bytes=MAX_MODEL_BYTES)
    except OSError as error:
        raise UsageError(f"checkpoint {url} can't be read ({error})") from None
    try:
        told = read_url(beside, max_bytes=MAX_TEXT_BYTES)
    except OSError as error:
        name = url[: -len(".onnx")].replace("\\", "/").rpartition("/")[2]
        if name not in READY:
            cure = "write what the model wants and gives: jobs/README.md, models from outside"
            raise UsageError(f"checkpoint {beside} can't be read ({error}); {cure}") from None
        beside, told = f"the sidecar {name} of this package", ready_sidecar(name)
    sidecar, digest = read_sidecar(told, where=beside), hashlib.sha256(content).hexdigest()
    own = {"sha256": digest, "git_blob": git_blob_of(content)}
    for name, found in own.items():
        if (wanted := getattr(sidecar, name)) and wanted != found:
            raise UsageError(
                f"checkpoint {url}: its {name} is {found[:12]}…, {beside} says {wanted[:12]}…; fetch it again"
            )
    return OutsideModel(content, replace(sidecar, sha256=digest))


# Models whose sidecars come with this package; the files are fetched from where these say.
READY = ("enet_b0_8_best_vgaf", "enet_b0_8_va_mtl", "enet_b2_8")


def ready_sidecar(name: str) -> bytes:
    """The sidecar of one of READY."""
    return (Path(__file__).parent / "sidecars" / f"{name}.json").read_bytes()


def git_blob_of(content: bytes) -> str:
    """The id that git gives a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _said(sidecar: Sidecar) -> str:
    """What a sidecar says, as text."""
    names = [
        each for each in fields(Sidecar) if each.name not in _YOUNGER or getattr(sidecar, each.name) != each.default
    ]
    return f"Sidecar({', '.join(f'{each.name}={getattr(sidecar, each.name)!r}' for each in names)})"


def outside_info(sidecar: Sidecar) -> dict[str, Any]:
    """What `read_checkpoint_info` says of a run, of a model from outside. Its sha256 is of model and sidecar."""
    told = hashlib.sha256(f"{sidecar.sha256} {_said(sidecar)}".encode()).hexdigest()
    info = {
        "epoch": 0,
        "step": 0,
        "checkpoint_sha256": told,
        "config": {
            "model": {
                "name": sidecar.name,
                "options": {"reads": "pair" if len(sidecar.inputs) == 2 else sidecar.inputs[0]},
                "face_px": sidecar.face_px,
                "context_px": sidecar.context_px,
                "classes": list(sidecar.classes),
            },
            "training": {},
            "preprocessing": {
                "detector": "dlib-cnn",
                **sidecar.preprocessing,
                "box_margin": sidecar.margin,
                "alignment": sidecar.alignment,
            },
        },
        "metrics": dict(sidecar.metrics),
        "temperature": sidecar.temperature,
        "data": dict(sidecar.data),
        "trained_at": sidecar.trained_at,
        "card": sidecar.card,
        "source": sidecar.source,
        "licence": sidecar.licence,
        "files_sha256": sidecar.sha256,
        "manifest_sha256": "",
        "history": [],
    }
    check_claims(info, f"model {sidecar.name}")
    return info
