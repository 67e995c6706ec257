"""The checkpoint that comes with the package: a run like any other, small, calibrated, right on plain real faces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest

from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.checkpoint_info import read_checkpoint_info
from pipeline.models.shipped import portable, run_url_of
from pipeline.records.vocabulary import EMOTIONS, UsageError
from pipeline.score.config import ScoreConfig
from pipeline.score.job import score
from pipeline.score.model import describe_model, model_record

# What the largest face of these clips shows, by eye, throughout or nearly so.
SHOWN = {
    **dict.fromkeys(("asl_brother.mkv", "asl_help.mkv", "asl_night.mkv", "asl_please.mkv"), "Neutral"),
    **dict.fromkeys(("asl_sister.mkv", "asl_student.mkv", "asl_yes.mkv"), "Neutral"),
    "intel_head-pose-face-detection-male.gif": "Happy",
    "mpf_h264_aac.mp4": "Happy",
    "mpf_h265_aac.mp4": "Happy",
    "mpf_mp4v_aac.mp4": "Happy",
    "mpf_video_01.mp4": "Happy",
    "mpf_vp8_opus.webm": "Happy",
    "mpf_xvid_aac.avi": "Happy",
    "pyfeat_single_face.mp4": "Happy",
}


def test_the_baseline_is_small_and_loads_as_any_checkpoint_does():
    folder = Path(run_url_of("baseline"))
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 5_000_000
    by_name, by_path = load_checkpoint("baseline"), load_checkpoint(str(folder))
    assert by_name.info == by_path.info
    weights = by_path.model.state_dict()
    assert all((tensor == weights[name]).all() for name, tensor in by_name.model.state_dict().items())
    assert portable("baseline") == "baseline"
    assert portable("./baseline") == str(Path("baseline").resolve())


def test_its_card_and_its_own_record_agree():
    info, card = read_checkpoint_info("baseline"), (Path(run_url_of("baseline")) / "card.md").read_text()
    line = describe_model(model_record(info))
    assert line.endswith("web faces of 2013, no context, not calibrated on your data")
    for said in (
        info["card"],
        "Not for",
        "research",
        f"{info['temperature']:.2f}",
        f"{info['data']['num_examples']:,}",
    ):
        assert said.lower() in " ".join(card.split()).lower()
    assert all(f"| {emotion} | " in card for emotion in EMOTIONS)
    assert info["metrics"]["ece"] < 0.03
    assert model_record(info).warnings == ()


def test_a_folder_of_that_name_is_meant_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "baseline").mkdir()
    assert read_checkpoint_info("baseline")["data"]["name"] == "FER2013"
    with pytest.raises(UsageError, match="no checkpoint"):
        read_checkpoint_info("./baseline")


@pytest.mark.lengthy
@pytest.mark.timeout(600)
def test_plain_faces_of_real_clips_are_named_right(
    real_clips_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in SHOWN:
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(real_clips_dir / name, tmp_path / "in" / name)
    values = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "checkpoint": "baseline"}
    run = score(ScoreConfig(**values, no_ray=True, faces="largest", frames_per_clip=4, abstain_below=0.0))
    assert run.exit_code == 0
    query = f"select path, emotion, probabilities from read_parquet('{tmp_path}/out/*/clips/**/*.parquet')"
    rows = duckdb.sql(query).to_arrow_table().to_pylist()
    named = {row["path"]: row["emotion"] for row in rows}
    assert set(named) == set(SHOWN)
    right = np.mean([named[name] == shown for name, shown in SHOWN.items()])
    assert right >= 0.9, {name: (named[name], shown) for name, shown in SHOWN.items() if named[name] != shown}
    said = "web faces of 2013, no context, not calibrated on your data"
    assert said in capsys.readouterr().err
    (summary,) = (tmp_path / "out").glob("model=*/summary.json")
    assert json.loads(summary.read_text())["model"]["card"] == said
