"""A web server may claim what it likes and send without end: what is read of it stays bounded."""

import gzip
import http.server
import threading
import time
import tracemalloc

import pytest

from pipeline.preprocess.config import ExtractConfig
from pipeline.preprocess.extractor import MAX_UNREACHED, ClipExtractor
from pipeline.records.clips import Clip
from pipeline.records.documents import DocumentError
from pipeline.sandbox.limits import SandboxLimits
from pipeline.storage import retry, web_files
from pipeline.storage.kept import kept_file
from pipeline.storage.remote import RangedFile, fetch, open_filesystem, read_url
from pipeline.storage.retry import StorageError
from pipeline.storage.web import let_reach

MAX_SENT = 2**29  # of what has no end, so that a fault of ours ends too
BOMB = gzip.compress(bytes(2**28))


@pytest.fixture
def hostile(monkeypatch):
    """The address of a server, and how many bytes it could send in answer to each path."""
    sent = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
            """Quiet."""

        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            path = self.answer()
            bomb = BOMB if path == "/bomb" else None
            try:
                while sent.get(path, 0) < MAX_SENT:
                    part = bomb or (b"x" if path == "/drip" else bytes(2**16))
                    self.wfile.write(part)
                    sent[path] = sent.get(path, 0) + len(part)
                    if bomb:
                        return
                    if path == "/drip":
                        time.sleep(0.05)
            except OSError:
                """Whoever asked has gone away."""

        def answer(self):
            self.close_connection = True
            self.send_response(206 if self.path == "/parts" else 200)
            if self.command == "HEAD" and self.path != "/untold":
                self.send_header("Content-Length", "1000")
            if self.path == "/bomb":
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            return self.path

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        let_reach(None)
        monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.01)
        yield f"http://127.0.0.1:{server.server_port}", sent
        server.shutdown()


@pytest.mark.lengthy
@pytest.mark.parametrize("path", ["/endless", "/untold", "/bomb"])
def test_what_is_sent_without_end_is_read_up_to_its_bound(path, hostile, tmp_path, monkeypatch):
    address, sent = hostile
    monkeypatch.setattr(web_files, "MAX_READ_BYTES", 2**21)
    tracemalloc.start()
    try:
        with pytest.raises(DocumentError, match="longer than 1 MiB"):
            read_url(f"{address}{path}", max_bytes=2**20, what="a list")
        with pytest.raises(StorageError, match="sends more than 2,097,152 bytes"):
            read_url(f"{address}{path}")
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()
    with pytest.raises(StorageError, match=r"sends more than [\d,]+ bytes"):
        fetch(f"{address}{path}", tmp_path / "copy", size_bytes=1000)
    assert (tmp_path / "copy").stat().st_size <= 2**26 + 1000
    assert sent[path] < MAX_SENT


@pytest.mark.lengthy
def test_more_than_the_range_that_was_asked_for_is_not_read(hostile, tmp_path):
    address, sent = hostile
    for path in ("/parts", "/endless"):
        filesystem, place = open_filesystem(f"{address}{path}", is_listed=True)
        assert len(filesystem.cat_file(place, start=0, end=10)) == 11
        file = RangedFile(filesystem, place, what="it", size_bytes=1000, block_bytes=100)
        with pytest.raises(StorageError, match="101 bytes came instead of 100"):
            file.read(10)
        assert kept_file(f"{address}{path}", tmp_path / "kept", at_least=2, make_room=lambda _: None) is None
        assert sent[path] < MAX_SENT


def test_what_comes_too_slowly_is_given_up(hostile, monkeypatch):
    address, _ = hostile
    monkeypatch.setattr(web_files, "REQUEST_SECONDS", 0.2)
    filesystem, place = open_filesystem(f"{address}/drip", is_listed=True)
    with pytest.raises(ConnectionError, match=r"it sent \d+ bytes in 0 s"):
        filesystem.cat_file(place)


@pytest.mark.lengthy
def test_web_servers_that_are_not_there_end_no_run(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(retry, "LONGEST_WAIT_SECONDS", 0.01)
    let_reach(None)
    extractor = ClipExtractor(ExtractConfig(boxes=None), limits=SandboxLimits())
    for number in range(MAX_UNREACHED + 1):
        clip = Clip(
            clip_id=f"{number:020x}", path=f"{number}.mp4", url=f"http://127.0.0.1:9/{number}.mp4", size_bytes=0,
            content_id="missing",
        )  # fmt: skip
        _, outcome = extractor.extract(clip)
        assert (outcome.state, outcome.reason) == ("retryable", "store_failed")
