"""Face detection: images in, boxes with scores out. Boxes may pass the frame's edge.

`spec` has what each detector declares, `detectors/` the detectors.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.faces.devices import resolve_device
from pipeline.faces.spec import DEVICES, PRECISIONS, Detector, DetectorOptions, DetectorSpec, detector_spec
from pipeline.records.faces import Face
from pipeline.records.vocabulary import UsageError

DEFAULT = "dlib-cnn"

# Frames that go to a shared detector together: 29 of 712x400, one of 3840x2160, 25 MB in any case.
SHARED_BATCH_PX = 2**23


class Detect(Protocol):
    """Finds the faces of images (RGB uint8 HWC), as `Detector.detect_faces`. Raises DetectionError if it is shared and
    cannot be reached."""

    def __call__(self, images: list[np.ndarray], *, upsample: int) -> list[list[Face]]: ...


class DetectionError(Exception):
    """Frames that a shared detector did not answer for: nothing is known against the clip."""


def build_detector(
    name: str,
    *,
    upsample: int = 0,
    score_threshold: float = 0.0,
    precision: str = "auto",
    device: str = "auto",
    weights: str | None = None,
) -> Detector:
    """The detector of that name, ready to run in the process that built it (it is neither pickled nor forked).

    upsample: 0 finds faces from about 80 px, 1 from about 40 px at four times the cost. score_threshold: faces score
    above it. precision and device: one that its `DetectorSpec` lists, or auto. weights: a path to the detector's file
    in place of the installed package's. Raises UsageError for a wrong option or weights file, and for a library that is
    missing.
    """
    spec, options = _checked_options(
        name,
        upsample=upsample,
        score_threshold=score_threshold,
        precision=precision,
        device=device,
        weights=weights,
    )
    return _built(spec, options)


def _built(spec: DetectorSpec, options: DetectorOptions) -> Detector:
    try:
        return spec.build(options)
    except ModuleNotFoundError as error:
        if spec.extra is None:
            raise
        raise UsageError(
            f"detector {spec.name} needs {error.name}, which is not installed: pip install '{spec.extra}'"
        ) from None


def check_detector(name: str, **options: Any) -> None:
    """Raise UsageError where `build_detector` would with all these options; a detector that can tell is not built."""
    spec, found = _checked_options(name, **options)
    (spec.check or functools.partial(_built, spec))(found)


def _checked_options(
    name: str, *, upsample: int, score_threshold: float, precision: str, device: str, weights: str | None
) -> tuple[DetectorSpec, DetectorOptions]:
    spec = detector_spec(name)
    _check_choice("precision", precision, PRECISIONS)
    _check_choice("device", device, DEVICES)
    if upsample not in (0, 1):
        raise UsageError(f"upsample {upsample!r} is not 0 or 1")
    resolved = "cpu" if device == "auto" and "cuda" not in spec.precisions else device
    if resolved not in ("auto", *spec.precisions) or not _runs_in(spec, precision, resolved):
        runs = " and ".join(f"{', '.join(spec.precisions[each])} on {each.upper()}" for each in sorted(spec.precisions))
        raise UsageError(f"{name} with precision {precision} on device {device}: it runs in {runs}; use {DEFAULT}")
    resolved = resolve_device(resolved)
    if not _runs_in(spec, precision, resolved):
        raise UsageError(f"detector precision {precision} is for CPU; use bf16 on cuda, or device cpu")
    if weights is not None and spec.weights is None:
        raise UsageError(f"weights {weights!r}: {name} carries its own; leave them out, or use {DEFAULT}")
    options = DetectorOptions(
        upsample=upsample,
        score_threshold=score_threshold,
        precision=resolve_precision(precision, resolved, detector=name),
        device=resolved,
        weights=spec.weights.find(weights) if spec.weights else None,
    )
    return spec, options


def _runs_in(spec: DetectorSpec, precision: str, device: str) -> bool:
    """Whether a detector has a precision on a device; on `auto`, whether on any."""
    kinds = spec.precisions.values() if device == "auto" else (spec.precisions[device.partition(":")[0]],)
    return precision == "auto" or any(precision in each for each in kinds)


def find_weights(path: str | None = None) -> Path:
    """Where the weights of Dlib's CNN are, their sha256 checked: `path`, or the package's file. Raises UsageError."""
    spec = detector_spec(DEFAULT)
    assert spec.weights is not None
    return spec.weights.find(path)


def resolve_precision(precision: str, device: str, *, detector: str = DEFAULT) -> str:
    """`fp32`, `bf16` or `int8`, as told in manifests: what is asked for, or for auto the detector's choice."""
    _check_choice("precision", precision, PRECISIONS)
    return detector_spec(detector).auto_precision(resolve_device(device)) if precision == "auto" else precision


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{option} {value!r} is not one of {', '.join(choices)}")
