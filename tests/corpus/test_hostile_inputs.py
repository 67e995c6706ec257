"""What a hostile input may not do by its names, its links and its addresses."""

import contextlib
import functools
import http.server
import io
import tarfile
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.read import read_corpus
from pipeline.corpus.types import CorpusError

pytestmark = pytest.mark.lengthy


@pytest.fixture
def web(tmp_path):
    """A folder, and the place (host:port) of a web server that gives what is in it."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
            """Quiet."""

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("userinfo", ["me:hunter2@", "hunter2@"])
def test_a_path_that_comes_from_an_address_holds_no_credential(userinfo, tmp_path, web):
    folder, place = web
    (folder / "a.mp4").write_bytes(b"x")
    (tmp_path / "m.csv").write_text(f"url\nhttp://{userinfo}{place}/a.mp4?sig=hunter2\n")
    (clip,) = read_corpus(str(tmp_path / "m.csv"), allow_private_hosts=True).clips
    assert clip.path == f"http://{place}/a.mp4"
    assert clip.content_id != "missing"
    assert "hunter2" not in read_corpus(f"http://{userinfo}{place}/a.mp4?sig=hunter2").clips[0].path


def test_an_ignored_member_tells_its_own_extension_and_no_more(tmp_path):
    names = ["notes", "notes.txt", "x.m\x1b[2J", f"x.{'m' * 4000}", "b.zip!c.xyz"]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in [*names, "clip.mp4"]:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    corpus = read_corpus(str(tmp_path))
    assert {each.path: each.reason for each in corpus.ignored} == {
        f"a.tar!{name}": f"not a video by its name: {told}"
        for name, told in zip(names, ["no extension", ".txt", ".(another)", ".(another)", ".xyz"], strict=True)
    }


@pytest.mark.parametrize("given", ["folder", "link to it", "glob"])
def test_a_link_leads_out_of_the_input_only_where_that_is_allowed(given, tmp_path):
    root, private = tmp_path / "in", tmp_path / "in-private"
    for folder in (root / "sub", private / "deep"):
        folder.mkdir(parents=True)
        (folder / "film.mp4").write_bytes(folder.name.encode())
    (root / "file.mp4").symlink_to(private / "deep" / "film.mp4")
    (root / "folder").symlink_to(private)
    (root / "chain.mp4").symlink_to("file.mp4")
    (root / "sub" / "up.mp4").symlink_to("../../in-private/deep/film.mp4")
    (root / "within.mp4").symlink_to("sub/film.mp4")
    (tmp_path / "link").symlink_to("in")
    url = str({"folder": root, "link to it": tmp_path / "link", "glob": root / "**" / "*.mp4"}[given])
    corpus = read_corpus(url)
    assert [clip.path for clip in corpus.clips] == ["sub/film.mp4", "within.mp4"]
    told = {each.path for each in corpus.ignored if "leads out of the input" in each.reason}
    assert told == {"chain.mp4", "file.mp4", "folder/", "sub/up.mp4"}
    assert len(read_corpus(url, follow_links=True).clips) == 6


def test_a_file_that_is_named_itself_may_be_a_link(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.mp4").symlink_to(tmp_path / "film.mp4")
    assert [clip.path for clip in read_corpus(str(tmp_path / "in" / "link.mp4")).clips] == ["link.mp4"]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f.1", "0.0.0.0", "localhost", "169.254.169.254", "10.0.0.1",
        "172.16.3.4", "192.168.1.1", "100.64.0.1", "[::1]", "[fe80::1]", "[fd00::1]", "[::ffff:169.254.169.254]",
        "[64:ff9b::7f00:1]", "224.0.0.1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["http", "HTTPS", "sftp"])
def test_a_manifest_names_no_private_host(scheme, host, tmp_path):
    (tmp_path / "m.csv").write_text(f"url\n{scheme}://me:hunter2@{host}:9/a.mp4\n")
    with pytest.raises(CorpusError, match=r"line 2: host .* no public address.*--allow-private-hosts") as caught:
        read_corpus(str(tmp_path / "m.csv"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http:\\\\127.0.0.1:9\\a.mp4",
        "http://[fe80::1%25eth0]:9/a.mp4",
        "http://example.com@127.0.0.1:9/a.mp4",
        "http://example.com\\@127.0.0.1:9/a.mp4",
        "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460:9/a.mp4",
    ],
)
def test_no_writing_of_a_private_address_is_missed(url, tmp_path):
    (tmp_path / "m.csv").write_text(f"url\n{url}\n")
    with pytest.raises(CorpusError, match=r"line 2: host .* no public address"):
        read_corpus(str(tmp_path / "m.csv"))


@pytest.mark.parametrize("around", ["\u200b{}", " {}\t", "\ufeff{}\u00a0"])
def test_what_stands_around_a_private_address_in_a_parquet_manifest_hides_it_not(around, tmp_path):
    pq.write_table(pa.table({"url": [around.format("http://127.0.0.1:9/a.mp4")]}), tmp_path / "m.parquet")
    with pytest.raises(CorpusError, match=r"row 1: host .* no public address"):
        read_corpus(str(tmp_path / "m.parquet"))


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1/a.mp4",
        "http://[]/a.mp4",
        "http://:80/a.mp4",
        "https://host:99999/a.mp4",
        "https://host:x/a.mp4",
        "sftp:///a.mp4",
        "sftp://",
    ],
)
def test_an_address_that_is_none_is_one_line(url, tmp_path):
    (tmp_path / "m.csv").write_text(f"url\n{url}\n")
    with pytest.raises(CorpusError, match=r"line 2: url is .*; give a path or URL"):
        read_corpus(str(tmp_path / "m.csv"))


@pytest.mark.parametrize("scheme", ["ftp", "SFTP", "smb", "webhdfs", "dav"])
def test_a_name_whose_connection_cannot_be_looked_at_is_refused(scheme, tmp_path):
    (tmp_path / "m.csv").write_text(f"url\n{scheme}://films.invalid/a.mp4\n")
    with pytest.raises(
        CorpusError, match=rf"line 2: where {scheme.lower()}://films.invalid leads to .*--allow-private"
    ):
        read_corpus(str(tmp_path / "m.csv"))


@pytest.mark.parametrize(
    "scheme", ["zip", "tar", "arrow_hdfs", "reference", "git", "github", "dask", "simplecache", "DIR", "jupyter"]
)
def test_what_makes_a_store_of_another_place_is_refused(scheme, tmp_path):
    (tmp_path / "m.csv").write_text(f"url\n{scheme}://x/a.mp4\n")
    for url in (str(tmp_path / "m.csv"), f"{scheme}://x/a.mp4"):
        with pytest.raises(CorpusError, match=f"{scheme}:// is no store of files"):
            read_corpus(url)


@pytest.mark.parametrize("row", ["{}", "file://{}", "local://{}", "FILE://{}", "file:{}"])
def test_a_manifest_on_the_web_names_no_file_of_this_machine(row, web, tmp_path):
    """Whoever writes it could else have any film of this machine scored and shown."""
    folder, host = web
    (tmp_path / "private.mp4").write_bytes(b"private")
    (folder / "m.csv").write_text(f"url\n{row.format(tmp_path / 'private.mp4')}\n")
    url, found = f"http://{host}/m.csv", None
    with contextlib.suppress(CorpusError):
        found = [clip.content_id for clip in read_corpus(url).clips]
    assert found in (None, ["missing"])  # else an address on its host
    if row in ("file://{}", "local://{}"):
        (clip,) = read_corpus(url, allow_private_hosts=True).clips
        assert clip.size_bytes == 7


def test_a_file_of_this_machine_in_a_manifest_on_the_web_is_named(web):
    folder, host = web
    (folder / "m.csv").write_text("url\nfile:///etc/shadow\n")
    with pytest.raises(CorpusError, match=r"line 2: 'file:///etc/shadow' is a file of this machine.*--allow-private"):
        read_corpus(f"http://{host}/m.csv")


@pytest.mark.parametrize(
    ("header", "size_bytes"),
    [
        ("Content-Length: 9223372036854775808", 0),
        ("Content-Length: 9223372036854775807", 0),
        ("Content-Length: 99999999999999999999999999", 0),
        ("Content-Length: -5", 0),
        ("Content-Length: 1e9", 0),
        ("Content-Range: bytes 0-1/99999999999999999999999", 0),
        ("Last-Modified: Thu, 01 Jan 99999 00:00:00 GMT", 0),
        ("ETag: \x1b[2J", 0),
        ("Content-Encoding: gzip", 0),
        ("Content-Length: 7", 7),
    ],
)
def test_what_a_web_server_says_of_a_file_ends_no_listing(header, size_bytes, tmp_path):
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
            """Quiet."""

        def do_GET(self):
            self.close_connection = True
            self.wfile.write(f"HTTP/1.1 200 OK\r\n{header}\r\nConnection: close\r\n\r\n1234567".encode())

        do_HEAD = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (tmp_path / "m.csv").write_text(f"url\nhttp://127.0.0.1:{server.server_port}/a.mp4\n")
        (clip,) = read_corpus(str(tmp_path / "m.csv"), allow_private_hosts=True).clips
        server.shutdown()
    assert clip.size_bytes == size_bytes


def test_a_path_from_the_root_of_a_web_server_lies_on_it(web):
    folder, host = web
    (folder / "deep").mkdir()
    (folder / "a.mp4").write_bytes(b"x")
    (folder / "deep" / "m.csv").write_text("url\n/a.mp4\n")
    (clip,) = read_corpus(f"http://{host}/deep/m.csv").clips
    assert (clip.url, clip.size_bytes) == (f"http://{host}/a.mp4", 1)


def test_a_manifest_on_a_private_host_names_that_host_alone(web):
    folder, place = web
    (folder / "a.mp4").write_bytes(b"x")
    (folder / "m.csv").write_text("url\na.mp4\n")
    assert [clip.path for clip in read_corpus(f"http://{place}/m.csv").clips] == ["a.mp4"]
    (folder / "m.csv").write_text("url\n//127.0.0.2/a.mp4\n")
    with pytest.raises(CorpusError, match="no public address"):
        read_corpus(f"http://{place}/m.csv")
