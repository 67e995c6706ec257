import os
import threading

import pytest

from pipeline.storage.retry import StorageError
from pipeline.storage.store import TEMPORARY, Storage


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path):
    if request.param == "local":
        return Storage(str(tmp_path / "odd [name] %03d"))
    return Storage(request.getfixturevalue("s3").url("bucket/folder"))


def test_what_was_put_is_read_and_listed(storage):
    storage.put("a/b.json", b"one")
    storage.put("a/b.json", b"two")
    storage.put("c.bin", b"")
    assert storage.read("a/b.json") == b"two"
    assert storage.sizes("a") == {"a/b.json": 3}
    assert storage.read_many(["c.bin", "a/b.json"]) == {"c.bin": b"", "a/b.json": b"two"}


def test_only_the_first_create_wins(storage):
    assert storage.create("entry", b"first")
    assert not storage.create("entry", b"second")
    assert storage.read("entry") == b"first"


@pytest.mark.lengthy
def test_of_many_creates_at_once_one_wins(storage):
    wins = []

    def attempt(number):
        if storage.create("entry", str(number).encode()):
            wins.append(number)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert storage.read("entry") == str(wins[0]).encode()


def test_absent_things_are_absent(storage):
    with pytest.raises(FileNotFoundError):
        storage.read("nothing")
    assert not storage.exists("nothing")
    assert storage.sizes("nothing") == {}
    storage.delete("nothing")


def test_delete_removes_one_object(storage):
    storage.put("a", b"1")
    storage.put("b", b"2")
    storage.delete("a")
    assert not storage.exists("a")
    assert storage.exists("b")


def test_what_another_process_wrote_is_seen(storage):
    assert storage.sizes("ledger") == {}
    Storage(storage.url).put("ledger/x", b"1")
    assert storage.sizes("ledger") == {"ledger/x": 1}


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    storage = Storage(str(tmp_path))
    storage.put("whole", b"before")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        storage.put("whole", b"after")
    assert os.listdir(tmp_path) == ["whole"]
    assert storage.read("whole") == b"before"


def test_a_temporary_file_of_a_killed_write_is_no_object(tmp_path):
    storage = Storage(str(tmp_path))
    storage.put("a", b"1")
    (tmp_path / f"{TEMPORARY}0123").write_bytes(b"half")
    assert storage.sizes("") == {"a": 1}


@pytest.mark.parametrize("kind", ["pipe", "device", "link", "folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind, tmp_path):
    path = tmp_path / "entry.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "/dev/null")
    with pytest.raises(OSError, match=r"entry.json cannot be read: it is no regular file; move it away"):
        Storage(str(tmp_path)).read("entry.json")


def test_a_folder_in_the_place_of_a_file_is_told_with_the_name_of_that(tmp_path):
    (tmp_path / "a.json").mkdir()
    storage = Storage(str(tmp_path))
    for write in (storage.put, lambda name, data: storage.put_stream(name, [data])):
        with pytest.raises(StorageError, match=r"a.json cannot be written: a folder lies there; move it away"):
            write("a.json", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_stamp_changes_when_an_object_is_written_and_only_then(storage):
    assert dict(storage.stamps("a")) == {}
    for name in ("a/one", "a/b/two", "c"):
        storage.put(name, b"1234")
    before = dict(storage.stamps("a"))
    assert before.keys() == {"a/one", "a/b/two"}
    assert dict(storage.stamps("a")) == before
    storage.put("a/one", b"4321")
    after = dict(storage.stamps("a"))
    assert after["a/b/two"] == before["a/b/two"]
    assert after["a/one"] != before["a/one"]
