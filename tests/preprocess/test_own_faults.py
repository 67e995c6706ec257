"""A fault of our own code is told as ours: before the work, in the summary, and where it is systematic as the end."""

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.preprocess.config import ExtractConfig
from pipeline.preprocess.trial import OwnFault, try_extraction
from pipeline.records.vocabulary import UsageError
from pipeline.sandbox.limits import SandboxLimits

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = """
import os
from pipeline.faces.spec import DetectorSpec
from pipeline.records.faces import Box, Face

class Faulty:
    def __init__(self, options):
        pass

    def detect_faces(self, images):
        return [self._found(image) for image in images]

    def _found(self, image):
        how = os.environ["PYTHONPATH"].rpartition("/")[2]  # The sandbox keeps it.
        if how == "always" or (how == "rarely" and image[0, 0, 0] == 7):
            return {}[image.shape]
        if how == "slowly":
            while True:
                pass
        if how == "dying":
            os.abort()
        return []

SPEC = DetectorSpec(name="faulty", build=Faulty, score_meaning="none", precisions={"cpu": ("fp32",)})
"""


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """Installs a detector that fails in the way that is asked for."""

    def install(how):
        folder = tmp_path / how
        information = folder / "faulty-1.0.dist-info"
        information.mkdir(parents=True)
        (folder / "faulty_faces.py").write_text(MODULE)
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text("[emotion_pipeline.detectors]\nfaulty = faulty_faces:SPEC\n")
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{folder}")
        return folder

    return install


@pytest.mark.lengthy
def test_what_works_is_tried_without_a_word():
    assert try_extraction(ExtractConfig(detector="dlib-hog"), limits=SandboxLimits()) == []
    assert try_extraction(ExtractConfig(), limits=SandboxLimits(), only_decode=True) == []


def run_job(job, *arguments):
    command = [sys.executable, str(REPOSITORY / "jobs" / f"{job}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)


def pictures(folder, *, num_clips, num_faulty):
    within = folder / "train" / "Angry"
    within.mkdir(parents=True)
    for number in range(num_clips):
        image = np.full((64, 64, 3), 7 if number < num_faulty else 90, np.uint8)
        image[1 + number // 50, 1 + number % 50] = 255
        Image.fromarray(image).save(within / f"{number:03d}.png")
    return folder


SMALL = ("--detector", "faulty", "--face-px", "16", "--context-px", "16", "--page", "false", "--actors", "1")


@pytest.mark.lengthy
def test_a_detector_that_always_fails_ends_the_job_before_anything_is_planned(tmp_path, faulty):
    faulty("always")
    found = run_job(
        "preprocess",
        "--input",
        pictures(tmp_path / "in", num_clips=2, num_faulty=0),
        "--output",
        tmp_path / "out",
        *SMALL,
    )
    assert found.returncode == 1
    assert "Traceback (most recent call last)" in found.stderr
    assert "in _found" in found.stderr
    assert "KeyError: (160, 160, 3)" in found.stderr
    assert not (tmp_path / "out" / "plan").exists()


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("always", OwnFault, r"in _found"),
        ("dying", OwnFault, r"made image ended as crash in detect"),
        ("slowly", UsageError, r"no sign of life|no progress|give --clip-timeout more seconds"),
    ],
)
def test_each_kind_of_fault_on_the_made_image_is_told(faulty, how, error, message):
    """In a process of its own: a fork server keeps the environment that it began with."""
    faulty(how)
    code = (
        "if __name__ == '__main__':\n"
        "    from pipeline.preprocess.trial import try_extraction\n"
        "    from pipeline.preprocess.config import ExtractConfig\n"
        "    from pipeline.sandbox.limits import SandboxLimits\n"
        "    limits = SandboxLimits(timeout_seconds=3)\n"
        "    try_extraction(ExtractConfig(detector='faulty'), limits=limits)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert found.returncode == 1
    assert f".{error.__name__}: " in found.stderr
    assert any(part in found.stderr for part in message.split("|"))


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_one_clip_that_our_code_fails_on_costs_that_clip_and_exit_code_3(tmp_path, faulty):
    faulty("rarely")
    clips = pictures(tmp_path / "in", num_clips=12, num_faulty=1)
    found = run_job("preprocess", "--input", clips, "--output", tmp_path / "out", *SMALL)
    assert found.returncode == 3, found.stderr
    assert "1 clips ended as `exception`, which is a fault of this program" in found.stderr
    # The detector is no package of this Python, so the child that looks for it lacks a permission.
    has_landlock = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) > 0 if sys.platform == "linux" else False
    assert ("the decoding child may read all files of this user" in found.stderr) == has_landlock
    assert (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_where_more_than_a_tenth_fail_the_run_stops_and_its_clips_are_tried_again(tmp_path, faulty):
    folder = faulty("rarely")
    clips = pictures(tmp_path / "in", num_clips=40, num_faulty=12)
    arguments = ("preprocess", "--input", clips, "--output", tmp_path / "out", *SMALL, "--clips-per-shard", "8")
    found = run_job(*arguments)
    assert found.returncode == 1, found.stderr
    assert "met a fault of our own code" in found.stderr
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    (folder / "faulty_faces.py").write_text(MODULE.replace("== 7", "== 8"))  # The fault is mended.
    again = run_job(*arguments)
    assert again.returncode == 0, again.stderr
    assert "40 inputs: 0 done, 40 without a face" in again.stderr
