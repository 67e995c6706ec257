"""dlib's own run of its CNN, some 20 times slower: to check `dlib-cnn`."""

from __future__ import annotations

from pipeline.faces.detectors.dlib_cnn import WEIGHTS
from pipeline.faces.spec import Detector, DetectorOptions, DetectorSpec


def build(options: DetectorOptions) -> Detector:
    """Raises UsageError for a negative threshold."""
    from pipeline.faces.dlib_reference import DlibCnnReference

    assert options.weights is not None
    return DlibCnnReference(options.weights, upsample=options.upsample, score_threshold=options.score_threshold)


SPEC = DetectorSpec(
    name="dlib-cnn-reference",
    build=build,
    score_meaning="margin of the network's decision: above 0 is a face, 1 and more is a sure one",
    precisions={"cpu": ("fp32",)},
    finds_more_upsampled=True,
    weights=WEIGHTS,
)
