"""The house rules, read from the imports: one table says which room may import which."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "pipeline"

# room -> rooms of the package that it may import.
ROOMS = {
    "records": set(),
    "paper": set(),
    "storage": set(),
    "scratch": set(),
    "confine": set(),
    "messages": set(),
    "fence": {"confine", "messages"},
    "console": {"storage"},
    "metrics": {"records"},
    "examine": {"checkpoint", "dataset", "records", "report"},
    "crops": {"records"},
    "video": set(),
    "synthetic": {"records"},
    "archives": set(),
    "corpus": {"archives", "records", "storage"},
    "detection": {"records"},
    "models": {"records"},
    "ledger": {"archives", "records", "storage"},
    "checkpoint": {"models", "records", "storage"},
    "dataset": {"crops", "records", "storage"},
    "extract": {"archives", "corpus", "crops", "detection", "fence", "messages", "records", "storage", "video"},
    "segments": {"archives", "corpus", "fence", "records", "storage", "video"},
    "gpu_detection": {"extract", "records"},
    "preflight": {"archives", "corpus", "records", "storage"},
    "quarantine": {"ledger", "records"},
    "report": {"metrics", "paper", "records"},
    "telemetry": set(),
    "pool": {"console", "corpus", "fence", "ledger", "preflight", "records", "scratch", "storage", "telemetry"},
    "preprocess": {
        "console", "corpus", "detection", "extract", "fence", "gpu_detection", "ledger", "pool", "preflight",
        "records", "report", "segments", "storage",
    },
    "tracking": {"checkpoint", "console", "pool", "records", "storage"},
    "train": {
        "checkpoint", "console", "dataset", "examine", "metrics", "models", "pool", "preflight", "records",
        "report", "storage", "tracking",
    },
    "evaluate": {"checkpoint", "dataset", "metrics", "paper", "records", "report", "storage"},
    "compare": {"checkpoint", "crops", "dataset", "evaluate", "metrics", "paper", "records", "report", "storage"},
    "benchmark": {
        "checkpoint", "console", "corpus", "crops", "dataset", "detection", "evaluate", "extract", "fence", "ledger",
        "models", "pool", "preprocess", "records", "storage", "synthetic", "train", "video",
    },
    "tracks": {"detection", "records"},
    "night": {"corpus", "ledger", "records"},
    "score": {
        "checkpoint", "console", "corpus", "dataset", "extract", "fence", "ledger", "night", "pool",
        "preflight", "preprocess", "records", "report", "segments", "storage", "tracks",
    },
}  # fmt: skip

# library -> rooms that may import it; a room not named here may not.
LIBRARIES = {
    "ray": {"gpu_detection", "pool", "telemetry", "train"},
    "torch": {
        "models",
        "dataset",
        "checkpoint",
        "tracking",
        "train",
        "score",
        "evaluate",
        "detection",
        "benchmark",
        "examine",
    },
    "decord": {"video", "benchmark"},
    "av": {"preflight", "video", "synthetic", "benchmark"},
    "dlib": {"detection", "benchmark"},
    "plotly": {"benchmark", "report"},
    "jsonargparse": set(),
    "rich": {"pool", "tracking", "evaluate", "compare", "benchmark"},
    "scenedetect": {"segments"},
    "tenacity": {"storage"},
    "fsspec": {"storage", "corpus", "detection"},
}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files_of(room):
    return [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else sorted((PACKAGE / room).rglob("*.py"))


def found_rooms():
    return {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }


def test_every_room_is_in_the_table():
    assert found_rooms() == set(ROOMS)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_what_the_table_allows(room):
    names = {name for path in files_of(room) for name in imported_modules(path)}
    rooms = {name.split(".")[1] for name in names if name.startswith("pipeline.")} & set(ROOMS)
    assert rooms - {room} <= ROOMS[room]
    libraries = {name.split(".")[0] for name in names}
    forbidden = {library for library, allowed in LIBRARIES.items() if library in libraries and room not in allowed}
    assert not forbidden


def test_imports_have_no_cycle():
    order, left = [], dict(ROOMS)
    while left:
        free = [room for room, needs in left.items() if needs <= set(order)]
        assert free, f"a cycle among {sorted(left)}"
        order += free
        left = {room: needs for room, needs in left.items() if room not in free}


def test_jobs_are_thin():
    for path in (REPOSITORY / "jobs").glob("*.py"):
        if path.name != "command_line.py":
            assert len(path.read_text().splitlines()) < 60, path.name


def test_the_configuration_library_stays_in_the_jobs():
    users = [path.name for path in (REPOSITORY / "jobs").glob("*.py") if "jsonargparse" in set(imported_modules(path))]
    assert users == ["command_line.py"]


def test_nothing_is_ever_unpickled_from_storage():
    for path in PACKAGE.rglob("*.py"):
        names = set(imported_modules(path))
        assert not {"pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"} & names, path.name
        assert not re.search(r"(?<!safetensors\.)\btorch\.load\(", path.read_text()), path.name
        assert "yaml.load(" not in path.read_text(), path.name
