"""The peers do the same work as ours, and what each leaves of bad files is told."""

import json
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest

from benchmarks.peer import Faces
from benchmarks.peers import PeersConfig, _figures, _watched
from pipeline.corpus.read import read_corpus
from pipeline.preprocess.config import ExtractConfig
from pipeline.preprocess.detectors import resolved
from pipeline.preprocess.extractor import ClipExtractor
from pipeline.runtime.config import PoolConfig
from pipeline.synthetic.corpus import make_corpus

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_peers_ray_is_closed_to_others():
    """Neither of them says so itself: a plain `ray.init` listens on all interfaces, and its files are open to all."""
    code = (
        "import os, sys; get = os.environ.get; mode = os.stat(get('RAY_TMPDIR')).st_mode; "
        "sys.exit(get('RAY_AUTH_MODE') != 'token' or len(get('RAY_AUTH_TOKEN')) < 64 or bool(mode & 0o077))"
    )
    assert _watched([sys.executable, "-c", code], limit_seconds=100)["exit_code"] == 0


@pytest.mark.lengthy
def test_the_peers_rows_are_ours(tmp_path):
    pytest.importorskip("skimage")
    make_corpus(tmp_path, clips_per_class=(3, 0, 0))
    clip = next(clip for clip in read_corpus(str(tmp_path)).clips if clip.path.startswith("train/Happy/"))
    extractor = ClipExtractor(resolved(ExtractConfig(frames_per_clip=2)), limits=PoolConfig().limits)
    try:
        examples, _ = extractor.extract(clip)
    finally:
        extractor.sandbox.close()
    rows = Faces(2).rows(str(tmp_path / clip.path))
    assert len(rows) == len(examples) == 2
    for row, example in zip(rows, examples, strict=True):
        assert (row["frame_index"], tuple(row["box"])) == (example.frame_index, astuple(example.box))
        assert row["face_jpeg"] == example.face_jpeg
        assert row["context_jpeg"] == example.context_jpeg


def test_what_starting_and_a_clip_cost_follows_from_two_sizes():
    runs = [{"ours": {80: _run(16.0 + late), 320: _run(40.0 + late)}} for late in (0.0, 1.0, 5.0)]
    found = _figures(runs, "ours", (80, 320))
    assert found["seconds_a_clip"]["median"] == pytest.approx(0.1)
    assert found["start_seconds"]["median"] == pytest.approx(9.0)
    assert found["80"]["seconds"]["median"] == 17.0


def _run(seconds):
    return {"seconds": seconds, "core_seconds": 1.0, "memory_mib": 1.0}


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"sizes": ()}, {"sizes": (0,)}, {"broken_share": 1.0}])
def test_a_wrong_setting_is_an_error(wrong):
    with pytest.raises(ValueError, match="give"):
        PeersConfig(study="peers", **wrong)


@pytest.mark.slow
def test_the_study_runs_all_three_with_good_and_bad_files(tmp_path):
    pytest.importorskip("daft")
    flags = ["--sizes", "4,8", "--rounds", "1", "--frames-per-clip", "2", "--output", str(tmp_path)]
    command = [sys.executable, str(REPOSITORY / "jobs" / "benchmark.py"), "peers", *flags]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads((tmp_path / "peers.json").read_text())
    assert found["rows_equal"]
    for case in found["with_bad_files"].values():
        assert case["left"]["jobs/preprocess.py"] == {"exit_code": 0, "clips": 3, "num_rows": 6}
        assert case["left"]["Daft"]["exit_code"] != 0
