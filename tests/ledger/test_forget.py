"""Clips are forgotten: nothing of them is left but that they are forgotten, whenever it is cut off."""

import io
import json
import os
import shutil
import time
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ledgers import audited, finish, pending, planned

from pipeline.ledger.config import ForgetConfig
from pipeline.ledger.files import arrow_bytes, json_bytes
from pipeline.ledger.forget import checkpoints_of, clips_to_forget, forget
from pipeline.ledger.forgotten import read_record
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.lock import LedgerError
from pipeline.records.clips import Clip
from pipeline.records.columns import table_of
from pipeline.records.documents import parquet_table
from pipeline.records.faces import EXAMPLE_SCHEMA, Box, Example
from pipeline.records.outcomes import Outcome, State
from pipeline.runtime.retention import forget_old
from pipeline.storage.store import TEMPORARY, Storage

pytestmark = pytest.mark.lengthy

PLAN = {"kind": "examples", "config": {}, "versions": {}, "clips_per_shard": 2}


def clip_named(name, **values):
    own = {"clip_id": name.encode().hex().ljust(20, "0"), "path": name, "url": f"/in/{name}", "content_id": "x"}
    return Clip(**{**own, "size_bytes": 1, "split": "train", **values})


def example_of(clip):
    sizes = {"frame_width": 8, "frame_height": 8, "box": Box(0, 0, 4, 4)}
    images = {"face_jpeg": f"face of {clip.path}".encode(), "context_jpeg": f"context of {clip.path}".encode()}
    own = {"clip_id": clip.clip_id, "split": clip.split, "face_score": 1.0, "pts_seconds": 0.0}
    return Example(frame_index=0, face_index=0, **own, **sizes, **images)


def commit(ledger, unit):
    outcomes = [Outcome(clip_id=c.clip_id, path=c.path, state=State.DONE, num_examples=1) for c in unit.clips]
    tables = {"examples": table_of([example_of(clip) for clip in unit.clips], EXAMPLE_SCHEMA)}
    ledger.commit(unit, tables=tables, outcomes=outcomes, facts={})


CLIPS = [clip_named(f"up/{name}") for name in "abcde"]


def made(url):
    """A finished run of five clips with what may follow from it: a page, thumbnails, a correction."""
    ledger = Ledger(url)
    planned(ledger, CLIPS, **PLAN)
    for unit in pending(ledger, CLIPS):
        commit(ledger, unit)
    finish(ledger)
    ledger.storage.put("report.html", b"<img src='data:'>")
    rows = {"clip_id": [clip.clip_id for clip in CLIPS], "jpeg": [b"small"] * len(CLIPS)}
    ledger.storage.put("thumbnails/day=2026-01-01/u.arrow", arrow_bytes(pa.table(rows)))
    for clip in CLIPS[:2]:
        ledger.storage.put(f"corrections/{clip.path[-1]}.json", json_bytes({"clip_id": clip.clip_id}))
    return ledger


@pytest.fixture(params=["local", "s3"])
def ledger(request, tmp_path):
    return made(str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3").url("out"))


def forgotten(ledger, **config):
    with ledger.lock():
        snapshot = ledger.snapshot()
        ids = clips_to_forget(ledger, snapshot, ForgetConfig(output=ledger.storage.url, **config))
        return forget(ledger, snapshot, ids)


def everything(ledger):
    return {name: ledger.storage.read(name) for name in ledger.storage.sizes("")}


def check_forgotten(ledger, clips, kept):
    """Nothing is left of these clips, all of the others, and the ledger holds."""
    outcomes = {each.clip_id: each for each in ledger.snapshot().outcomes()}
    assert {outcomes[clip.clip_id].state for clip in clips} == {State.FORGOTTEN}
    assert {outcomes[clip.clip_id].state for clip in kept} <= {State.DONE}
    found = audited(ledger)
    assert found.holds
    assert found.foreign_shards == ()
    assert found.num_by_state["forgotten"] == len(clips)
    rows = []
    for name, data in everything(ledger).items():
        for clip in clips:
            assert f"face of {clip.path}".encode() not in data, name
            if not name.startswith(("plan/", "ledger/")) and name not in ("outcomes.jsonl", "forgotten.json"):
                assert clip.clip_id.encode() not in data, name
        if name.endswith(".parquet"):
            rows += pq.read_table(io.BytesIO(data))["clip_id"].to_pylist()
    assert sorted(rows) == sorted(clip.clip_id for clip in kept)
    assert ledger.storage.exists("_SUCCESS")
    assert json.loads(ledger.storage.read("manifest.json"))["counts"]["forgotten"] == len(clips)


@pytest.mark.lengthy
def test_a_clip_is_forgotten_and_the_others_stay(ledger):
    before = ledger.storage.read("manifest.json")
    done = forgotten(ledger, clip=(CLIPS[0].clip_id,))
    assert (done.clip_ids, done.num_rows, done.left, done.alike) == ((CLIPS[0].clip_id,), 1, (), ())
    check_forgotten(ledger, CLIPS[:1], CLIPS[1:])
    assert not ledger.storage.exists("report.html")
    assert not ledger.storage.exists("corrections/a.json")
    assert ledger.storage.exists("corrections/b.json")
    small = pa.ipc.open_file(ledger.storage.read("thumbnails/day=2026-01-01/u.arrow")).read_all()
    assert small["clip_id"].to_pylist() == [clip.clip_id for clip in CLIPS[1:]]
    # What is forgotten is never computed again, though it still lies in the input.
    _, left = planned(ledger, CLIPS, **PLAN)
    assert len(left) == 0
    assert before != ledger.storage.read("manifest.json")


def in_other_types(table, kind):
    """What other tools write of a table: longer texts, repeated ones, fields of a field."""
    ids, images = table["clip_id"].combine_chunks(), table["face_jpeg"].combine_chunks()
    if kind == "large":
        return pa.table({"id": ids.cast(pa.large_string()), "image": images.cast(pa.large_binary())})
    if kind == "repeated":
        return pa.table({"id": ids.dictionary_encode(), "image": images})
    return pa.table({"row": pa.StructArray.from_arrays([ids, images], ["id", "image"])})


@pytest.mark.parametrize("kind", ["large", "repeated", "nested"])
def test_a_copy_of_a_shard_in_the_types_of_another_tool_is_found(kind, tmp_path):
    ledger = made(str(tmp_path / "out"))
    (shard,) = (each for each in ledger.shards("examples") if each["unit"].endswith("0"))
    table = parquet_table(ledger.storage.read(shard["path"]), "it")
    data = io.BytesIO()
    pq.write_table(in_other_types(table, kind), data, compression="zstd")
    ledger.storage.put("notes/copy.parquet", data.getvalue())
    pictures = in_other_types(table, kind).flatten()
    data = io.BytesIO()
    pq.write_table(pa.table({"image": pictures.columns[-1]}), data, compression="zstd")
    ledger.storage.put("notes/pictures.parquet", data.getvalue())
    ledger.storage.put("notes/damaged.parquet", b"PAR1 and no more")
    done = forgotten(ledger, clip=(CLIPS[0].clip_id,))
    assert not ledger.storage.exists("notes/copy.parquet")
    assert done.left == ()
    assert done.alike == ("notes/pictures.parquet",)
    assert done.unread == ("notes/damaged.parquet",)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("config", "chosen"),
    [
        ({"path": "up/[bd]"}, [1, 3]),
        ({"path": "up/*"}, [0, 1, 2, 3, 4]),
        ({"clip": tuple(clip.clip_id for clip in CLIPS[2:4])}, [2, 3]),
        ({"older_than": "0d"}, [0, 1, 2, 3, 4]),
    ],
)
def test_clips_are_named_by_id_path_or_age(config, chosen, tmp_path):
    ledger = made(str(tmp_path / "out"))
    time.sleep(0.01)  # "0d" is older than now
    forgotten(ledger, **config)
    check_forgotten(ledger, [CLIPS[n] for n in chosen], [c for n, c in enumerate(CLIPS) if n not in chosen])


@pytest.mark.lengthy
def test_what_is_too_young_stays(tmp_path):
    ledger = made(str(tmp_path / "out"))
    config = ForgetConfig(output=ledger.storage.url, older_than="2d")
    assert clips_to_forget(ledger, ledger.snapshot(), config) == ()
    days_ago = time.time() - 3 * 86400
    os.utime(tmp_path / "out" / "plan" / "g000.arrow", (days_ago, days_ago))
    assert len(clips_to_forget(ledger, ledger.snapshot(), config)) == 5


@pytest.mark.lengthy
def test_copies_of_a_clip_are_forgotten_with_it(tmp_path):
    ledger = Ledger(str(tmp_path))
    clips = [CLIPS[0], clip_named("copy", same_as=CLIPS[0].clip_id), CLIPS[1]]
    planned(ledger, clips, **PLAN)
    for unit in pending(ledger, clips):
        commit(ledger, unit)
    finish(ledger)
    for named in (CLIPS[0], clips[1]):
        config = ForgetConfig(output=str(tmp_path), clip=(named.clip_id,))
        ids = clips_to_forget(ledger, ledger.snapshot(), config)
        assert ids == tuple(sorted((CLIPS[0].clip_id, clips[1].clip_id)))


@pytest.mark.lengthy
@pytest.mark.timeout(600)  # some twenty kills
def test_a_kill_at_any_moment_leaves_what_the_same_command_ends(monkeypatch, tmp_path):
    class Killed(BaseException):
        """Stands for SIGKILL: what is written is written, and nothing more is."""

    changes = {"left": 10**9}

    def counted(method):
        def count(*arguments):
            if changes["left"] == 0:
                raise Killed
            changes["left"] -= 1
            return method(*arguments)

        return count

    number = 0
    made(str(tmp_path / "made"))
    while True:
        ledger = Ledger(str(shutil.copytree(tmp_path / "made", tmp_path / str(number))))
        with monkeypatch.context() as patch:
            for name in ("put", "put_stream", "delete"):
                patch.setattr(Storage, name, counted(getattr(Storage, name)))
            changes["left"] = number
            snapshot = ledger.snapshot()
            try:
                forget(ledger, snapshot, [CLIPS[0].clip_id, CLIPS[3].clip_id])
                is_done = True
            except Killed:
                is_done = False
        if is_done:
            break
        assert not ledger.storage.exists("_SUCCESS") or number < 2
        done = forgotten(ledger, path="up/[ad]")
        assert done.left == ()
        assert len(done.manifests) >= 1
        check_forgotten(ledger, [CLIPS[0], CLIPS[3]], [CLIPS[1], CLIPS[2], CLIPS[4]])
        number += 1
    assert number >= 8


def test_a_unit_that_is_not_finished_is_reported(tmp_path):
    ledger = Ledger(str(tmp_path))
    planned(ledger, CLIPS, **PLAN)
    with pytest.raises(LedgerError, match="not finished; run the job to its end first"):
        forget(ledger, ledger.snapshot(), [CLIPS[0].clip_id])


@pytest.mark.lengthy
def test_the_same_pictures_under_another_clip_are_reported(tmp_path):
    ledger = Ledger(str(tmp_path))
    planned(ledger, CLIPS[:4], **PLAN)
    for unit in pending(ledger, CLIPS[:4]):
        commit(ledger, unit)
    finish(ledger)
    kept = table_of([example_of(CLIPS[0])], EXAMPLE_SCHEMA)
    ledger.storage.put("kept.arrow", arrow_bytes(kept.drop_columns(["clip_id"])))
    assert forgotten(ledger, clip=(CLIPS[0].clip_id,)).alike == ("kept.arrow",)


def test_checkpoints_that_were_trained_on_it_are_named(tmp_path):
    run = Storage(str(tmp_path))
    run.put("checkpoints/e1/checkpoint.json", json_bytes({"manifest_sha256": "ab" * 32}))
    run.put("checkpoints/e2/checkpoint.json", json_bytes({"manifest_sha256": "cd" * 32}))
    assert list(checkpoints_of([run.url], ["ab" * 32])) == [f"{run.url}/checkpoints/e1/checkpoint.json"]


def test_what_a_killed_writer_left_is_deleted(tmp_path):
    ledger = made(str(tmp_path / "out"))
    left = tmp_path / "out" / "examples" / "train" / f"{TEMPORARY}0123456789abcdef"
    left.write_bytes(b"face of up/a")
    assert forgotten(ledger, clip=(CLIPS[0].clip_id,)).left == ()
    assert not left.exists()


@pytest.mark.parametrize(("name", "content"), [("same", "0" * 32), ("same", "0" * 32 + "-3"), ("other", "x")])
def test_other_files_with_the_bytes_of_a_forgotten_clip_are_known(name, content, tmp_path):
    ledger = Ledger(str(tmp_path))
    clip = clip_named("up/first", content_id=content, size_bytes=9)
    planned(ledger, [clip], **PLAN)
    commit(ledger, *pending(ledger, [clip]))
    finish(ledger)
    forgotten(ledger, path="up/first")
    record = read_record(ledger.storage)
    again = clip_named("up/again", content_id=content, size_bytes=9)
    assert record.holds(clip)
    assert record.holds(replace(clip, clip_id=f"{clip.clip_id}.0003", start_pts_seconds=3.0))
    assert record.holds(again) == (name == "same")
    assert record.holds(replace(again, clip_id="ab.0003", start_pts_seconds=3.0)) == (name == "same")
    assert not record.holds(replace(again, start_pts_seconds=3.0))
    assert not record.holds(replace(again, size_bytes=8))


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b'{"clip_ids": 3, "manifests": []}', b"[" * 100_000])
def test_a_record_that_cannot_be_read_is_refused(damage, tmp_path):
    ledger = made(str(tmp_path / "out"))
    ledger.storage.put("forgotten.json", damage)
    with pytest.raises(LedgerError, match=r"forgotten.json .*; put it back, or move it away"):
        forgotten(ledger, path="up/a")


@pytest.mark.parametrize("config", [{}, {"older_than": "90"}, {"older_than": "-1d"}])
def test_what_names_nothing_is_refused(config):
    with pytest.raises(ValueError, match=r"--clip, --path or --older-than|give days, like 90d"):
        ForgetConfig(output="x", **config)


@pytest.mark.lengthy
def test_an_export_within_an_output_is_forgotten_whole(tmp_path):
    ledger = made(str(tmp_path / "out"))
    for name in ("tables/export.json", "tables/a.vtt", "tables/deep/b.csv", "tables-of-others/c.csv"):
        ledger.storage.put(name, b"{}")
    assert forgotten(ledger, clip=(CLIPS[0].clip_id,)).left == ()
    assert list(ledger.storage.sizes("tables")) == []
    assert ledger.storage.exists("tables-of-others/c.csv")


def test_checkpoints_of_earlier_manifests_of_the_output_are_named(tmp_path):
    run = Storage(str(tmp_path / "run"))
    told = {"manifest_sha256": "ef" * 32, "config": {"training": {"data": "s3://bucket/data"}}}
    run.put("checkpoints/e1/checkpoint.json", json_bytes(told))
    found = checkpoints_of([run.url], ["ab" * 32], data="s3://bucket/data")
    assert list(found) == [f"{run.url}/checkpoints/e1/checkpoint.json"]
    assert list(checkpoints_of([run.url], ["ab" * 32], data="s3://bucket/other")) == []


@pytest.mark.lengthy
def test_retention_forgets_what_is_old_once_and_waits_for_what_is_not_finished(tmp_path):
    ledger = made(str(tmp_path / "out"))
    assert not forget_old(ledger, ledger.snapshot(), days=2)
    days_ago = time.time() - 3 * 86400
    os.utime(tmp_path / "out" / "plan" / "g000.arrow", (days_ago, days_ago))
    young = clip_named("up/young")
    planned(ledger, [*CLIPS, young], **PLAN)
    with ledger.lock():
        assert forget_old(ledger, ledger.snapshot(), days=2)
        assert not forget_old(ledger, ledger.snapshot(), days=2)
    states = {each.path: each.state for each in ledger.snapshot().outcomes()}
    assert all(states[clip.path] == State.FORGOTTEN for clip in CLIPS)
    os.utime(next((tmp_path / "out" / "plan").glob("g001.arrow")), (days_ago, days_ago))
    with ledger.lock():
        assert not forget_old(ledger, ledger.snapshot(), days=2)
