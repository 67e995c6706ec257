"""The table of clips that is kept beside the labels is used while it is true, and made again where it is not."""

import json
from dataclasses import asdict, replace

import pyarrow as pa
import pytest
from made_labels import MadeClip, make_labels

from pipeline.labels.corrections import read_corrections
from pipeline.labels.source import Labels, open_labels
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.planning import plan_clips
from pipeline.records.clips import CLIP_SCHEMA
from pipeline.records.corrections import Said
from pipeline.records.faces import CLIP_LABEL_SCHEMA
from pipeline.records.outcomes import Outcome, State
from pipeline.records.vocabulary import UsageError
from pipeline.viewer.corrected import CorrectionLog

ONE, TWO = MadeClip("show/one.mp4", codec="libx264"), MadeClip("show/two.mp4", codec="libx264", num_frames=40)
BROKEN = MadeClip("other/broken.mp4", codec="")


def opened(folder):
    """The rows of the clips by path, with their faces and persons."""
    labels = Labels(str(folder))
    rows = {row["path"]: row for row in labels.database.rows("select * from clips order by path")}
    counts = {path: (labels.faces(row).num_rows, labels.persons(row).num_rows) for path, row in rows.items()}
    labels.database.close()
    return rows, counts


def kept(folder):
    (path,) = (folder / "view").iterdir()
    return path


@pytest.fixture
def two_nights(tmp_path):
    """Makes the labels of one clip and a broken one, then those of another; each call is a night."""

    def night(*clips, day):
        return tmp_path / "labels" / make_labels(tmp_path / "videos", tmp_path / "labels", list(clips), day=day).name

    return night


def test_it_is_read_again_and_made_again_where_it_is_gone_or_damaged(two_nights):
    folder = two_nights(ONE, BROKEN, day="2026-11-20")
    before = opened(folder)
    assert [(path, row["state"], row["day"]) for path, row in before[0].items()] == [
        ("other/broken.mp4", "quarantined", "2026-11-20"),
        ("show/one.mp4", "done", "2026-11-20"),
    ]
    path = kept(folder)
    written = path.stat().st_mtime_ns
    assert opened(folder) == before
    assert path.stat().st_mtime_ns == written
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], data[:200] + bytes(50) + data[250:], b""):
        path.write_bytes(damaged)
        assert opened(folder) == before
        assert kept(folder).read_bytes() == data
    kept(folder).unlink()
    assert opened(folder) == before


def test_after_a_night_only_new_shards_are_read(two_nights):
    folder = two_nights(ONE, BROKEN, day="2026-11-20")
    before = opened(folder)[0]
    (shard,) = (folder / "clips" / "day=2026-11-20").iterdir()
    shard.write_bytes(b"no longer read")
    two_nights(ONE, BROKEN, TWO, day="2026-11-21")
    after, counts = opened(folder)
    assert {path: row["day"] for path, row in after.items()} == {
        "other/broken.mp4": "2026-11-20",
        "show/one.mp4": "2026-11-20",
        "show/two.mp4": "2026-11-21",
    }
    assert {path: after[path] for path in before} == before
    assert counts == {"other/broken.mp4": (0, 0), "show/one.mp4": (10, 1), "show/two.mp4": (8, 1)}


def test_an_entry_of_the_same_size_is_another_entry(two_nights):
    folder = two_nights(ONE, day="2026-11-20")
    opened(folder)
    (entry,) = (folder / "ledger").iterdir()
    told = json.loads(entry.read_text())
    (shard,) = [each for each in told["shards"] if each["table"] == "frames"]
    moved = shard["path"].replace("-11-20", "-11-19")
    (folder / moved).parent.mkdir()
    (folder / shard["path"]).rename(folder / moved)
    entry.write_text(entry.read_text().replace(shard["path"], moved))
    rows, counts = opened(folder)
    assert rows["show/one.mp4"]["frames_shard"] == moved
    assert counts == {"show/one.mp4": (10, 1)}


def test_a_copy_has_the_faces_of_its_original(two_nights):
    folder = two_nights(ONE, day="2026-11-20")
    rows, _ = opened(folder)
    ledger = Ledger(str(folder))
    original = next(ledger.snapshot().units()).clips[0]
    copy = replace(original, clip_id="c" * 20, path="again.mp4", same_as=original.clip_id)
    clips = pa.Table.from_pylist([asdict(original), asdict(copy)], schema=CLIP_SCHEMA)
    settings = ledger.run_info()["config"]
    snapshot, _ = plan_clips(ledger, clips, kind="labels", config=settings, versions={}, clips_per_shard=2)
    (unit,) = snapshot.pending()
    label = {**rows["show/one.mp4"], "clip_id": copy.clip_id, "path": copy.path, "same_as": original.clip_id}
    tables = {"clips": pa.Table.from_pylist([label], schema=CLIP_LABEL_SCHEMA)}
    outcome = Outcome(clip_id=copy.clip_id, path=copy.path, state=State.DONE)
    ledger.commit(unit, tables=tables, outcomes=[outcome], facts={}, partition="day=2026-11-21")
    after, counts = opened(folder)
    assert (after["again.mp4"]["day"], after["again.mp4"]["original"]) == ("2026-11-21", original.clip_id)
    assert counts == {"again.mp4": (10, 1), "show/one.mp4": (10, 1)}


def test_labels_in_parts_are_read_as_one_and_corrected_where_they_lie(tmp_path):
    for number, clip in ((1, ONE), (2, TWO)):
        clips = [clip, replace(BROKEN, path=f"other/{number}.mp4")]
        make_labels(tmp_path / f"videos-{number}", tmp_path / f"labels-{number}-of-2", clips)
    labels = open_labels(str(tmp_path / "labels-*"))
    rows = {row["path"]: row for row in labels.database.rows("select * from clips order by path")}
    assert {path: row["part"] for path, row in rows.items()} == {
        "other/1.mp4": 0,
        "other/2.mp4": 1,
        "show/one.mp4": 0,
        "show/two.mp4": 1,
    }
    found = [(row["path"], faces.num_rows, len(persons)) for row, faces, persons in labels.labelled()]
    assert found == [("show/one.mp4", 10, 1), ("show/two.mp4", 8, 1)]
    log = CorrectionLog(labels.storages)
    for path, row in rows.items():
        values = {"said": Said.NOT_A_FACE, "annotator": "Ada", "model": labels.model}
        log.add(part=row["part"], clip_id=row["clip_id"], path=path, **values)
    assert log.counts() == {row["clip_id"]: 1 for row in rows.values()}
    assert {each.path for each in read_corrections(labels.storages)} == set(rows)
    own = read_corrections(labels.storages[1:])
    assert {each.path for each in own} == {"other/2.mp4", "show/two.mp4"}
    assert labels.storage_of(own[0].clip_id) is labels.storages[1]
    labels.database.close()


def test_labels_of_which_a_part_is_missing_are_refused(tmp_path):
    make_labels(tmp_path / "videos", tmp_path / "labels-1-of-2", [ONE, BROKEN])
    with pytest.raises(UsageError, match=r"of 2 parts of labels 1 are not there \(2\)"):
        open_labels(str(tmp_path / "labels-*"))
