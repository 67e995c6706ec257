"""What is installed is pinned by version and hash, and nothing comes in that is not listed."""

import re
import subprocess
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
LISTS = REPOSITORY / "requirements"
HASH = r"--hash=sha256:[0-9a-f]{64}"
OF_TORCH = r"torch|triton|cuda-.*|nvidia-.*"


def entries(name):
    """The entries of a list: each package's name, and its requirement with the hashes."""
    text = re.sub(r"^ *#.*\n", "", (LISTS / name).read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return {canonicalize_name(re.match(r"[\w.-]+", line)[0]): line for line in lines}


def pinned():
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}


@pytest.mark.parametrize("name", ["dev.txt", "cluster.txt", "torch.txt", "torch-cpu.txt"])
def test_every_entry_has_one_version_and_its_hashes_and_names_no_index(name):
    versions = pinned()
    for package, line in entries(name).items():
        assert re.fullmatch(rf"[\w.-]+==[\w.+]+ *(;[^#]*?)?( +{HASH})+ *", line), line
        version = re.search(r"==([\w.]+)", line)[1]
        assert versions.get(package, version) == version
    assert not re.search(r"://|index|find-links", (LISTS / name).read_text().split("\n", 1)[1])


def declared(extra):
    """What this project says that it needs: not what was installed once says it."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return project["optional-dependencies"][extra] if extra else project["dependencies"]


def wanted(extras):
    """The packages that this project needs with these extras, and all that they need on this machine."""
    left, found = [("emotion-pipeline", extra) for extra in ("", *extras)], set()
    while left:
        name, extra = left.pop()
        if (name, extra) in found or re.fullmatch(OF_TORCH, name):
            continue
        found.add((name, extra))
        for line in declared(extra) if name == "emotion-pipeline" else requires(name) or ():
            each = Requirement(line)
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                left += [(canonicalize_name(each.name), more) for more in ("", *each.extras)]
    return {name for name, _ in found} - {"emotion-pipeline"}


@pytest.mark.parametrize(("name", "extras"), [("dev.txt", ("dev",)), ("cluster.txt", ("cluster",))])
def test_the_lists_are_whole_without_a_search_for_dependencies(name, extras):
    assert wanted(extras) - set(entries(name)) == set()


def test_torch_stands_in_lists_of_its_own():
    for name in ("dev.txt", "cluster.txt"):
        assert not [package for package in entries(name) if re.fullmatch(OF_TORCH, package)]
    assert {"torch", "triton", "nvidia-cublas"} <= set(entries("torch.txt"))
    assert set(entries("torch-cpu.txt")) == {"torch"}


def test_make_setup_asks_for_hashes_unless_it_is_told_not_to():
    def commands(*arguments):
        command = ["make", "--dry-run", "--always-make", *arguments, "setup"]
        told = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
        return [line for line in told.splitlines() if "pip install" in line]

    hashed, plain = commands(), commands("HASHES=no")
    assert all("--no-deps" in line for line in hashed)
    assert [line for line in hashed if "--require-hashes" not in line] == hashed[-1:]
    assert "--editable" in hashed[-1]
    assert len(plain) == 1
    assert "--constraint constraints.txt" in plain[0]


def test_an_extra_or_dependency_has_a_pin():
    lines = [*declared(""), *declared("dev")]
    names = {canonicalize_name(Requirement(line).name) for line in lines} - {"emotion-pipeline"}
    assert names - set(pinned()) == set()
