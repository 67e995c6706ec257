"""Dlib's CNN face detector as a PyTorch network that reads Dlib's own weights file (`faces.dlib_cnn`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.faces.processor import cpu_has_bf16, cpu_has_bf16_convolutions, cpu_has_int8
from pipeline.faces.spec import Detector, DetectorOptions, DetectorSpec, Weights
from pipeline.records.vocabulary import UsageError

if TYPE_CHECKING:
    from pipeline.faces.follow import Nearby

WEIGHTS = Weights(
    package="face-recognition-models",
    path="models/mmod_human_face_detector.dat",
    num_bytes=729_940,
    sha256="4cb19393e2fbaf2b1609a9319ad5386618c886a6234ec1b971f3e87c85d87fe6",
    owner="Dlib's",
)


def check(options: DetectorOptions) -> None:
    """Raises UsageError for arithmetic that this processor lacks."""
    if options.precision == "int8" and not cpu_has_int8():
        raise UsageError("detector precision int8: this processor has no AVX-512 VNNI, AVX-VNNI or AMX; use fp32")
    if options.precision == "bf16" and options.device == "cpu" and not cpu_has_bf16_convolutions():
        raise UsageError("detector precision bf16: this processor has no AVX-512 BW, VL and DQ; use fp32")


def build(options: DetectorOptions) -> Detector:
    """Raises UsageError as `check`."""
    from pipeline.faces.dlib_cnn import DlibCnn

    check(options)
    assert options.weights is not None
    return DlibCnn(
        options.weights,
        upsample=options.upsample,
        score_threshold=options.score_threshold,
        precision=options.precision,
        device=options.device,
    )


def auto_precision(device: str) -> str:
    """bf16 on CUDA and on CPUs with avx512_bf16 or AMX, else fp32."""
    return "bf16" if device != "cpu" or cpu_has_bf16() else "fp32"


def nearby(detector: Any) -> Nearby:
    """The same network around boxes."""
    from pipeline.faces.near import NearDlibCnn

    return NearDlibCnn(detector)


SPEC = DetectorSpec(
    name="dlib-cnn",
    build=build,
    check=check,
    score_meaning="margin of the network's decision: above 0 is a face, 1 and more is a sure one",
    precisions={"cpu": ("fp32", "bf16", "int8"), "cuda": ("fp32", "bf16")},
    auto_precision=auto_precision,
    finds_more_upsampled=True,
    weights=WEIGHTS,
    preload=("torch",),
    nearby=nearby,
)
