"""The walk of a reader, on two files whose stations can be counted by hand."""

import pytest
from rich.console import Console

from benchmarks import calls
from benchmarks.calls import Walk
from benchmarks.clips import usable_clips
from benchmarks.config import BenchmarkConfig
from pipeline.synthetic.corpus import make_corpus

FIRST = """
import walked_second

def begin():
    walked_second.short()
    walked_second.short()
    for number in walked_second.numbers():
        walked_second.through(helper)
    return number

def helper():
    return 1
"""
SECOND = """
def short():
    return 1

def numbers():
    yield 1
    yield short()

def through(call):
    return call()
"""


def test_each_function_is_walked_where_it_is_called_first(tmp_path, monkeypatch):
    (tmp_path / "walked_first.py").write_text(FIRST)
    (tmp_path / "walked_second.py").write_text(SECOND)
    monkeypatch.syspath_prepend(tmp_path)
    import walked_first

    walk = Walk(str(tmp_path))
    with walk.followed():
        walked_first.begin()
    # begin, short and back, numbers and back, through, helper, through, and back to begin.
    assert walk.counts() == {
        "functions": 5,
        "files": 2,
        "changes": 8,
        "straight_back": 7,
        "folder_changes": 0,
        "folder_straight_back": 0,
        "most_often": [["walked_second.py", "walked_first.py", 4], ["walked_first.py", "walked_second.py", 3]],
    }
    with walk.followed():
        walked_first.begin()  # Nothing new.
    assert walk.counts()["changes"] == 8


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_clip_and_a_night_are_followed_through_job_actor_and_child(tmp_path):
    make_corpus(tmp_path / "made", clips_per_class=(3, 0, 0))
    config = BenchmarkConfig(study="calls", frames_per_clip=2)
    found = calls.measure(usable_clips(str(tmp_path / "made"), most=1), tmp_path, config=config)
    for way in found["ways"].values():
        assert 0 < way["straight_back"] < way["changes"]
    shown = Console(width=160, record=True)
    shown.print(*calls.tables(found))
    assert "a night" in shown.export_text()
