"""Redirects from the web to this machine and its networks are not followed."""

import http.server
import threading

import pytest

from pipeline.storage import hosts
from pipeline.storage.hosts import host_of, leads_inside, private_address
from pipeline.storage.remote import fetch, open_filesystem


@pytest.mark.parametrize("url", ["s3://127.0.0.1/a", "gs://localhost/a", "abfs://box@localhost/a", "/a", "http://[::1"])
def test_what_names_no_host_has_none(url):
    assert host_of(url) is None


@pytest.mark.parametrize(
    ("here", "there", "is_inside"),
    [
        ("https://8.8.8.8/a", "http://169.254.169.254/latest", True),
        ("https://8.8.8.8/a", "http://127.0.0.1:9/a", True),
        ("https://8.8.8.8/a", "http://[::ffff:10.0.0.1]/a", True),
        ("https://8.8.8.8/a", "https://1.1.1.1/a", False),
        ("http://127.0.0.1/a", "http://127.0.0.1:9/b", False),
    ],
)
def test_a_redirect_leads_inside_from_a_public_host_to_a_private_one(here, there, is_inside):
    assert leads_inside(here, there) is is_inside


def test_a_public_address_is_none_that_is_private():
    assert private_address("8.8.8.8") is None
    assert private_address("2001:4860:4860::8888") is None
    assert private_address("no-such-host.invalid") is None


@pytest.fixture
def redirecting():
    """The address of a server that redirects /away to /a, which it gives, and what it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
            """Quiet."""

        def do_GET(self):
            asked.append(self.path)
            self.send_response(302 if self.path == "/away" else 200)
            if self.path == "/away":
                self.send_header("Location", f"http://localhost:{server.server_port}/a")
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"bytes")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_redirect_is_followed_within_private_hosts_and_not_into_them(redirecting, tmp_path, monkeypatch):
    address, asked = redirecting
    fetch(f"{address}/away", tmp_path / "a", size_bytes=5)
    assert (tmp_path / "a").read_bytes() == b"bytes"
    # Stands for a public server: there is none in a test.
    monkeypatch.setattr(hosts, "private_address", lambda host: None if host == "127.0.0.1" else "127.0.0.1")
    del asked[:]
    with pytest.raises(OSError, match="redirect from a public host"):
        fetch(f"{address}/away", tmp_path / "b", size_bytes=5)
    filesystem, path = open_filesystem(f"{address}/away")
    with pytest.raises(OSError):
        filesystem.cat_file(path)
    assert set(asked) == {"/away"}
