"""What a GPU will be asked for runs on the CPU, without Ray; what fails is told beside what ran."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import PARTS, main

REPOSITORY = Path(__file__).resolve().parents[2]
WITHOUT_RAY = """
import runpy, sys
sys.modules["ray"] = None
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def run(output, *arguments):
    """The script on the CPU as a process that has no Ray, and what it wrote."""
    line = [sys.executable, "-c", WITHOUT_RAY, str(REPOSITORY / "benchmarks" / "gpu.py"), "--small", "--device", "cpu"]
    found = subprocess.run(
        [*line, "--output", str(output), *arguments], cwd="/", capture_output=True, text=True, check=False
    )
    assert found.returncode in (0, 1), found.stderr
    return found.returncode, json.loads((output / "gpu.json").read_text()), (output / "gpu.txt").read_text()


@pytest.mark.lengthy
def test_its_parts_run_without_ray_and_say_that_they_ran_on_no_gpu(tmp_path):
    pytest.importorskip("skimage")
    code, results, told = run(tmp_path, "--parts", "matmul", "parity", "detection", "crops", "network")
    assert code == 0, results
    assert list(results["parts"]) == ["matmul", "parity", "detection", "crops", "network"]  # In the order of PARTS.
    assert results["device"] == "CPU: nothing here was run on CUDA"
    faces = results["parts"]["parity"]["fp32"]
    assert faces["num_same"] == faces["num_expected"] == results["parts"]["parity"]["num_frames"]
    assert {row["precision"] for row in results["parts"]["detection"]["rows"]} == {"fp32", "bf16"}
    for row in results["parts"]["detection"]["rows"] + results["parts"]["network"]["rows"]:
        assert row["share_of_peak"] > 0
    assert "CAHFW-Net's training step at 32 px" in told


@pytest.mark.slow
def test_all_of_it_trains_by_torchrun_goes_on_elsewhere_and_scores_alike(tmp_path):
    code, results, _ = run(tmp_path)
    assert code == 0, results
    assert list(results["parts"]) == list(PARTS)
    runs = results["parts"]["training"]["runs"]
    assert {name: found["epoch"] for name, found in runs.items()} == {"1 on cpu": 2, "2 on cpu": 2, "resumed on cpu": 3}
    assert all(way["most_difference"] < 1e-4 for way in results["parts"]["scoring"]["ways"].values())


def test_a_part_that_fails_is_told_and_its_exit_code_says_so(tmp_path, capsys):
    arguments = ["--small", "--device", "cpu", "--output", str(tmp_path), "--parts", "scoring"]
    assert main(arguments) == 1
    assert "needs the run of the part training" in capsys.readouterr().out
    assert "needs the run" in json.loads((tmp_path / "gpu.json").read_text())["parts"]["scoring"]["error"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--device", "cuda", "--output", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "PyTorch sees no CUDA device here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
