"""Neither a name, an address of numbers nor a redirect of a manifest leads to this machine and its networks."""

import http.server
import socket
import threading

import pytest

from pipeline.preprocess.local_copies import open_archive
from pipeline.storage import hosts, web
from pipeline.storage.contents import LocalContents
from pipeline.storage.hosts import first_private, host_of, leads_inside, private_address, same_host
from pipeline.storage.kept import kept_file
from pipeline.storage.remote import fetch, open_filesystem, read_url
from pipeline.storage.retry import StorageError
from pipeline.storage.web import let_reach, reach_of


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


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "169.254.169.254", "100.100.100.200", "0.0.0.0", "255.255.255.255", "224.0.0.1",
        "168.63.129.16", "192.0.0.192", "198.18.0.1", "::1", "::", "fe80::1%eth0", "fd00:ec2::254", "fec0::1",
        "::ffff:127.0.0.1", "::127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2001:0:1::1",
        "2001:db8::1", "5f00::1", "ff02::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public(address):
    assert first_private(("8.8.8.8", address, "1.1.1.1")) == address


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_a_public_address_is_none_that_is_private(address):
    assert first_private((address,)) is None
    assert private_address(address) is None


def test_a_host_that_is_not_there_is_not_private():
    assert private_address("no-such-host.invalid") is None


@pytest.mark.parametrize(
    ("one", "other"),
    [("Example.COM.", "example.com"), ("[::1]", "::1"), ("b\u00fccher.example", "xn--bcher-kva.example")],
)
def test_two_writings_of_one_host(one, other):
    assert same_host(one) == same_host(other)


@pytest.fixture(autouse=True)
def nothing_let_in():
    """Nothing is let in unless a test does."""
    let_reach(frozenset())


@pytest.fixture
def rebound(monkeypatch):
    """A dictionary of names and the addresses that the name system gives for them one after the other."""
    answers: dict[str, list[str]] = {}
    ask = socket.getaddrinfo

    def getaddrinfo(host, port, *arguments, **options):
        name = host.decode() if isinstance(host, bytes) else host
        given = answers.get(name)
        if given:
            name = given.pop(0) if len(given) > 1 else given[0]
        return ask(name, port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    private_address.cache_clear()
    yield answers
    private_address.cache_clear()


@pytest.fixture
def redirecting():
    """The address of a server that redirects /away to /a, which it gives, and what it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
            """Quiet."""

        def do_GET(self):
            asked.append(self.path)
            path, _, host = self.path.partition("?")
            self.send_response(302 if path == "/away" else 200)
            if path == "/away":
                self.send_header("Location", f"http://{host or 'localhost'}:{server.server_port}/a")
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"bytes")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_redirect_is_followed_within_private_hosts_and_not_into_them(redirecting, tmp_path, monkeypatch):
    address, asked = redirecting
    let_reach(frozenset({"127.0.0.1"}))
    fetch(f"{address}/away", tmp_path / "a", size_bytes=5)
    assert (tmp_path / "a").read_bytes() == b"bytes"
    # Stands for a public server: there is none in a test.
    monkeypatch.setattr(web, "first_private", lambda _: None)
    monkeypatch.setattr(hosts, "private_address", lambda host: None if host == "127.0.0.1" else "127.0.0.1")
    del asked[:]
    with pytest.raises(OSError, match="redirect from a public host"):
        fetch(f"{address}/away", tmp_path / "b", size_bytes=5)
    filesystem, path = open_filesystem(f"{address}/away")
    with pytest.raises(OSError):
        filesystem.cat_file(path)
    assert set(asked) == {"/away"}


ALL_READERS = {
    "copy": lambda url, to: fetch(url, to / "copy", size_bytes=5),
    "ranges": lambda url, to: kept_file(url, to / "kept", at_least=1, make_room=lambda _: None),
    "archive": lambda url, _: open_archive(url, 5, 5, "", contents=LocalContents()).read(5),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("reader", ALL_READERS)
def test_a_name_that_turns_private_after_the_check_is_not_connected_to(reader, redirecting, rebound, tmp_path):
    address, asked = redirecting
    port = address.rpartition(":")[2]
    rebound["films.example"] = ["8.8.8.8", "127.0.0.1"]
    assert private_address("films.example") is None  # what the listing asks
    with pytest.raises(StorageError, match=r"films.example is at 127\.0\.0\.1, which is no public address.*--allow"):
        ALL_READERS[reader](f"http://films.example:{port}/a", tmp_path)
    assert asked == []
    let_reach(None)
    ALL_READERS[reader](f"http://films.example:{port}/a", tmp_path)
    assert set(asked) == {"/a"}


@pytest.mark.lengthy
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"])
def test_a_private_address_of_numbers_is_not_connected_to(host, redirecting, tmp_path):
    port = redirecting[0].rpartition(":")[2]
    with pytest.raises(StorageError, match=r"is no public address.*--allow-private-hosts"):
        fetch(f"http://{host}:{port}/a", tmp_path / "a", size_bytes=5)
    assert redirecting[1] == []


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_redirect_to_a_name_that_turns_private_is_not_followed(is_listed, redirecting, rebound, monkeypatch):
    """The server stands for a public one: only its own address counts as such."""
    address, asked = redirecting
    rebound["inside.example"] = ["8.8.8.8", "127.0.0.2"]
    first = web.first_private
    monkeypatch.setattr(web, "first_private", lambda found: first(each for each in found if each != "127.0.0.1"))
    monkeypatch.setattr(hosts, "private_address", lambda host: None if host == "127.0.0.1" else private_address(host))
    filesystem, path = open_filesystem(f"{address}/away?inside.example", is_listed=is_listed)
    with pytest.raises(OSError, match=r"inside.example is at 127\.0\.0\.2"):
        filesystem.cat_file(path)
    assert asked == ["/away?inside.example"]


def test_the_host_of_a_manifest_may_not_turn_from_private_to_public(redirecting, rebound):
    """Else it would be let in by its own word, and lead elsewhere afterwards."""
    rebound["films.example"] = ["127.0.0.1", "8.8.8.8"]
    url = f"http://films.example:{redirecting[0].rpartition(':')[2]}/m.csv"
    let_reach(reach_of(url, allow_private_hosts=False))
    with pytest.raises(StorageError, match="was at a private address when it was first asked for"):
        read_url(url)
    assert redirecting[1] == []


def test_what_the_user_typed_may_be_private(redirecting):
    address, asked = redirecting
    for host in ("127.0.0.1", "localhost"):
        assert read_url(f"http://{host}:{address.rpartition(':')[2]}/a") == b"bytes"
    assert asked == ["/a", "/a"]
