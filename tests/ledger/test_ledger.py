import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ledgers import audited, finish, pending, planned, sweep

from pipeline.ledger.entries import entry_texts
from pipeline.ledger.files import json_bytes, json_list, json_with_list
from pipeline.ledger.forgotten import read_records
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.lock import LedgerError, RunLock, identity, started
from pipeline.ledger.outputs import model_folders, one_run_in, runs_in
from pipeline.ledger.retry import verify
from pipeline.records.clips import Clip
from pipeline.records.columns import table_of
from pipeline.records.faces import EXAMPLE_SCHEMA, Box, Example
from pipeline.records.outcomes import OUTCOME_SCHEMA, Outcome, State
from pipeline.runtime.describe import describe_audit
from pipeline.storage.store import Storage

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
    planned(ledger, CLIPS[::-1], **PLAN)
    units = pending(ledger)
    assert [[clip.path for clip in unit.clips] for unit in units] == [["d.avi"], ["a.avi", "b.avi"], ["c.avi"]]
    assert [unit.split for unit in units] == ["test", "train", "train"]
    assert [unit.unit_id for unit in units] == ["g000-u000000", "g000-u000001", "g000-u000002"]


def test_units_are_cut_as_any_sequence_is(local):
    planned(local, [clip_named(f"{name}.avi") for name in "abcdefg"], **{**PLAN, "clips_per_shard": 2})
    units = list(local.snapshot().units())
    for part in (slice(1, 3), slice(0, None, 2), slice(1, None, 2), slice(None, None, -1), slice(9, None)):
        assert list(units[part]) == list(units)[part]


@pytest.mark.lengthy
def test_a_committed_unit_is_not_pending_and_its_shard_reads_back(ledger):
    planned(ledger, CLIPS, **PLAN)
    first = pending(ledger)[1]
    entry = commit(ledger, first)
    assert first.unit_id not in {unit.unit_id for unit in pending(ledger)}
    [shard] = entry["shards"]
    table = pq.read_table(pa.BufferReader(ledger.storage.read(shard["path"])))
    assert table.num_rows == shard["rows"] == 4
    assert table.schema.equals(EXAMPLE_SCHEMA, check_metadata=True)


def test_the_second_commit_of_a_unit_changes_nothing(ledger):
    planned(ledger, CLIPS, **PLAN)
    unit = pending(ledger)[0]
    first, second = commit(ledger, unit), commit(ledger, unit)
    assert second == first
    assert list(ledger.storage.sizes("examples")) == [first["shards"][0]["path"]]


@pytest.mark.lengthy
def test_every_input_has_one_state_at_any_moment(ledger):
    planned(ledger, CLIPS, **PLAN)
    for unit in [None, *pending(ledger)]:
        if unit is not None:
            commit(ledger, unit)
        found = audited(ledger)
        assert found.holds
        assert found.num_inputs == sum(found.num_by_state.values()) == 4
    assert found.counted == {"done": 4, "no_face": 0, "quarantined": 0, "retryable": 0}
    assert describe_audit(found).endswith("nothing is missing")


def test_an_empty_unit_has_a_shard_with_the_same_columns(local):
    planned(local, CLIPS, **PLAN)
    entry = commit(local, pending(local)[0], state=State.QUARANTINED)
    table = pq.read_table(local.storage.path(entry["shards"][0]["path"]))
    assert table.num_rows == 0
    assert table.schema.equals(EXAMPLE_SCHEMA)


def test_planning_again_adds_nothing(local):
    planned(local, CLIPS, **PLAN)
    assert planned(local, CLIPS, **PLAN)[0] == []
    assert len(list(local.snapshot().units())) == 3


@pytest.mark.lengthy
def test_a_run_begins_with_one_reading_of_the_ledger(s3):
    ledger = Ledger(s3.url("out"))
    planned(ledger, CLIPS[:-1], **PLAN)
    commit(ledger, pending(ledger)[0])
    read = []
    events = ledger.storage.filesystem.s3.meta.events
    events.register("before-call.s3.GetObject", lambda params, **_: read.append(params["url_path"]))
    told, left = planned(ledger, CLIPS, **PLAN)
    assert told == ["1 new inputs added to the plan of 3"]
    assert len(read) == len(set(read)) == 3  # run.json, g000.arrow and the entry
    assert list(left) == pending(ledger)


def test_new_inputs_are_added_and_removed_ones_are_kept_and_told(local):
    planned(local, CLIPS, **PLAN)
    told, _ = planned(local, [*CLIPS[1:], clip_named("e.avi")], **PLAN)
    assert told == [
        "1 new inputs added to the plan of 4",
        "1 inputs of the plan are no longer in the input (kept): a.avi",
    ]
    assert [unit.unit_id for unit in list(local.snapshot().units())][-1] == "g001-u000000"
    assert len(list(local.snapshot().outcomes())) == 5


@pytest.mark.lengthy
def test_retryable_clips_are_tried_again_and_the_latest_unit_decides(local):
    planned(local, CLIPS, **PLAN)
    for unit in pending(local):
        commit(local, unit, state=State.RETRYABLE if unit.split == "test" else State.DONE)
    assert planned(local, CLIPS, **PLAN)[0] == ["1 retryable inputs are tried again"]
    assert planned(local, CLIPS, **PLAN)[0] == []
    [again] = pending(local)
    assert [clip.path for clip in again.clips] == ["d.avi"]
    commit(local, again)
    assert audited(local).num_by_state["done"] == 4


@pytest.mark.lengthy
def test_another_config_is_refused_with_the_difference(ledger):
    planned(ledger, CLIPS, **PLAN)
    with pytest.raises(LedgerError, match=r"face_px 224 -> 112.*--force-new"):
        planned(ledger, CLIPS, **{**PLAN, "config": {"face_px": 112}})
    with pytest.raises(LedgerError, match="kind 'examples', not 'predictions'"):
        planned(ledger, CLIPS, **{**PLAN, "kind": "predictions"})


def test_other_versions_are_told_not_refused(local):
    planned(local, CLIPS, **PLAN)
    ([line], _) = planned(local, CLIPS, **{**PLAN, "versions": {"python": "4"}})
    assert "python '3' -> '4'" in line


def test_a_moved_corpus_is_read_where_it_lies_now(local):
    planned(local, CLIPS, **PLAN)
    moved = [Clip(**{**{name: getattr(clip, name) for name in clip.__slots__}, "url": "/new"}) for clip in CLIPS]
    assert {clip.url for unit in pending(local, moved) for clip in unit.clips} == {"/new"}


@pytest.mark.lengthy
def test_the_audit_sees_a_lost_a_cut_and_a_doubled_shard(local):
    planned(local, CLIPS, **PLAN)
    entries = [commit(local, unit) for unit in pending(local)]
    path = entries[0]["shards"][0]["path"]
    whole = local.storage.read(path)
    local.storage.put(path, whole[:-1])
    assert f"has {len(whole) - 1} bytes, not {len(whole)}" in describe_audit(audited(local))
    local.storage.delete(path)
    assert "has no bytes" in describe_audit(audited(local))
    local.storage.put(path, whole)
    assert audited(local).holds
    snapshot = local.snapshot()
    snapshot.choose_again([CLIPS[0].clip_id])
    local.add_generation(snapshot, clips_per_shard=2)
    commit(local, pending(local)[0])
    assert "1 clips are done in more than one unit" in describe_audit(audited(local))


def test_the_audit_sees_a_clip_that_an_entry_forgot(local):
    planned(local, CLIPS, **PLAN)
    for unit in pending(local):
        commit(local, unit)
    name = "ledger/g000-u000001.json"
    entry = json.loads(local.storage.read(name))
    entry["outcomes"].pop()
    local.storage.put(name, json.dumps(entry).encode())
    found = audited(local)
    assert not found.holds
    assert "g000-u000001 does not account for exactly the clips" in describe_audit(found)


@pytest.mark.lengthy
def test_orphans_are_invisible_and_swept(ledger):
    planned(ledger, CLIPS, **PLAN)
    for unit in pending(ledger):
        commit(ledger, unit)
    ledger.storage.put("examples/train/g000-u000001-dead.parquet", b"an orphan")
    assert audited(ledger).holds
    assert sweep(ledger) == ["examples/train/g000-u000001-dead.parquet"]
    assert len(ledger.storage.sizes("examples")) == 3


def test_a_sweep_leaves_the_shard_of_an_attempt_that_may_still_commit(local):
    """An actor of a killed driver wrote its shard; the next run sweeps before that actor creates the entry."""
    planned(local, CLIPS, **PLAN)
    late, unit = pending(local)[:2]
    create, swept = local.storage.create, []

    def create_after_a_sweep(name, data):
        swept.extend(sweep(Ledger(local.storage.url)))
        return create(name, data)

    commit(local, unit)
    local.storage.create = create_after_a_sweep
    commit(local, late)
    assert swept == []
    assert audited(local).holds


def test_finishing_twice_gives_the_same_manifest(local):
    planned(local, CLIPS, **PLAN)
    for unit in pending(local):
        commit(local, unit)
    finish(local)
    first = local.storage.read("manifest.json")
    manifest = json.loads(first)
    assert sum(shard["rows"] for shard in manifest["shards"]) == manifest["counts"]["rows"] == 8
    assert local.storage.exists("_SUCCESS")
    finish(local)
    assert local.storage.read("manifest.json") == first


@pytest.mark.lengthy
def test_success_is_said_only_when_the_audit_holds_and_nothing_is_pending(local):
    planned(local, CLIPS, **PLAN)
    units = pending(local)
    entry = commit(local, units[0])
    finish(local)
    assert not local.storage.exists("_SUCCESS")
    for unit in units[1:]:
        commit(local, unit)
    finish(local)
    assert local.storage.exists("_SUCCESS")
    local.storage.delete(entry["shards"][0]["path"])
    finish(local)
    assert not local.storage.exists("_SUCCESS")


@pytest.mark.lengthy
def test_a_lost_shard_is_made_again_once_its_entry_is_deleted(local):
    planned(local, CLIPS, **PLAN)
    for unit in pending(local):
        commit(local, unit)
    local.storage.delete(local.shards()[0]["path"])
    assert "delete ledger/g000-u000000.json and run again" in describe_audit(audited(local))
    local.storage.delete("ledger/g000-u000000.json")
    [again] = pending(local)
    commit(local, again)
    assert audited(local).holds


def test_a_second_run_on_one_output_is_refused(ledger):
    refusal = rf"another run \(pid {os.getpid()} on .*wait until it ends"
    with ledger.lock(), pytest.raises(LedgerError, match=refusal), ledger.lock():
        pytest.fail("two runs hold one output")
    with ledger.lock():
        assert ledger.storage.exists("lock.json")
    assert not ledger.storage.exists("lock.json")


@pytest.mark.lengthy
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


def test_the_lock_of_a_killed_run_that_nobody_waits_for_is_taken_over(local):
    """In a container whose first process waits for no child, a killed one stays in the table of processes."""
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    held = {**identity(), "pid": killed.pid, "started": started(killed.pid), "token": "t", "heartbeat": 3}
    local.storage.put("lock.json", json_bytes(held))
    with pytest.raises(LedgerError, match=f"pid {killed.pid}"), local.lock():
        pytest.fail("two runs hold one output")
    killed.kill()
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # It has ended, and is still in the table.
    try:
        with local.lock():
            pass
    finally:
        killed.wait()


def test_the_lock_of_a_process_whose_id_another_has_now_is_taken_over(local):
    local.storage.put("lock.json", json_bytes({**identity(), "started": "tick 1", "token": "t", "heartbeat": 3}))
    with local.lock():
        pass


def held_elsewhere(**changes):
    return json.dumps({"token": "t", "host": "elsewhere", "pid": 1, "started": 0.0, "heartbeat": 0, **changes}).encode()


@pytest.mark.lengthy
def test_the_lock_of_a_silent_run_elsewhere_expires(local, monkeypatch):
    """By this process's own clock: what the owner's says, in the past or the future, decides nothing."""
    monkeypatch.setattr("pipeline.ledger.lock.LOCK_EXPIRES_SECONDS", 0.5)
    for heartbeat in (0, time.time() - 3600, time.time() + 3600):
        local.storage.put("lock.json", held_elsewhere(heartbeat=heartbeat))
        waited = []
        with RunLock(local.storage, say_waiting=waited.append):
            pass
        assert waited == [0.5]


@pytest.mark.parametrize(
    "place",
    [
        {},
        {"host": socket.gethostname()},
        {**identity(), "pid_namespace": "pid:[1]"},
        {**identity(), "started": time.time() - 7200},
    ],
    ids=["host", "old", "namespace", "clock"],
)
def test_a_live_run_that_cannot_be_looked_up_keeps_its_lock(local, place, monkeypatch):
    """On another machine, of a version without namespaces, in another container of the same host name, or begun at a
    time of day that is another one now."""
    monkeypatch.setattr("pipeline.ledger.lock.LOCK_EXPIRES_SECONDS", 5.0)
    monkeypatch.setattr("pipeline.ledger.lock.LOOK_SECONDS", 0.05)
    beats = itertools.count()
    stop = threading.Event()

    def beat():
        while not stop.wait(0.05):
            local.storage.put("lock.json", held_elsewhere(**{**place, "pid": 2, "heartbeat": next(beats)}))

    local.storage.put("lock.json", held_elsewhere(**place))
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LedgerError, match="another run"), local.lock():
            pytest.fail("two runs hold one output")
    finally:
        stop.set()
        thread.join()


def test_a_damaged_lock_is_taken_over(local, monkeypatch):
    monkeypatch.setattr("pipeline.ledger.lock.LOCK_EXPIRES_SECONDS", 0.2)
    local.storage.put("lock.json", b"")
    with local.lock():
        pass


def test_outcomes_rest_in_the_columns_of_their_record():
    assert OUTCOME_SCHEMA.names == [field.name for field in fields(Outcome)]


def texts_of(entries):
    return entry_texts({entry["unit"]: json_bytes(entry) for entry in entries})


def everything(snapshot):
    tables = ("plan", "entries", "shards", "outcomes")
    return {name: list(snapshot.database.rows(f"select * from {name} order by all")) for name in tables}


def read_names(ledger, monkeypatch):
    """A snapshot, and the names of the entries that were read one by one for it."""
    names, read_many = [], Storage.read_many
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "read_many", lambda self, given: names.extend(given) or read_many(self, given))
        return ledger.snapshot(), names


@pytest.mark.lengthy
def test_many_entries_are_kept_in_one_object_that_equals_them(ledger, monkeypatch):
    planned(ledger, CLIPS, **PLAN)
    ledger.compact(texts_of(commit(ledger, unit) for unit in pending(ledger)[:2]))
    first, read = read_names(ledger, monkeypatch)
    assert read == []
    assert [row["unit"] for row in first.database.rows("select unit from entries order by 1")] == [
        "g000-u000000",
        "g000-u000001",
    ]
    commit(ledger, pending(ledger)[0], state=State.QUARANTINED)
    second, read = read_names(ledger, monkeypatch)
    assert read == ["ledger/g000-u000002.json"]
    (compacted,) = ledger.storage.sizes("compact")
    whole = ledger.storage.read(compacted)
    for damage in (whole[:-9], whole[:200] + b"x" + whole[201:], b""):
        ledger.storage.put(compacted, damage)
        third, read = read_names(ledger, monkeypatch)
        assert len(read) == 3
        assert everything(third) == everything(second)
        assert audited(ledger, third) == audited(ledger, second)


def test_fetched_entries_are_handed_on_to_be_kept_where_they_are_many(local, monkeypatch):
    monkeypatch.setattr("pipeline.ledger.ledger.ENTRIES_AT_ONCE", 1)
    planned(local, CLIPS, **PLAN)
    for unit in pending(local):
        commit(local, unit)
    local.snapshot(compacts=True)
    assert len(local.storage.sizes("compact")) == 3
    _, read = read_names(local, monkeypatch)
    assert read == []


@pytest.mark.lengthy
def test_an_entry_deleted_after_it_was_kept_is_done_again_with_its_new_shard(local):
    planned(local, CLIPS, **PLAN)
    local.compact(texts_of(commit(local, unit) for unit in pending(local)))
    lost = local.shards()[0]
    local.storage.delete(lost["path"])
    local.storage.delete(f"ledger/{lost['unit']}.json")
    planned(local, CLIPS, **PLAN)
    (unit,) = pending(local)
    entry = commit(local, unit, state=State.QUARANTINED)
    assert audited(local).holds
    assert local.shards()[0] == entry["shards"][0] != lost


@pytest.mark.lengthy
def test_an_entry_made_in_place_of_a_deleted_one_is_not_taken_for_its_copy(local):
    """Both have the same number of bytes: the copy goes when the next run sees that its entry is gone."""
    planned(local, CLIPS, **PLAN)
    local.compact(texts_of(commit(local, unit) for unit in pending(local)))
    old = local.shards()[0]
    local.storage.delete(old["path"])
    local.storage.delete(f"ledger/{old['unit']}.json")
    local.snapshot()
    assert local.storage.sizes("compact")  # Only who holds the lock may.
    snapshot = local.snapshot(compacts=True)
    assert local.storage.sizes("compact") == {}
    assert len(list(snapshot.shards())) == 2
    (unit,) = pending(local)
    examples = [replace(example, face_jpeg=b"ecaf") for clip in unit.clips for example in examples_of(clip)]
    outcomes = [Outcome(clip_id=clip.clip_id, path=clip.path, state=State.DONE, num_examples=2) for clip in unit.clips]
    entry = local.commit(unit, tables={"examples": table_of(examples, EXAMPLE_SCHEMA)}, outcomes=outcomes, facts={})
    new = local.shards()[0]
    assert new == entry["shards"][0]
    assert (new["bytes"], new["sha256"] == old["sha256"]) == (old["bytes"], False)
    assert audited(local).holds


KILLED_AT = """
import os, signal, sys
from pipeline.ledger import ledger as module
from pipeline.ledger.ledger import Ledger

moment, count = sys.argv[2], int(sys.argv[3])
module.ENTRIES_AT_ONCE = 2
calls = 0
real = getattr(os, moment)


def killing(*arguments):
    global calls
    calls += 1
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)


ledger = Ledger(sys.argv[1])
setattr(os, moment, killing)
ledger.snapshot(compacts=True)
"""


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("moment", "count"), [("fsync", 1), ("replace", 1), ("fsync", 2), ("fsync", 3), ("replace", 2)]
)
def test_a_kill_while_entries_are_compacted_changes_nothing(local, monkeypatch, moment, count):
    """Before the bytes are safe, before they have their name, after it, and in the second object."""
    planned(local, [clip_named(f"{number}.avi") for number in range(10)], **PLAN)
    for unit in pending(local):
        commit(local, unit)
    before, shards = everything(local.snapshot()), local.shards()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT, local.storage.url, moment, str(count)], check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    snapshot, read = read_names(local, monkeypatch)
    assert everything(snapshot) == before
    assert len(read) == (5 if count == 1 else 3)
    monkeypatch.setattr("pipeline.ledger.ledger.ENTRIES_AT_ONCE", 2)
    local.snapshot(compacts=True)
    again, read = read_names(local, monkeypatch)
    assert len(read) <= 1
    assert everything(again) == before
    assert audited(local, again).holds
    assert local.shards() == shards
    assert verify(local).faults == ()


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["plan/run.json", "plan/g000.arrow", "ledger/g000-u000001.json"])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_file_of_ours_that_cannot_be_read_is_named_with_its_cure(local, name, keep):
    planned(local, CLIPS, **PLAN)
    for unit in pending(local):
        commit(local, unit)
    whole = local.storage.read(name)
    local.storage.put(name, whole[: int(keep * len(whole))])
    with pytest.raises(LedgerError) as caught:
        planned(local, CLIPS, **PLAN)
    assert f"{name}" in str(caught.value)
    assert "cannot be read" in str(caught.value)
    assert ("delete it, and its unit is done again" if name.startswith("ledger") else "put it back") in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


# What file managers, copying tools, consoles and people leave; a name that ends in / is an S3 console's folder.
FOREIGN = (
    *(".DS_Store", "._g000-u000000.json", "._g000.arrow", ".g000.arrow.Xy12Za", ".g000-u000000.json.3fGh7K"),
    *("notes.txt", "g000.arrow.tmp", "g000 (1).arrow", "g000-u000000.json~", "g000-u000000 copy.json", "Thumbs.db"),
    *("desktop.ini", ".nfs000000000000a3f000000001", ".gitkeep", "old/g000.arrow", "old/g000-u000000.json", "old/"),
    *(".~tmp~/g000-u000000.json", "g000-u000000.json.part", "@eaDir/g000-u000000.json@SynoEAStream", "_$folder$"),
)


@pytest.mark.lengthy
def test_names_that_are_not_ours_are_ignored(ledger):
    planned(ledger, CLIPS, **PLAN)
    for unit in pending(ledger):
        commit(ledger, unit)
    before, name = everything(ledger.snapshot()), ledger.shards()[0]["path"].rpartition("/")[2]
    for folder in ("plan", "ledger", "compact", "examples", "examples/train", "nights"):
        for foreign in ("", *FOREIGN):
            if not ledger.storage.is_local:
                ledger.storage.filesystem.pipe_file(ledger.storage.path(f"{folder}/{foreign}"), b"")
            elif foreign and not foreign.endswith("/"):
                ledger.storage.put(f"{folder}/{foreign}", b"not ours")
    for foreign in (f"._{name}", f".{name}.Xy12Za", f"{name}.part", f".~tmp~/{name}"):
        ledger.storage.put(f"examples/train/{foreign}", b"not ours")
    assert everything(ledger.snapshot()) == before
    assert planned(ledger, CLIPS, **PLAN)[0] == []
    found = audited(ledger)
    assert found.holds
    assert found.foreign_shards == ()
    assert sweep(ledger) == []
    assert verify(ledger).faults == verify(ledger).foreign == ()


@pytest.mark.lengthy
def test_a_parquet_file_that_no_entry_names_is_told_and_kept(local):
    planned(local, CLIPS, **PLAN)
    for unit in pending(local)[:2]:
        commit(local, unit)
    shard = local.shards()[0]["path"]
    copy = f"{shard.rpartition('/')[0]}/backup.parquet"
    local.storage.put(copy, local.storage.read(shard))
    waiting = "examples/train/g000-u000002-0123456789ab.parquet"
    local.storage.put(waiting, b"of an actor that is about to commit")
    found = audited(local)
    assert found.holds
    assert found.foreign_shards == (copy,)
    assert f"move away {copy}" in describe_audit(found)
    assert sweep(local) == []


def test_entries_whose_plan_was_lost_are_refused_before_anything_is_written(local):
    planned(local, CLIPS, **PLAN)
    for unit in pending(local):
        commit(local, unit)
    for name in local.storage.sizes("plan"):
        local.storage.delete(name)
    before = local.storage.sizes("")
    with pytest.raises(LedgerError, match=r"ledger/g000-u000000\.json is of no unit in plan/.*put plan/ back"):
        planned(local, CLIPS, **PLAN)
    assert local.storage.sizes("") == before


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["plan/run.json", "plan/g000.arrow", "plan/g001.arrow"])
def test_a_plan_that_was_copied_in_part_is_refused_before_anything_is_written(ledger, name):
    planned(ledger, CLIPS[:2], **PLAN)
    planned(ledger, CLIPS[:3], **PLAN)
    planned(ledger, CLIPS, **PLAN)
    ledger.storage.delete(name)
    before = ledger.storage.sizes("")
    with pytest.raises(LedgerError, match=rf"{name} is not there, though plan/g002.arrow is.*finish the copy"):
        planned(ledger, CLIPS, **PLAN)
    assert ledger.storage.sizes("") == before


def without(entry, name):
    return {key: value for key, value in entry.items() if key != name}


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "damage",
    [
        lambda _: [],
        lambda _: None,
        lambda _: {},
        lambda entry: without(entry, "outcomes"),
        lambda entry: without(entry, "shards"),
        lambda entry: without(entry, "facts"),
        lambda entry: {**entry, "unit": "g000-u000000"},
        lambda entry: {**entry, "outcomes": [{}]},
        lambda entry: {**entry, "outcomes": [{**entry["outcomes"][0], "state": "fine"}]},
        lambda entry: {**entry, "outcomes": [{**entry["outcomes"][0], "seconds": "long"}]},
        lambda entry: {**entry, "outcomes": [{**entry["outcomes"][0], "num_frames": 2**70}]},
        lambda entry: {**entry, "outcomes": [{**entry["outcomes"][0], "attempts": "two"}]},
        lambda entry: {**entry, "shards": [{**entry["shards"][0], "rows": None}]},
    ],
)
def test_json_that_is_no_entry_is_named_with_its_cure(local, damage):
    planned(local, CLIPS, **PLAN)
    for unit in pending(local):
        commit(local, unit)
    name = "ledger/g000-u000001.json"
    local.storage.put(name, json.dumps(damage(json.loads(local.storage.read(name)))).encode())
    with pytest.raises(LedgerError, match=rf"{name} cannot be read: .*; delete it, and its unit is done again"):
        local.snapshot()


@pytest.mark.parametrize("info", [b"[]", b"{}", b"null", b'{"kind": "examples", "config": {}}', b'{"kind": 1}'])
def test_json_that_says_not_what_the_run_is_is_named_with_its_cure(local, info):
    planned(local, CLIPS, **PLAN)
    local.storage.put("plan/run.json", info)
    with pytest.raises(LedgerError, match=r"plan/run\.json cannot be read: .*; put it back"):
        planned(local, CLIPS, **PLAN)


@pytest.mark.lengthy
def test_a_setting_that_the_saved_config_is_older_than_counts_as_its_default(local):
    planned(local, CLIPS, **PLAN)
    now = {**PLAN, "config": {"face_px": 224, "min_face_px": 0}}
    with pytest.raises(LedgerError, match="min_face_px None -> 0"):
        planned(local, CLIPS, **now)
    assert planned(local, CLIPS, **now, defaults={"face_px": 112, "min_face_px": 0})[0] == []
    with pytest.raises(LedgerError, match="min_face_px 0 -> 40"):
        planned(local, CLIPS, **{**now, "config": {"face_px": 224, "min_face_px": 40}}, defaults={"min_face_px": 0})


@pytest.mark.lengthy
def test_every_shard_is_read_against_its_sha256(ledger):
    planned(ledger, CLIPS, **PLAN)
    for unit in pending(ledger):
        commit(ledger, unit)
    whole = verify(ledger)
    assert (whole.num_shards, whole.faults, whole.foreign) == (3, (), ())
    first, second, third = (shard["path"] for shard in ledger.shards())
    data = ledger.storage.read(first)
    ledger.storage.put(first, data[:50] + bytes([data[50] ^ 1]) + data[51:])  # The same size.
    ledger.storage.delete(second)
    ledger.storage.put(third, data[:-1])
    ledger.storage.put("examples/train/copy.parquet", data)
    found = verify(ledger)
    cure = "put it back, or delete ledger/g000-u00000{}.json and run the job again"
    num_bytes = ledger.shards()[2]["bytes"]
    assert found.faults == (
        f"{first} has other bytes than were committed (its sha256 differs); {cure.format(0)}",
        f"{second} is not there; {cure.format(1)}",
        f"{third} has {len(data) - 1} bytes, not the {num_bytes} that were committed; {cure.format(2)}",
    )
    assert found.foreign == ("examples/train/copy.parquet",)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "name",
    [
        "backup/{shard}",
        "{unit}-0123456789ab copy.parquet",
        "{unit}-0123456789ab (1).parquet",
        "copy-{shard}",
        "x.parquet",
    ],
)
def test_what_no_worker_names_is_told_and_not_swept(local, name):
    planned(local, CLIPS, **PLAN)
    for unit in pending(local):
        commit(local, unit)
    first = local.shards()[0]
    folder, _, shard = first["path"].rpartition("/")
    copy = f"{folder}/{name.format(shard=shard, unit=first['unit'])}"
    local.storage.put(copy, local.storage.read(first["path"]))
    assert sweep(local) == []
    assert audited(local).foreign_shards == (copy,)


@pytest.mark.lengthy
def test_the_same_work_gives_the_same_manifest_elsewhere(tmp_path):
    manifests = []
    for name in ("one", "other"):
        ledger = Ledger(str(tmp_path / name))
        planned(ledger, CLIPS, **PLAN)
        for unit in pending(ledger):
            commit(ledger, unit)
        finish(ledger)
        manifests.append(ledger.storage.read("manifest.json"))
    assert manifests[0] == manifests[1]


def renewed(clip, *, content):
    """The same path with other bytes."""
    return replace(clip, clip_id=f"{clip.path}{content}".encode().hex().ljust(20, "0")[:40], content_id=content)


MD5 = "0123456789abcdef" * 2


@pytest.mark.lengthy
def test_other_bytes_at_a_path_replace_the_input_and_keep_its_split(local):
    clips = [replace(clip, content_id=MD5) for clip in CLIPS]
    planned(local, clips, **PLAN)
    done, *_ = pending(local)
    assert done.clips == (clips[3],)  # d.avi, of the test split
    commit(local, done)
    other = MD5[::-1]
    now = [
        renewed(clips[0], content=other),
        clips[1],
        clips[2],
        replace(renewed(clips[3], content=other), split="train"),
    ]
    told, _ = planned(local, now, **PLAN)
    assert told[1].startswith(
        "2 inputs have other bytes than were planned, and take the place of the old ones: a.avi, d.avi"
    )
    found = audited(local)
    assert found.counted == {"done": 0, "no_face": 0, "quarantined": 0, "retryable": 4, "changed": 2}
    units = pending(local, now)
    assert {clip.clip_id for unit in units for clip in unit.clips if clip.clip_id in unit.replaced} == {
        clips[0].clip_id
    }
    (again,) = (clip for unit in units for clip in unit.clips if clip.clip_id == now[3].clip_id)
    assert again.split == "test"
    assert planned(local, now, **PLAN)[0] == []


def test_a_listing_that_cannot_tell_the_bytes_makes_no_other_input_of_them(local):
    clips = [replace(clip, content_id=MD5) for clip in CLIPS]
    planned(local, clips, **PLAN)
    unseen = [renewed(clips[0], content="missing"), renewed(clips[1], content=""), *clips[2:]]
    assert planned(local, unseen, **PLAN)[0] == []
    assert audited(local).num_inputs == 4


@pytest.mark.lengthy
def test_an_input_that_could_not_be_seen_is_replaced_by_what_lies_there_later(local):
    planned(local, [replace(CLIPS[0], content_id="missing"), *CLIPS[1:]], **PLAN)
    told, _ = planned(local, [renewed(CLIPS[0], content=MD5), *CLIPS[1:]], **PLAN)
    assert "1 inputs have other bytes" in told[1]
    assert audited(local).counted["changed"] == 1


WEB = replace(CLIPS[0], url="http://host/a.avi", content_id="")


@pytest.mark.lengthy
@pytest.mark.parametrize(("first", "second"), [("missing", ""), ("", "missing"), ("", ""), ('"0-an-etag"', "")])
def test_an_address_without_a_hash_is_one_input_whatever_its_server_says(local, first, second):
    planned(local, [replace(WEB, content_id=first, size_bytes=0 if first == "missing" else 7)], **PLAN)
    now = replace(renewed(WEB, content=second), size_bytes=0 if second == "missing" else 7, split="validation")
    assert planned(local, [now], **PLAN)[0] == []
    (unit,) = pending(local, [now])
    assert [clip.split for clip in unit.clips] == [WEB.split]


@pytest.mark.lengthy
def test_an_address_that_has_another_size_holds_an_input_of_its_own(local):
    planned(local, [replace(WEB, size_bytes=7)], **PLAN)
    now = [replace(WEB, size_bytes=8)]
    told, _ = planned(local, now, **PLAN)
    assert told[1].startswith("1 inputs have other bytes than were planned")
    assert audited(local).counted["changed"] == 1
    assert planned(local, now, **PLAN)[0] == []
    assert audited(local).num_inputs == 2


@pytest.mark.lengthy
def test_an_address_that_was_missing_is_read_once_it_is_there(local):
    planned(local, [replace(WEB, size_bytes=0, content_id="missing")], **PLAN)
    (unit,) = pending(local)
    facts = {"clip_id": unit.clips[0].clip_id, "path": "a.avi"}
    gone = Outcome(**facts, state=State.QUARANTINED, reason="missing", stage="fetch")
    local.commit(unit, tables={}, outcomes=[gone], facts={})
    now = [replace(WEB, size_bytes=7)]
    told, _ = planned(local, now, **PLAN)
    assert told[1].startswith("1 inputs have other bytes than were planned")
    (unit,) = pending(local, now)
    assert planned(local, now, **PLAN)[0] == []
    assert audited(local).counted == {"done": 0, "no_face": 0, "quarantined": 0, "retryable": 1, "changed": 1}


@pytest.mark.lengthy
def test_addresses_of_one_path_keep_their_own_inputs(local):
    two = [replace(WEB, clip_id="1" * 20, size_bytes=7), replace(WEB, clip_id="2" * 20, size_bytes=8)]
    planned(local, two, **PLAN)
    assert planned(local, two, **PLAN)[0] == []
    now = [replace(two[0], size_bytes=9), two[1]]
    assert planned(local, now, **PLAN)[0][1].startswith("1 inputs have other bytes")
    assert planned(local, now, **PLAN)[0] == []
    assert audited(local).num_inputs == 3


@pytest.mark.lengthy
def test_a_clip_whose_planned_bytes_are_back_is_tried_again(local):
    clips = [replace(CLIPS[0], content_id=MD5)]
    planned(local, clips, **PLAN)
    (unit,) = pending(local)
    facts = {"clip_id": unit.clips[0].clip_id, "path": "a.avi"}
    changed = Outcome(**facts, state=State.CHANGED, reason="other_bytes", stage="fetch")
    local.commit(unit, tables={}, outcomes=[changed], facts={})
    planned(local, [replace(CLIPS[1], content_id=MD5[::-1])], **PLAN)  # taken away: nothing to try
    assert [clip.path for unit in pending(local) for clip in unit.clips] == ["b.avi"]
    planned(local, clips, **PLAN)
    assert {clip.path for unit in pending(local, clips) for clip in unit.clips} == {"a.avi", "b.avi"}


def test_a_name_that_is_no_utf8_survives_the_columns(local):
    planned(local, CLIPS[:1], **PLAN)
    [unit] = pending(local)
    outcome = Outcome(
        clip_id=unit.clips[0].clip_id,
        path="a.avi",
        state=State.QUARANTINED,
        reason="unreadable",
        detail="no \udcff, 😀 \\ud83d",
    )
    local.commit(unit, tables={}, outcomes=[outcome], facts={})
    [found] = list(local.snapshot().outcomes())
    assert found.detail == "no \\udcff, 😀 \\ud83d"
    finish(local)
    assert json.loads(local.storage.read("outcomes.jsonl"))["detail"] == found.detail


def test_a_page_lists_the_first_inputs_and_those_that_somebody_may_act_on(local):
    planned(local, [clip_named(f"{number}.avi") for number in range(8)], **PLAN)
    states = (State.DONE, State.DONE, State.NO_FACE, State.QUARANTINED)
    for unit, state in zip(pending(local), states, strict=True):
        commit(local, unit, state=state)
    snapshot = local.snapshot()
    found = snapshot.to_list(1, [clip_named("3.avi").clip_id])
    assert found["path"].to_pylist() == ["0.avi", "3.avi", "6.avi"]
    assert snapshot.to_list(100).equals(snapshot.latest())


@pytest.mark.lengthy
def test_an_entry_that_is_older_than_a_column_has_its_default(local, monkeypatch):
    planned(local, CLIPS, **PLAN)
    entries = [commit(local, unit) for unit in pending(local)]
    whole = everything(local.snapshot())["outcomes"]
    younger = ("attempts", "decoder", "decode_integrity", "num_faces_small")
    older = [{name: row[name] for name in row if name not in younger} for row in entries[1]["outcomes"]]
    local.storage.put("ledger/g000-u000001.json", json_bytes({**entries[1], "outcomes": older, "note": "of another"}))
    monkeypatch.setattr("pipeline.ledger.ledger.ENTRIES_AT_ONCE", 2)
    assert everything(local.snapshot(compacts=True))["outcomes"] == whole
    snapshot, read = read_names(local, monkeypatch)
    assert (everything(snapshot)["outcomes"], read) == (whole, [])


def test_entries_that_were_kept_in_one_object_before_a_column_was_have_its_default(local, monkeypatch):
    planned(local, CLIPS, **PLAN)
    entries = [commit(local, unit) for unit in pending(local)]
    whole = everything(local.snapshot())["outcomes"]
    for entry in entries:
        for row in entry["outcomes"]:
            del row["num_faces_small"]
        local.storage.put(f"ledger/{entry['unit']}.json", json_bytes(entry))
    local.compact(texts_of(entries))
    snapshot, read = read_names(local, monkeypatch)
    assert (everything(snapshot)["outcomes"], read) == (whole, [])


def test_the_runs_of_an_output_are_its_own_or_those_of_each_model(tmp_path):
    one = Ledger(str(tmp_path / "data"))
    planned(one, CLIPS, **PLAN)
    assert [run.storage.url for run in runs_in(str(tmp_path / "data"))] == [one.storage.url]
    models = [Ledger(str(tmp_path / "labels" / f"model={name}")) for name in ("b", "a")]
    for model in models:
        planned(model, CLIPS, **PLAN)
    (tmp_path / "labels" / "model=empty").mkdir()
    assert [run.storage.url for run in runs_in(str(tmp_path / "labels"))] == [
        models[1].storage.url,
        models[0].storage.url,
    ]
    with pytest.raises(LedgerError, match="holds the labels of 2 models: model=a, model=b; give one of these folders"):
        one_run_in(str(tmp_path / "labels"))
    for name in ("nothing", "labels/model=empty"):
        with pytest.raises(LedgerError, match="holds no run"):
            runs_in(str(tmp_path / name))


@pytest.mark.parametrize("values", [[], [1], ["é\n", {"a": [1, {"b": []}], "c": {}}, []], [{"path": "x"}] * 3])
def test_a_list_written_a_part_at_a_time_is_the_json_of_all_of_it(values):
    assert b"".join(json_list(values)) + b"\n" == json_bytes(values)
    assert b"".join(json_with_list({"of": 2}, "values", values)) == json_bytes({"of": 2, "values": values})


DEEP = b"[" * 100_000
ENTRY = b'{"unit": "g000-u000000", "facts": %s, "shards": %s, "outcomes": []}'


@pytest.mark.parametrize(
    "data", [DEEP, ENTRY % (DEEP, b"[]"), b"SECRETSAUCE:x:0:0", ENTRY % (b"{}", b'"SECRETSAUCE"'), b"\xff\xfe"]
)
def test_an_entry_that_a_stranger_wrote_is_one_line_that_quotes_nothing(data, local):
    planned(local, CLIPS, **PLAN)
    local.storage.put("ledger/g000-u000000.json", data)
    with pytest.raises(LedgerError, match=r"ledger/g000-u000000.json cannot be read: .*; delete it") as raised:
        local.snapshot()
    assert "SECRET" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("data", [DEEP, b'{"kind": "examples"}', b"3", b"SECRETSAUCE"])
def test_a_plan_that_a_stranger_wrote_is_one_line(data, local):
    local.storage.put("plan/run.json", data)
    with pytest.raises(LedgerError, match=r"plan/run.json cannot be read: ") as raised:
        local.run_info()
    assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_a_file_beside_the_labels_of_a_model_is_not_taken_for_some(place, request, tmp_path):
    url = str(tmp_path) if place == "disk" else request.getfixturevalue("s3").url("labels")
    storage = Storage(url)
    for name in ("model=abc.zip", "model=abc.attempts", "model=def/forgotten.json", "notes/x"):
        storage.put(name, b'{"clip_ids": ["0"], "manifests": []}')
    assert model_folders(storage) == ["model=def"]
    assert read_records(Storage(f"{url}/model=abc")).clip_ids == {"0"}
    if place == "disk":
        (tmp_path / "model=link").symlink_to(tmp_path / "model=def")
        assert model_folders(storage) == ["model=def", "model=link"]
