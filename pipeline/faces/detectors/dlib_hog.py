"""dlib's older detector: frontal faces only, quick; its weights are in the library."""

from __future__ import annotations

from pipeline.faces.spec import Detector, DetectorOptions, DetectorSpec


def build(options: DetectorOptions) -> Detector:
    from pipeline.faces.dlib_reference import DlibHog

    return DlibHog(upsample=options.upsample, score_threshold=options.score_threshold)


SPEC = DetectorSpec(
    name="dlib-hog",
    build=build,
    score_meaning="distance to the separating plane of a linear classifier, on a scale of its own: above 0 is a face",
    precisions={"cpu": ("fp32",)},
)
