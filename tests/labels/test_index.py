"""The table of clips that is kept beside the labels is used while it is true, and made again where it is not."""

import hashlib
import json
import shutil
import zlib
from dataclasses import asdict, replace

import pyarrow as pa
import pyarrow.parquet as pq
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

pytestmark = pytest.mark.lengthy

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


def made_anew(folder, tmp_path):
    """The rows of the clips as they are without anything that is kept."""
    copy = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("view"))
    return opened(copy)[0]


def files(folder):
    return len(list((folder / "view").iterdir()))


def committed(ledger, *units, day, same_as=None):
    """Commit units whose clips are copies, or have no label."""
    for unit in units:
        labels = [{**same_as, "clip_id": clip.clip_id, "path": clip.path} for clip in unit.clips] if same_as else []
        state, reason = (State.DONE, None) if same_as else (State.QUARANTINED, "not_a_video")
        outcomes = [Outcome(clip_id=each.clip_id, path=each.path, state=state, reason=reason) for each in unit.clips]
        tables = {"clips": pa.Table.from_pylist(labels, schema=CLIP_LABEL_SCHEMA)} if labels else {}
        ledger.commit(unit, tables=tables, outcomes=outcomes, facts={}, partition=f"day={day}")


def planned(ledger, clips):
    """Plan clips, one a unit; the pending units."""
    rows = pa.Table.from_pylist([asdict(clip) for clip in clips], schema=CLIP_SCHEMA)
    settings = ledger.run_info()["config"]
    snapshot, _ = plan_clips(ledger, rows, kind="labels", config=settings, versions={}, clips_per_shard=1)
    return list(snapshot.pending())


def test_a_night_is_a_file_more_and_says_what_all_of_it_made_anew_says(two_nights, tmp_path):
    folder = two_nights(ONE, BROKEN, day="2026-11-20")
    rows, _ = opened(folder)
    ledger = Ledger(str(folder))
    clips = [clip for unit in ledger.snapshot().units() for clip in unit.clips]
    (first,) = [clip for clip in clips if clip.path == ONE.path]
    later = [replace(first, clip_id=f"{place}" * 20, path=f"late/{place}.mp4", content_id="") for place in range(3)]
    copy = replace(first, clip_id="c" * 20, path="again.mp4", same_as=first.clip_id)

    units = planned(ledger, [*clips, *later, copy])  # A run that was killed: none of its units is done.
    assert (opened(folder)[0], files(folder)) == (rows, 1)
    committed(ledger, *(unit for unit in units if unit.clips[0] in later[:2]), day="2026-11-21")
    told = opened(folder)[0]
    assert (told, files(folder)) == (made_anew(folder, tmp_path), 2)
    assert [told[clip.path]["reason"] for clip in later] == ["not_a_video", "not_a_video", "not_finished"]

    label = {**rows[ONE.path], "same_as": first.clip_id}
    committed(ledger, *(unit for unit in units if unit.clips[0] == copy), day="2026-11-22", same_as=label)
    told = opened(folder)[0]
    assert (told, files(folder)) == (made_anew(folder, tmp_path), 3)
    assert told["again.mp4"]["frames_shard"] == rows[ONE.path]["frames_shard"]
    assert opened(folder)[0] == told  # As it was kept.

    committed(ledger, *(unit for unit in units if unit.clips[0] == later[2]), day="2026-11-23")
    told = opened(folder)[0]
    assert (told, files(folder)) == (made_anew(folder, tmp_path), 4)
    assert len(told) == 6


def test_a_night_that_changes_other_clips_makes_the_table_anew(two_nights, tmp_path):
    folder = two_nights(ONE, BROKEN, day="2026-11-20")
    opened(folder)
    (tmp_path / "videos" / ONE.path).unlink()
    two_nights(replace(ONE, num_frames=30), BROKEN, day="2026-11-21")  # Other bytes at its path.
    told = [row["state"] for row in rows_at(folder, ONE.path)]
    assert sorted(told) == ["changed", "done"]
    assert files(folder) == 1


def rows_at(folder, path):
    labels = Labels(str(folder))
    found = list(labels.database.rows("select * from clips where path = $path", path=path))
    labels.database.close()
    return found


def test_many_nights_are_one_file_again(two_nights, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.labels.index.MAX_PARTS", 2)
    clips = [replace(ONE, path=f"show/{place}.mp4", num_frames=10 + place) for place in range(3)]
    for place in range(3):
        folder = two_nights(*clips[: place + 1], day=f"2026-11-2{place}")
        before = opened(folder)[0]
        assert len(before) == place + 1
    assert files(folder) == 1
    assert opened(folder)[0] == before == made_anew(folder, tmp_path)


def test_a_file_that_is_gone_or_damaged_takes_those_after_it_along(two_nights):
    folder = two_nights(ONE, day="2026-11-20")
    opened(folder)
    first = kept(folder)
    two_nights(ONE, TWO, day="2026-11-21")
    both = opened(folder)
    data = first.read_bytes()
    for damage in (first.unlink, lambda: first.write_bytes(data[:-1])):
        first.write_bytes(data)
        damage()
        assert opened(folder) == both


@pytest.mark.parametrize("footer", [None, b"no zlib", zlib.compress(b"[1]"), zlib.compress(b'{"before": ["../x"]}')])
def test_a_file_with_a_foreign_footer_is_not_used(two_nights, footer):
    folder = two_nights(ONE, day="2026-11-20")
    before = opened(folder)
    path = kept(folder)
    rows = pq.read_table(path).replace_schema_metadata(footer and {b"clips": footer})
    pq.write_table(rows.slice(0, 0), path)
    content = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    path.rename(path.with_name(f"{path.stem.rpartition('-')[0]}-{content}.parquet"))
    assert opened(folder) == before


def test_who_does_not_wait_sees_the_newest_first(two_nights, monkeypatch):
    for name in ("WORTH_BEGINNING", "FIRST_UNITS"):
        monkeypatch.setattr(f"pipeline.labels.index.{name}", 1)
    folder = two_nights(ONE, BROKEN, day="2026-11-20")
    two_nights(ONE, BROKEN, TWO, day="2026-11-21")
    labels = Labels(str(folder), waits=False)
    paths = "select path from clips order by path"
    assert [row["path"] for row in labels.database.rows(paths)] == [TWO.path]
    assert not labels.is_whole
    labels.finish()
    labels.show_read()
    assert [row["path"] for row in labels.database.rows(paths)] == [BROKEN.path, ONE.path, TWO.path]
    assert labels.is_whole
    labels.database.close()
    again = Labels(str(folder), waits=False)
    assert again.is_finished
    again.database.close()


@pytest.mark.parametrize("max_parts", [12, 1])
def test_while_a_large_night_is_read_the_collection_is_shown_as_it_was(two_nights, monkeypatch, tmp_path, max_parts):
    monkeypatch.setattr("pipeline.labels.index.MAX_PARTS", max_parts)
    folder = two_nights(ONE, BROKEN, day="2026-11-20")
    opened(folder)
    two_nights(ONE, BROKEN, TWO, day="2026-11-21")
    for name in ("WORTH_BEGINNING", "FIRST_UNITS"):
        monkeypatch.setattr(f"pipeline.labels.index.{name}", 0)
    labels = Labels(str(folder), waits=False)
    paths = "select path from clips order by path"
    assert [row["path"] for row in labels.database.rows(paths)] == [BROKEN.path, ONE.path]
    assert not labels.is_whole
    labels.finish()
    labels.show_read()
    assert [row["path"] for row in labels.database.rows(paths)] == [BROKEN.path, ONE.path, TWO.path]
    assert labels.is_whole
    assert labels.is_finished
    assert labels.readings[0].num_read == 1  # The night's alone.
    labels.database.close()
    assert files(folder) == (2 if max_parts > 1 else 1)
    assert opened(folder)[0] == made_anew(folder, tmp_path)
