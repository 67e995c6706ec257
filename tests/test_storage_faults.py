"""What a store does wrong, over a real S3 server behind a proxy that breaks requests."""

import pytest
import s3fs
from fault_proxy import FaultProxy

from pipeline import storage as room
from pipeline.storage import Storage, StorageError, StoreLostError, fetch

TRANSIENT = ("internal_error", "bad_gateway", "slow_down", "reset", "lost_answer")
DAMAGED = ("reset_body", "short", "short_length", "short_unsummed")
CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def proxy(s3, monkeypatch):
    """The way to `s3` for whatever reads the environment, with faults; waits between tries are short."""
    monkeypatch.setattr(room, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(room, "LONGEST_WAIT_SECONDS", 0.1)
    with FaultProxy(s3.endpoint).running() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        yield running
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def storage(s3, proxy):  # noqa: ARG001 (the way to it must be there first)
    return Storage(s3.url("out"))


@pytest.mark.parametrize("kind", TRANSIENT)
def test_whatever_passes_is_tried_again(storage, proxy, kind):
    for method in ("PUT", "GET", "DELETE"):
        proxy.fail(kind, method=method, times=2)
    storage.put("a/b", CONTENT)
    assert storage.create("a/entry", b"mine")
    assert storage.read("a/b") == CONTENT
    assert storage.sizes("a") == {"a/b": len(CONTENT), "a/entry": 4}
    storage.delete("a/b")
    assert not storage.exists("a/b")
    assert proxy.met(kind) == 6


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_answer_is_fetched_again(storage, proxy, kind, tmp_path):
    storage.put("clip", CONTENT)
    proxy.fail(kind, method="GET", path="clip", times=2)
    # Without checksums only the size tells; a caller that knows none reads JSON, whose half does not parse.
    size_bytes = len(CONTENT) if kind == "short_unsummed" else None
    assert storage.read("clip", size_bytes=size_bytes) == CONTENT
    proxy.fail(kind, method="GET", path="clip", times=2)
    fetch(f"{storage.url}/clip", tmp_path / "clip", size_bytes=len(CONTENT))
    assert (tmp_path / "clip").read_bytes() == CONTENT
    assert proxy.met(kind) == 4


def test_a_body_that_stops_coming_is_given_up_and_fetched_again(storage, proxy, monkeypatch, tmp_path):
    storage.put("clip", CONTENT)
    monkeypatch.setattr(room, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(room, "SLOWEST_BYTES_PER_SECOND", 2**24)
    proxy.fail("stall", method="GET", path="clip", times=1)
    fetch(f"{storage.url}/clip", tmp_path / "clip", size_bytes=len(CONTENT))
    assert (tmp_path / "clip").read_bytes() == CONTENT


def test_a_write_whose_answer_is_lost_is_ones_own(storage, proxy):
    proxy.fail("lost_answer", method="PUT", path="entry", times=1)
    assert storage.create("entry", b"attempt 1")
    assert proxy.met("lost_answer") == 1
    proxy.fail("lost_answer", method="PUT", path="entry", times=1)
    assert not storage.create("entry", b"attempt 2")
    assert storage.read("entry") == b"attempt 1"


@pytest.mark.parametrize(
    ("kind", "lost", "message"),
    [
        ("expired", True, r"The provided token has expired\. \(ExpiredToken\); renew the credentials$"),
        ("no_bucket", True, r"does not exist \(NoSuchBucket\); create the bucket, or correct its name$"),
        ("forbidden", False, r"Access Denied \(AccessDenied\); check the permissions$"),
    ],
)
def test_a_fault_that_lasts_is_one_line_with_a_cure(storage, proxy, kind, lost, message):
    storage.put("a", b"1")
    proxy.fail(kind)
    actions = {
        "written": lambda: storage.put("a", b"2"),
        "read": lambda: storage.read("a"),
        "listed": lambda: storage.sizes("a"),
        "deleted": lambda: storage.delete("a"),
    }
    for verb, action in actions.items():
        with pytest.raises(StorageError, match=rf"^{storage.url}/a cannot be {verb}: .*{message}") as caught:
            action()
        assert isinstance(caught.value, StoreLostError) == lost
        assert "\n" not in str(caught.value)
    proxy.mend()
    assert storage.read("a") == b"1"


@pytest.mark.parametrize("kind", ["slow_down", "reset"])
def test_what_does_not_pass_in_time_is_told_with_the_number_of_tries(s3, proxy, kind):
    proxy.fail(kind)
    with pytest.raises(StorageError, match=r"/a cannot be read: .*; tried 2 times; check the address, the network"):
        Storage(s3.url("out"), num_tries=2).read("a")


def test_an_absent_object_is_no_fault(s3, storage, proxy, tmp_path):
    with pytest.raises(FileNotFoundError):
        fetch(s3.url("out/gone"), tmp_path / "gone", size_bytes=1)
    with pytest.raises(FileNotFoundError):
        storage.read("gone")
    assert len(proxy.log) <= 4
