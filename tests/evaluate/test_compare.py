"""The paper's tables from real runs on real shards: what is there beside the paper's, what is missing with its cure."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from example_shards import PX, drawn_example, write_shards

from pipeline.dataset.shards import read_manifest
from pipeline.evaluate.compare import compare, runs_in, shortest_endings
from pipeline.evaluate.config import EvaluateConfig
from pipeline.models.build import build_model
from pipeline.models.checkpoint import save_checkpoint
from pipeline.models.checkpoint_info import write_best
from pipeline.records.vocabulary import EMOTIONS, UsageError
from pipeline.report.comparison import comparison_page
from pipeline.report.paper import PAPER_NETWORKS
from tests.conftest import S3

REPOSITORY = Path(__file__).resolve().parents[2]
READINGS = {"attention_gain": "area", "recalibration_scale": "sqrt"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A test split with two faces of every emotion."""
    folder = tmp_path_factory.mktemp("data") / "examples"
    write_shards(folder, [[drawn_example(i, label=EMOTIONS[i % 7], split="test") for i in range(14)]])
    return str(folder)


def write_run(url: str, data: str, *, model: str = "cahfw", says: str = "Happy", **settings) -> str:
    """A run of 2 epochs whose network says one emotion whatever it sees; `settings` go over its training's."""
    network = build_model(model, **READINGS)
    last = network.fusion.classify[3] if model != "se-af" else network.classify[3]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    last.bias.data[EMOTIONS.index(says)] = 5.0
    manifest = read_manifest(data)
    options = {name: settings.get(name, value) for name, value in READINGS.items()}
    training = {"data": data, "output": url, "epochs": 2, "seed": 0, **settings}
    config = {
        "model": {"name": model, "options": options, "face_px": PX, "context_px": PX},
        "training": training,
        "preprocessing": settings.pop("preprocessing", manifest.config),
    }
    save_checkpoint(
        url,
        epoch=2,
        step=10,
        model=network,
        optimizer_state={},
        config=config,
        info={"metrics": {}, "manifest_sha256": settings.get("trained_on", manifest.sha256)},
    )
    write_best(url, epoch=2, top1_accuracy=0.5)
    return url


def compared(runs: list[str], folder: Path, data: str | None = None) -> dict:
    config = EvaluateConfig(
        compare=tuple(runs), data=data, output=str(folder / "out"), device="cpu", cache_dir=str(folder / "cache")
    )
    comparison, faces = compare(config)
    assert "The paper" in comparison_page(comparison, faces, title="The paper's tables")
    return comparison


def table(comparison: dict, start: str) -> dict[str, list[str]]:
    found = next(table for table in comparison["tables"] if table["title"].startswith(start))
    return {row[0]: row[1:] for row in found["rows"]}


def test_each_run_stands_in_its_rows_and_what_is_missing_says_its_command(data: str, tmp_path: Path):
    runs = tmp_path / "runs"
    write_run(str(runs / "a"), data)
    write_run(str(runs / "deep" / "b"), data, model="se-af", says="Sad")
    comparison = compared([str(runs)], tmp_path)
    assert not comparison["warnings"]
    table_2, table_4 = table(comparison, "Table 2"), table(comparison, "Table 4")
    assert table_2["CAHFW-Net"][:2] == ["83.76", "14.29"]
    assert table_2["Fine-tuned ResNet"] == ["68.46", "–", "–", "–"]
    assert table_4["SE + AF"][:2] == ["73.51", "14.29"]
    assert table_4["SE + CA + AA"][1] == "–"
    table_3 = next(found for found in comparison["tables"] if found["title"].startswith("Table 3"))
    of = dict(zip(table_3["columns"], table_3["rows"][EMOTIONS.index("Sad")], strict=True))
    assert (of["CAHFW-Net, paper"], of["cahfw, ours"], of["se-af, ours"]) == ("85.21", "0.00", "100.00")
    missing = {row["network"]: row["command"] for row in comparison["missing"]}
    assert len(missing) == len(PAPER_NETWORKS) - 2
    command = shlex.split(missing["resnet50-frozen"])
    assert command[:2] == ["python", "jobs/train.py"]
    assert command[command.index("--output") + 1] == f"{runs}/resnet50-frozen"
    assert command[command.index("--pretrained") + 1] == "frozen"


def test_runs_that_differ_in_their_seed_alone_are_one_network_with_a_spread(data: str, tmp_path: Path):
    for seed, says in enumerate(("Happy", "Sad")):
        place = {"cache_dir": f"elsewhere-{seed}", "cache_decoded": bool(seed), "json_logs": bool(seed)}
        write_run(str(tmp_path / f"runs/{seed}"), data, says=says, seed=seed, blur_faces=bool(seed), **place)
    write_run(str(tmp_path / "runs/longer"), data, epochs=3)
    comparison = compared([str(tmp_path / "runs")], tmp_path)
    both, longer = comparison["networks"]
    assert [run["seed"] for run in both["runs"]] == [0, 1]
    assert both["num_examples"] == 28
    assert both["per_class_accuracy"]["Happy"] == both["per_class_accuracy"]["Sad"] == 0.5
    rows = next(found for found in comparison["tables"] if found["title"].startswith("Table 2"))["rows"]
    ours = [row for row in rows if row[0] == "CAHFW-Net"]
    assert [row[3] for row in ours] == ["14.29 to 14.29 of 2", "–"]
    assert longer["name"] == "cahfw of longer"
    assert comparison["warnings"] == [f"{tmp_path}/runs/longer: at epoch 2 of 3; its training has not ended"]


def test_runs_whose_folders_share_their_last_names_stay_two(data: str, tmp_path: Path):
    for number, place in enumerate(("may/run", "june/run")):
        write_run(str(tmp_path / place), data, lr=0.1 + number, says=("Happy", "Sad")[number])
    comparison = compared([str(tmp_path / "may"), str(tmp_path / "june")], tmp_path)
    assert sorted(network["name"] for network in comparison["networks"]) == ["cahfw of june/run", "cahfw of may/run"]
    table_3 = next(found for found in comparison["tables"] if found["title"].startswith("Table 3"))
    assert {"cahfw of june/run, ours", "cahfw of may/run, ours"} < set(table_3["columns"])
    assert shortest_endings(["a/x/run", "b/x/run", "b/x/other"]) == ["a/x/run", "b/x/run", "b/x/other"]


def test_the_literal_readings_never_pass_for_the_papers_network(data: str, tmp_path: Path):
    write_run(str(tmp_path / "runs/literal"), data, attention_gain="paper")
    comparison = compared([str(tmp_path / "runs/literal")], tmp_path)
    table_2 = table(comparison, "Table 2")
    assert table_2["CAHFW-Net"][1] == "–"
    assert table_2["cahfw, attention_gain paper"][:2] == ["–", "14.29"]
    assert f"--output {tmp_path}/runs/cahfw " in comparison["missing"][-1]["command"]


def test_runs_of_other_data_are_refused_unless_the_data_is_named_and_then_told(data: str, tmp_path: Path):
    runs = [
        write_run(str(tmp_path / "a"), data),
        write_run(str(tmp_path / "b"), data, trained_on="0" * 64, preprocessing={"box_margin": 0.3}),
    ]
    with pytest.raises(UsageError, match=r"not all trained on .*name with --data"):
        compared(runs, tmp_path)
    first, second = compared(runs, tmp_path, data)["warnings"]
    assert first.startswith(f"{tmp_path}/b: trained on other data (manifest 000000000000…")
    assert "box_margin 0.3 there, 0.0 here" in second


def test_without_any_run_the_table_is_the_plan_to_fill_it(data: str, tmp_path: Path):
    comparison = compared([str(tmp_path / "runs")], tmp_path, data)
    assert len(comparison["missing"]) == len(PAPER_NETWORKS)
    assert comparison["warnings"] == [f"{tmp_path}/runs: no run in it holds a checkpoint yet"]
    with pytest.raises(UsageError, match="name the examples with --data"):
        compared([str(tmp_path / "runs")], tmp_path)


def test_runs_are_found_on_an_object_store(s3: S3, data: str):
    write_run(s3.url("study/runs/a"), data)
    assert runs_in(s3.url("study")) == [s3.url("study/runs/a")] == runs_in(s3.url("study/runs/a"))


def test_the_job_writes_every_form_and_a_script_that_trains_what_is_missing(data: str, tmp_path: Path):
    write_run(str(tmp_path / "runs/a"), data)
    command = [sys.executable, "jobs/evaluate.py", "--compare", f"{tmp_path}/runs/a", f"{tmp_path}/runs/b"]
    command += ["--output", str(tmp_path / "out"), "--device", "cpu", "--cache-dir", str(tmp_path / "cache")]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "train-missing.sh" in ended.stdout
    out = tmp_path / "out"
    comparison = json.loads((out / "comparison.json").read_text())
    assert [network["name"] for network in comparison["networks"]] == ["cahfw"]
    assert "| CAHFW-Net | 83.76 | 14.29 |" in (out / "comparison.md").read_text()
    assert "Figure 11" in (out / "report.html").read_text()
    lines = (out / "train-missing.sh").read_text().splitlines()
    assert len(lines) == len(comparison["missing"]) + 2
    assert lines[-1].startswith(
        f"python jobs/evaluate.py --compare {tmp_path}/runs/a {tmp_path}/runs/b {tmp_path}/runs/"
    )
    again = shlex.split(lines[-1])
    compared_then = set(again[again.index("--compare") + 1 : again.index("--data")])
    outputs = {(command := shlex.split(line))[command.index("--output") + 1] for line in lines[1:-1]}
    assert outputs < compared_then  # so that a second script has nothing left to train
    wrong = subprocess.run([*command[:2], "--output", "x"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
