"""What jobs tell on stderr: to people in a terminal and in lines, to machines in JSON."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.models.build import build_model
from pipeline.models.checkpoint import save_checkpoint
from pipeline.models.checkpoint_info import write_best
from pipeline.runtime import progress
from pipeline.synthetic.corpus import make_corpus

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray"), pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).resolve().parents[2]


def entry(**facts):
    states = ("done", "done", "no_face", "quarantined")
    return {"outcomes": [{"state": state, "num_examples": 3} for state in states], "facts": facts}


def test_a_terminal_shows_states_rate_time_left_and_memory():
    said = io.StringIO()
    terminal = Console(file=said, force_terminal=True, width=120)
    with progress.ProgressDisplay(40, terminal=terminal) as display:
        display.add(entry(peak_child_memory_bytes=300 * 2**20))
        display.add(entry(peak_child_memory_bytes=200 * 2**20))
    last = said.getvalue()
    assert "8/40" in last
    assert "4 done, 2 no_face, 2 quarantined, 24 examples" in last
    assert "clips/s, a worker 300 MiB at most" in last
    assert "left" in last


def test_without_a_terminal_there_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.ProgressDisplay(40, terminal=Console(file=io.StringIO())) as display:
        display.add(entry(peak_child_memory_bytes=300 * 2**20))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("4 of 40 clips: 2 done, 1 no_face, 1 quarantined, 12 examples, ")
    assert "300 MiB at most, about " in line
    assert line.endswith(" s left")
    monkeypatch.setattr(progress, "LINE_SECONDS", 30.0)
    with progress.ProgressDisplay(40, terminal=Console(file=io.StringIO())) as display:
        display.add(entry())
    assert not capsys.readouterr().err


def job(name, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, REPOSITORY / "jobs" / f"{name}.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_run_with_json_logs_says_nothing_but_events(tmp_path):
    make_corpus(tmp_path / "corpus", clips_per_class=(3, 0, 0), seed=4)
    checkpoint = tmp_path / "run"
    save_checkpoint(
        str(checkpoint),
        epoch=1,
        step=1,
        model=build_model("caer-net-s"),
        optimizer_state={},
        config={
            "model": {"name": "caer-net-s", "options": {"dropout": 0.5}, "face_px": 32, "context_px": 32},
            "training": {},
            "preprocessing": {"detector": "dlib-hog", "frames_per_clip": 2, "face_px": 32, "context_px": 32},
        },
        info={"metrics": {}, "manifest_sha256": "ab" * 32},
    )
    write_best(str(checkpoint), epoch=1, top1_accuracy=0.5)
    flags = (
        "--input",
        tmp_path / "corpus",
        "--checkpoint",
        checkpoint,
        "--actors",
        1,
        "--clips-per-shard",
        2,
        "--limit",
        4,
    )
    ran = job("score", *flags, "--output", tmp_path / "labels", "--blur-faces", "--json-logs")
    assert ran.returncode == 0, ran.stderr
    assert not ran.stdout
    events = [json.loads(line) for line in ran.stderr.splitlines()]
    assert all(event["event"] and event["time"].endswith("+00:00") for event in events)
    kinds = [event["event"] for event in events]
    assert kinds.index("start") < kinds.index("progress") < kinds.index("summary")
    progress = [event for event in events if event["event"] == "progress"][-1]
    summary = events[kinds.index("summary")]
    assert progress["clips"] == progress["clips_in_all"] == sum(progress["states"].values()) == summary["inputs"]
    assert progress["peak_worker_memory_mib"] > 0
    assert {"clips_per_second", "seconds_left", "examples"} <= progress.keys()
    assert (summary["exit_code"], summary["audit_holds"]) == (0, True)
    # The page shows the frames that the actors kept; neither stands in the way of a query of all Parquet files.
    (labels,) = (tmp_path / "labels").iterdir()
    assert len(list(labels.glob("thumbnails/day=*/*.arrow"))) > 0
    assert (labels / "report.html").read_text().count('alt="Frame at ') >= 2 * summary["done"]


def test_a_wrong_flag_beside_json_logs_is_an_event_too():
    ran = job("preprocess", "--json-logs", "--actors", "many")
    assert ran.returncode == 2
    (event,) = [json.loads(line) for line in ran.stderr.splitlines()]
    assert event["event"] == "error"
    assert "--actors" in event["text"]
