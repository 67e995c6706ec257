"""A detector that an installed package adds: one module with a `DetectorSpec`, named by an entry point."""

import numpy as np
import pytest
from PIL import Image

from pipeline.faces.detector import build_detector
from pipeline.faces.spec import detector_names, detector_spec, detectors_on
from pipeline.preprocess.config import ExtractConfig, plan_config_of
from pipeline.preprocess.detectors import resolve_detector_device, resolved
from pipeline.preprocess.extractor import ClipExtractor
from pipeline.records.clips import Clip
from pipeline.records.faces import Box
from pipeline.records.outcomes import State
from pipeline.records.vocabulary import UsageError
from pipeline.sandbox.limits import SandboxLimits

MODULE = """
from pipeline.faces.spec import DetectorSpec
from pipeline.records.faces import Box, Face

class Bright:
    def __init__(self, options):
        self._threshold = options.score_threshold

    def detect_faces(self, images):
        return [self._found(image) for image in images]

    def _found(self, image):
        rows, columns = (image.min(axis=2) > 250).nonzero()
        if not len(rows) or self._threshold >= 1:
            return []
        box = Box(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        return [Face(box, 1.0)]

def build_lacking(options):
    import a_library_of_the_extra

SPEC = DetectorSpec(name="bright", build=Bright, score_meaning="1 for what is white", precisions={"cpu": ("fp32",)})
LACKING = DetectorSpec(
    name="lacking", build=build_lacking, score_meaning="none", precisions={"cpu": ("fp32",), "cuda": ("fp32", "bf16")},
    extra="bright-faces[gpu]",
)
"""
ENTRY_POINTS = """
[emotion_pipeline.detectors]
bright = bright_faces:SPEC
lacking = bright_faces:LACKING
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """An installed package with two detectors."""
    folder = tmp_path / "installed"
    information = folder / "bright_faces-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / "bright_faces.py").write_text(MODULE)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: bright-faces\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(folder)


@pytest.mark.usefixtures("outside")
def test_it_is_known_by_its_name():
    ours, outside = detector_names()[:-2], detector_names()[-2:]
    assert "dlib-cnn" in ours
    assert outside == ("bright", "lacking")
    assert detector_spec("bright").score_meaning == "1 for what is white"
    assert {"dlib-cnn", *outside} & set(detectors_on("cuda")) == {"dlib-cnn", "lacking"}
    with pytest.raises(UsageError, match=r"detector 'brigt' is not one of .*dlib-cnn, .*, bright, lacking"):
        build_detector("brigt")


@pytest.mark.usefixtures("outside")
def test_it_finds_faces_in_the_sandbox_as_ours_do(tmp_path):
    image = np.zeros((90, 120, 3), np.uint8)
    image[20:50, 30:70] = 255
    Image.fromarray(image).save(tmp_path / "white.png")
    config = resolved(ExtractConfig(detector="bright", face_px=16, context_px=16))
    assert plan_config_of(config)["detector_weights_sha256"] is None
    clip = Clip(clip_id="0" * 20, path="white.png", url=str(tmp_path / "white.png"), size_bytes=1, content_id="x")
    extractor = ClipExtractor(config, limits=SandboxLimits())
    try:
        (example,), outcome = extractor.extract(clip)
    finally:
        extractor.sandbox.close()
    assert (example.box, example.face_score) == (Box(30, 20, 70, 50), 1.0)
    assert outcome.state is State.DONE


@pytest.mark.usefixtures("outside")
def test_what_it_cannot_do_is_told_from_its_record():
    assert resolve_detector_device("auto", ExtractConfig(detector="bright")) == "cpu"
    with pytest.raises(UsageError, match=r"bright runs on CPU alone; give --detector .*dlib-cnn .*or lacking in bf16"):
        resolve_detector_device("cuda", ExtractConfig(detector="bright"))
    with pytest.raises(UsageError, match="weights 'x': bright carries its own"):
        build_detector("bright", weights="x")
    with pytest.raises(UsageError, match="bright with precision int8 on device auto: it runs in fp32 on CPU"):
        build_detector("bright", precision="int8")
    with pytest.raises(ValueError, match="--retry-upsample is for a CNN, and --detector is bright"):
        ExtractConfig(detector="bright", retry_upsample=True)


@pytest.mark.usefixtures("outside")
def test_a_missing_library_is_told_with_the_extra_that_brings_it():
    with pytest.raises(
        UsageError, match=r"lacking needs a_library_of_the_extra, .*: pip install 'bright-faces\[gpu\]'"
    ):
        build_detector("lacking", device="cpu")


@pytest.mark.parametrize("name", detector_names())
def test_each_of_ours_says_what_its_score_means_and_runs_on_cpu(name):
    spec = detector_spec(name)
    assert spec.name == name
    assert len(spec.score_meaning.split()) > 3
    assert "fp32" in spec.precisions["cpu"]
