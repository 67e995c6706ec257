import json
import os
import subprocess
import sys
import time
from dataclasses import fields

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.ledger.ledger import Ledger
from pipeline.ledger.lock import LedgerError
from pipeline.records.clips import Clip
from pipeline.records.columns import table_of
from pipeline.records.faces import EXAMPLE_SCHEMA, Box, Example
from pipeline.records.outcomes import OUTCOME_SCHEMA, Outcome, State

PLAN = {"kind": "examples", "config": {"face_px": 224}, "versions": {"python": "3"}, "clips_per_shard": 2}


def clip_named(name, *, split="train"):
    return Clip(
        clip_id=name.encode().hex().ljust(20, "0"),
        path=name,
        url=f"/in/{name}",
        size_bytes=1,
        content_id="x",
        split=split,
    )


def examples_of(clip, *, count=2):
    return [
        Example(
            clip_id=clip.clip_id,
            frame_index=index,
            pts_seconds=index / 25,
            face_index=0,
            box=Box(0, 0, 4, 4),
            face_score=1.0,
            frame_width=8,
            frame_height=8,
            face_jpeg=b"face",
            context_jpeg=b"context",
            split=clip.split,
        )
        for index in range(count)
    ]


def commit(ledger, unit, *, state=State.DONE):
    examples = [example for clip in unit.clips for example in examples_of(clip)] if state is State.DONE else []
    outcomes = [
        Outcome(
            clip_id=clip.clip_id,
            path=clip.path,
            state=state,
            reason=None if state is State.DONE else "because",
            num_examples=2 if state is State.DONE else 0,
        )
        for clip in unit.clips
    ]
    return ledger.commit(unit, tables={"examples": table_of(examples, EXAMPLE_SCHEMA)}, outcomes=outcomes, facts={})


@pytest.fixture(params=["local", "s3"])
def ledger(request, tmp_path):
    if request.param == "local":
        return Ledger(str(tmp_path / "out"))
    return Ledger(request.getfixturevalue("s3").url("bucket/out"))


@pytest.fixture
def local(tmp_path):
    return Ledger(str(tmp_path / "out"))


CLIPS = [clip_named(name) for name in ("a.avi", "b.avi", "c.avi")] + [clip_named("d.avi", split="test")]


def test_a_plan_gives_units_of_one_split_in_a_fixed_order(ledger):
    ledger.plan(CLIPS[::-1], **PLAN)
    units = ledger.pending_units()
    assert [[clip.path for clip in unit.clips] for unit in units] == [["d.avi"], ["a.avi", "b.avi"], ["c.avi"]]
    assert [unit.split for unit in units] == ["test", "train", "train"]
    assert [unit.unit_id for unit in units] == ["g000-u000000", "g000-u000001", "g000-u000002"]


def test_units_are_cut_as_any_sequence_is(local):
    local.plan([clip_named(f"{name}.avi") for name in "abcdefg"], **{**PLAN, "clips_per_shard": 2})
    units = local.units()
    for part in (slice(1, 3), slice(0, None, 2), slice(1, None, 2), slice(None, None, -1), slice(9, None)):
        assert list(units[part]) == list(units)[part]


def test_a_committed_unit_is_not_pending_and_its_shard_reads_back(ledger):
    ledger.plan(CLIPS, **PLAN)
    first = ledger.pending_units()[1]
    entry = commit(ledger, first)
    assert first.unit_id not in {unit.unit_id for unit in ledger.pending_units()}
    [shard] = entry["shards"]
    table = pq.read_table(pa.BufferReader(ledger.storage.read(shard["path"])))
    assert table.num_rows == shard["rows"] == 4
    assert table.schema.equals(EXAMPLE_SCHEMA, check_metadata=True)


def test_the_second_commit_of_a_unit_changes_nothing(ledger):
    ledger.plan(CLIPS, **PLAN)
    unit = ledger.pending_units()[0]
    first, second = commit(ledger, unit), commit(ledger, unit)
    assert second == first
    assert list(ledger.storage.sizes("examples")) == [first["shards"][0]["path"]]


def test_every_input_has_one_state_at_any_moment(ledger):
    ledger.plan(CLIPS, **PLAN)
    for unit in [None, *ledger.pending_units()]:
        if unit is not None:
            commit(ledger, unit)
        audit = ledger.audit()
        assert audit.holds
        assert audit.num_inputs == sum(audit.num_by_state.values()) == 4
    assert audit.num_by_state == {"done": 4, "no_face": 0, "quarantined": 0, "retryable": 0}
    assert str(audit).endswith("nothing is missing")


def test_an_empty_unit_has_a_shard_with_the_same_columns(local):
    local.plan(CLIPS, **PLAN)
    entry = commit(local, local.pending_units()[0], state=State.QUARANTINED)
    table = pq.read_table(local.storage.path(entry["shards"][0]["path"]))
    assert table.num_rows == 0
    assert table.schema.equals(EXAMPLE_SCHEMA)


def test_planning_again_adds_nothing(local):
    local.plan(CLIPS, **PLAN)
    assert local.plan(CLIPS, **PLAN)[0] == []
    assert len(local.units()) == 3


def test_a_run_begins_with_one_reading_of_the_ledger(s3):
    ledger = Ledger(s3.url("out"))
    ledger.plan(CLIPS[:-1], **PLAN)
    commit(ledger, ledger.pending_units()[0])
    read = []
    events = ledger.storage.filesystem.s3.meta.events
    events.register("before-call.s3.GetObject", lambda params, **_: read.append(params["url_path"]))
    told, pending = ledger.plan(CLIPS, **PLAN)
    assert told == ["1 new inputs added to the plan of 3"]
    assert len(read) == len(set(read)) == 4  # run.json, g000.arrow, the entry, and the entries in one object
    assert list(pending) == list(ledger.pending_units())


def test_new_inputs_are_added_and_removed_ones_are_kept_and_told(local):
    local.plan(CLIPS, **PLAN)
    told, _ = local.plan([*CLIPS[1:], clip_named("e.avi")], **PLAN)
    assert told == [
        "1 new inputs added to the plan of 4",
        "1 inputs of the plan are no longer in the input (kept): a.avi",
    ]
    assert [unit.unit_id for unit in local.units()][-1] == "g001-u000000"
    assert len(local.outcomes()) == 5


def test_retryable_clips_are_tried_again_and_the_latest_unit_decides(local):
    local.plan(CLIPS, **PLAN)
    for unit in local.pending_units():
        commit(local, unit, state=State.RETRYABLE if unit.split == "test" else State.DONE)
    assert local.plan(CLIPS, **PLAN)[0] == ["1 retryable inputs are tried again"]
    assert local.plan(CLIPS, **PLAN)[0] == []
    [again] = local.pending_units()
    assert [clip.path for clip in again.clips] == ["d.avi"]
    commit(local, again)
    assert local.audit().num_by_state["done"] == 4


def test_another_config_is_refused_with_the_difference(ledger):
    ledger.plan(CLIPS, **PLAN)
    with pytest.raises(LedgerError, match=r"face_px 224 -> 112.*--force-new"):
        ledger.plan(CLIPS, **{**PLAN, "config": {"face_px": 112}})
    with pytest.raises(LedgerError, match="kind 'examples', not 'predictions'"):
        ledger.plan(CLIPS, **{**PLAN, "kind": "predictions"})


def test_other_versions_are_told_not_refused(local):
    local.plan(CLIPS, **PLAN)
    ([line], _) = local.plan(CLIPS, **{**PLAN, "versions": {"python": "4"}})
    assert "python '3' -> '4'" in line


def test_a_moved_corpus_is_read_where_it_lies_now(local):
    local.plan(CLIPS, **PLAN)
    moved = [Clip(**{**{name: getattr(clip, name) for name in clip.__slots__}, "url": "/new"}) for clip in CLIPS]
    assert {clip.url for unit in local.pending_units(moved) for clip in unit.clips} == {"/new"}


def test_the_audit_sees_a_lost_a_cut_and_a_doubled_shard(local):
    local.plan(CLIPS, **PLAN)
    entries = [commit(local, unit) for unit in local.pending_units()]
    path = entries[0]["shards"][0]["path"]
    whole = local.storage.read(path)
    local.storage.put(path, whole[:-1])
    assert f"has {len(whole) - 1} bytes, not {len(whole)}" in str(local.audit())
    local.storage.delete(path)
    assert "has no bytes" in str(local.audit())
    local.storage.put(path, whole)
    assert local.audit().holds
    local.add_generation([CLIPS[0]], clips_per_shard=2)
    commit(local, local.pending_units()[0])
    assert "1 clips are done in more than one unit" in str(local.audit())


def test_the_audit_sees_a_clip_that_an_entry_forgot(local):
    local.plan(CLIPS, **PLAN)
    for unit in local.pending_units():
        commit(local, unit)
    name = "ledger/g000-u000001.json"
    entry = json.loads(local.storage.read(name))
    entry["outcomes"].pop()
    local.storage.put(name, json.dumps(entry).encode())
    audit = local.audit()
    assert not audit.holds
    assert "g000-u000001 does not account for exactly the clips" in str(audit)


def test_orphans_are_invisible_and_swept(ledger):
    ledger.plan(CLIPS, **PLAN)
    for unit in ledger.pending_units():
        commit(ledger, unit)
    ledger.storage.put("examples/train/g000-u000001-dead.parquet", b"an orphan")
    assert ledger.audit().holds
    assert ledger.sweep() == ["examples/train/g000-u000001-dead.parquet"]
    assert len(ledger.storage.sizes("examples")) == 3


def test_a_sweep_leaves_the_shard_of_an_attempt_that_may_still_commit(local):
    """An actor of a killed driver wrote its shard; the next run sweeps before that actor creates the entry."""
    local.plan(CLIPS, **PLAN)
    late, unit = local.pending_units()[:2]
    create, swept = local.storage.create, []

    def create_after_a_sweep(name, data):
        swept.extend(Ledger(local.storage.url).sweep())
        return create(name, data)

    commit(local, unit)
    local.storage.create = create_after_a_sweep
    commit(local, late)
    assert swept == []
    assert local.audit().holds


def test_finishing_twice_gives_the_same_manifest(local):
    local.plan(CLIPS, **PLAN)
    for unit in local.pending_units():
        commit(local, unit)
    local.finish(local.audit(), input_description="four clips")
    first = local.storage.read("manifest.json")
    manifest = json.loads(first)
    assert sum(shard["rows"] for shard in manifest["shards"]) == manifest["counts"]["rows"] == 8
    assert local.storage.exists("_SUCCESS")
    local.finish(local.audit(), input_description="four clips")
    assert local.storage.read("manifest.json") == first


def test_success_is_said_only_when_the_audit_holds_and_nothing_is_pending(local):
    local.plan(CLIPS, **PLAN)
    units = local.pending_units()
    entry = commit(local, units[0])
    local.finish(local.audit(), input_description="four clips")
    assert not local.storage.exists("_SUCCESS")
    for unit in units[1:]:
        commit(local, unit)
    local.finish(local.audit(), input_description="four clips")
    assert local.storage.exists("_SUCCESS")
    local.storage.delete(entry["shards"][0]["path"])
    local.finish(local.audit(), input_description="four clips")
    assert not local.storage.exists("_SUCCESS")


def test_a_lost_shard_is_made_again_once_its_entry_is_deleted(local):
    local.plan(CLIPS, **PLAN)
    for unit in local.pending_units():
        commit(local, unit)
    local.storage.delete(local.shards()[0]["path"])
    assert "delete ledger/g000-u000000.json and run again" in str(local.audit())
    local.storage.delete("ledger/g000-u000000.json")
    [again] = local.pending_units()
    commit(local, again)
    assert local.audit().holds


def test_a_second_run_on_one_output_is_refused(ledger):
    refusal = rf"another run \(pid {os.getpid()} on .*wait until it ends"
    with ledger.lock(), pytest.raises(LedgerError, match=refusal), ledger.lock():
        pytest.fail("two runs hold one output")
    with ledger.lock():
        assert ledger.storage.exists("lock.json")
    assert not ledger.storage.exists("lock.json")


def test_the_lock_of_a_killed_run_is_taken_over(local):
    script = (
        "import sys, time\nfrom pipeline.ledger import Ledger\n"
        "with Ledger(sys.argv[1]).lock():\n    print('held', flush=True)\n    time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, local.storage.url], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(LedgerError, match=f"pid {owner.pid}"), local.lock():
        pytest.fail("two runs hold one output")
    owner.kill()
    owner.wait()
    owner.stdout.close()
    with local.lock():
        pass


def test_the_lock_of_a_silent_run_elsewhere_expires(local):
    held = {"token": "t", "host": "elsewhere", "pid": 1, "started": 0.0, "heartbeat": time.time() - 30}
    local.storage.put("lock.json", json.dumps(held).encode())
    with pytest.raises(LedgerError, match="pid 1 on elsewhere"), local.lock():
        pytest.fail("two runs hold one output")
    local.storage.put("lock.json", json.dumps({**held, "heartbeat": time.time() - 61}).encode())
    with local.lock():
        pass


def test_outcomes_rest_in_the_columns_of_their_record():
    assert OUTCOME_SCHEMA.names == [field.name for field in fields(Outcome)]


def test_many_entries_are_kept_in_one_object_that_equals_them(ledger, monkeypatch):
    monkeypatch.setattr("pipeline.ledger.ledger.ENTRIES_AT_ONCE", 1)
    ledger.plan(CLIPS, **PLAN)
    for unit in ledger.pending_units()[:2]:
        commit(ledger, unit)
    ledger.finish(ledger.audit(), input_description="four clips")
    first = ledger.snapshot()
    assert first.num_read_singly == 0
    assert [head["unit"] for head in first.heads] == ["g000-u000000", "g000-u000001"]
    commit(ledger, ledger.pending_units()[0], state=State.QUARANTINED)
    second = ledger.snapshot()
    assert second.num_read_singly == 1
    ledger.storage.delete("compact/entries.arrow")
    third = ledger.snapshot()
    assert third.num_read_singly == 3
    assert third.heads == second.heads
    assert third.outcomes.equals(second.outcomes)
    assert ledger.audit(second) == ledger.audit(third)


def test_an_entry_deleted_after_it_was_kept_is_done_again_with_its_new_shard(local, monkeypatch):
    monkeypatch.setattr("pipeline.ledger.ledger.ENTRIES_AT_ONCE", 1)
    local.plan(CLIPS, **PLAN)
    for unit in local.pending_units():
        commit(local, unit)
    local.finish(local.audit(), input_description="four clips")
    lost = local.shards()[0]
    local.storage.delete(lost["path"])
    local.storage.delete(f"ledger/{lost['unit']}.json")
    local.plan(CLIPS, **PLAN)
    entry = commit(local, local.pending_units()[0])
    assert local.audit().holds
    assert local.shards()[0] == entry["shards"][0] != lost


def test_a_name_that_is_no_utf8_survives_the_columns(local):
    local.plan(CLIPS[:1], **PLAN)
    [unit] = local.pending_units()
    outcome = Outcome(
        clip_id=unit.clips[0].clip_id, path="a.avi", state=State.QUARANTINED, reason="unreadable", detail="no \udcff"
    )
    local.commit(unit, tables={}, outcomes=[outcome], facts={})
    [found] = local.outcomes()
    assert found.detail == "no \\udcff"
    local.finish(local.audit(), input_description="one clip")
    assert json.loads(local.storage.read("outcomes.jsonl"))["detail"] == found.detail
