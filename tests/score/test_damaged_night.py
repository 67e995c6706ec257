"""A finished night whose derived files are cut, emptied or gone, or that was copied in part, is mended or named."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.ledger.lock import LedgerError
from pipeline.runtime import cluster
from pipeline.score.config import ScoreConfig
from pipeline.score.job import score

pytestmark = pytest.mark.lengthy

KEPT = Path(__file__).parents[1] / "kept" / "0.1.0"
DERIVED = ("_SUCCESS", "outcomes.jsonl", "manifest.json", "summary.json", "ignored.json", "nights/2026-11-20.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A night of an older version that this one has looked at: nothing was left to do."""
    top = tmp_path_factory.mktemp("finished")
    shutil.copytree(KEPT / "labels", top / "labels")
    assert score(config_of(top)).exit_code == 0
    return top


@pytest.fixture(autouse=True)
def without_ray(monkeypatch):
    def start():
        raise AssertionError("Ray was started")

    monkeypatch.setattr(cluster, "start_ray", start)


@pytest.fixture
def labels(finished, tmp_path):
    """A copy of it; the folder of its one model."""
    shutil.copytree(finished / "labels", tmp_path / "labels")
    (partition,) = (tmp_path / "labels").glob("model=*")
    return partition


def config_of(top, **changes):
    values = {"input": str(KEPT / "uploads"), "checkpoint": str(KEPT / "run"), "output": str(top / "labels")}
    return ScoreConfig(**{**values, "day": "2026-11-20", "page": False, "no_ray": True, **changes})


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damaged(path, how):
    if how == "gone":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        path.write_bytes(b"\0" * 100)


@pytest.mark.parametrize("how", ["gone", "empty", "cut", "overwritten"])
def test_what_is_derived_is_made_again(labels, tmp_path, how):
    whole = files_of(labels)
    for name in DERIVED:
        damaged(labels / name, how)
    found = score(config_of(tmp_path))
    assert (found.exit_code, found.audit.num_inputs, found.audit.num_by_state["done"]) == (0, 3, 3)
    now = files_of(labels)
    assert now.keys() == whole.keys()
    summary, before = (json.loads(each.pop("summary.json")) for each in (now, whole))
    assert now == whole
    assert {**summary, "seconds": 0} == {**before, "seconds": 0}


@pytest.mark.parametrize("how", ["gone", "empty", "cut"])
def test_a_page_is_made_again(labels, tmp_path, how):
    assert score(config_of(tmp_path, page=True)).exit_code == 0
    whole = (labels / "report.html").read_text()
    assert "Labels of 2026-11-20" in whole
    score(config_of(tmp_path, page=True, day="2026-11-21"))
    assert (labels / "report.html").read_text() == whole
    for thumbnails in (labels / "thumbnails").rglob("*.arrow"):
        damaged(thumbnails, "cut")
    damaged(labels / "report.html", how)
    assert score(config_of(tmp_path, page=True, day="2026-11-21")).exit_code == 0
    again = (labels / "report.html").read_text()
    assert "Labels of 2026-11-20" in again
    assert again.rstrip().endswith("</html>")


def test_the_page_has_no_label_of_bytes_that_others_replaced(labels, tmp_path, capsys):
    uploads = tmp_path / "uploads"
    shutil.copytree(KEPT / "uploads", uploads)
    (uploads / "two.avi").write_bytes((uploads / "one.avi").read_bytes())
    found = score(config_of(tmp_path, input=str(uploads), page=True))
    assert (found.audit.num_by_state["changed"], found.audit.num_by_state["done"]) == (1, 3)
    page = (labels / "report.html").read_text()
    # The old bytes and the new ones, each a row and what it is sorted by in the list of all inputs, and nowhere else.
    assert page.count("two.avi") == 4
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("Most clips look Disgust: 100 % of those it is decided on")
    assert last.endswith(f"To watch them: python jobs/view.py {tmp_path}/labels")
    assert "no label: see below" not in page


def test_what_others_leave_in_the_folders_is_ignored(labels, tmp_path):
    whole = files_of(labels)
    for folder in (".", "nights", "thumbnails/day=2026-11-20", "clips/day=2026-11-20", "plan", "ledger"):
        for name in (".DS_Store", "._2026-11-20.json", "2026-11-20 copy.json", "2026-11-21.json.part", "Thumbs.db"):
            (labels / folder / name).write_bytes(b"not ours")
    found = score(config_of(tmp_path, page=True, dry_run=True))
    assert found.summary["to_score"] == 0
    assert score(config_of(tmp_path, page=True)).exit_code == 0
    now = files_of(labels)
    assert {name: now[name] for name in whole if name != "summary.json"} == {
        name: data for name, data in whole.items() if name != "summary.json"
    }


def test_a_copy_that_ended_half_way_is_named_with_its_cure(labels, tmp_path):
    """In the order of names, as a sync copies: plan/ comes last."""
    names = sorted(files_of(labels))
    for name in names[names.index("manifest.json") :]:
        (labels / name).unlink()
    with pytest.raises(LedgerError, match=r"is of no unit in plan/.*finish the copy") as caught:
        score(config_of(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_shard_that_was_not_copied_is_told_and_done_again_without_its_entry(labels, tmp_path):
    (shard, *_) = sorted((labels / "clips").rglob("*.parquet"))
    shard.unlink()
    found = score(config_of(tmp_path))
    assert found.exit_code == 1
    assert f"shard {shard.relative_to(labels)} has no bytes" in found.summary["audit"]
    assert not (labels / "_SUCCESS").exists()
