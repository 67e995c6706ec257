"""The installed package, outside of a clone: its command, its jobs, and the files beside the code."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
JOBS = ("preprocess", "train", "evaluate", "score", "export", "view", "models", "quarantine", "forget", "demo")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pipeline", "jobs"):
        shutil.copytree(REPOSITORY / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / "tree")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "tree")]
    subprocess.run([*pip, *built], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.lengthy
def test_every_file_of_the_package_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    wanted = {
        str(path.relative_to(REPOSITORY))
        for folder in ("pipeline", "jobs")
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "README.md"
    }
    assert wanted - held == set()
    assert {name.split("/")[0] for name in held if ".dist-info" not in name} == {"pipeline", "jobs"}


@pytest.mark.lengthy
def test_the_installed_command_does_without_the_clone(wheel, tmp_path):
    # Where PYTHONPATH names this clone, pip believes that the package is installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, env=environment)
    # What the package needs is there already; no .pth of that folder is read, so this clone is not found.
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def told(*command):
        words = [*map(str, command)]
        found = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
        assert found.returncode == 0, found.stderr
        return found.stdout

    command = tmp_path / "venv" / "bin" / "emotion-pipeline"
    assert told(python, "-c", "import pipeline; print(pipeline.__file__)").startswith(str(site))
    assert told(command, "--version") == f"emotion-pipeline {wheel.name.split('-')[1]}\n"
    lines = [
        line.split()[0] for line in told(command, "--help").splitlines() if line.startswith("    ") and line.split()
    ]
    assert set(JOBS) <= set(lines)
    assert "usage: emotion-pipeline train --data" in told(command, "train", "--help")
    assert told(command, "models", "list").startswith("baseline: model ")
