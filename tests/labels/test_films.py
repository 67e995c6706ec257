"""Large videos in a store: what is read of them, and that it is what the file holds."""

import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest
from films import draw_film

from pipeline.labels.videos import MIN_RANGED_BYTES, VideoMissingError, opened_videos
from pipeline.storage.kept import BLOCK_BYTES, ROOM_BYTES, KeptFile, kept_file
from pipeline.storage.retry import ContentChangedError

pytestmark = pytest.mark.lengthy


def clip_of(name, size_bytes):
    return {"clip_id": f"id-{name}", "path": name, "url": "", "size_bytes": size_bytes, "content_id": ""}


def num_kept_bytes(folder):
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file())


def convert_all(videos, clip, facts):
    """Each stretch of the film."""
    for second in range(0, round(facts["end"] - facts["start"]), 2):
        start = facts["start"] + second
        assert videos.ask("convert", clip, start=start, end=start + 2, offset=facts["start"])


@pytest.fixture
def noise(s3):
    """The random bytes of an object."""
    data = np.random.default_rng(0).bytes(9 * BLOCK_BYTES + 12_345)
    s3.put("noise", data)
    return data


@pytest.mark.lengthy
@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mjpeg"), ("p.mpg", "mpeg2video"), ("m.mkv", "mpeg4")])
def test_a_film_in_a_store_is_read_only_where_it_is_played(s3, tmp_path, name, codec):
    path = draw_film(tmp_path / name, codec, seconds=70)
    size_bytes = path.stat().st_size
    s3.fs.put_file(str(path), f"{s3.bucket}/films/{name}")
    clip = clip_of(name, size_bytes)
    with opened_videos(s3.url("films")) as videos, opened_videos(str(tmp_path)) as local:
        facts = videos.ask("facts", clip)
        assert facts == local.ask("facts", clip)
        assert facts["end"] - facts["start"] == pytest.approx(70, abs=1)
        for second in (34.0, 12.0):
            start = facts["start"] + second
            asked = {"start": start, "end": start + 2, "offset": facts["start"], "number": facts["stream"]}
            found = videos.ask("convert", clip, **asked)
            assert found == local.ask("convert", clip, **asked)
        asked = {"seconds": facts["start"] + 22.0, "max_px": 160, "blur": False}
        assert videos.ask("picture", clip, **asked) == local.ask("picture", clip, **asked)
        assert size_bytes > MIN_RANGED_BYTES
        assert num_kept_bytes(videos.folder) < 0.7 * size_bytes


@pytest.mark.lengthy
def test_what_is_kept_is_bounded_and_comes_again(s3, tmp_path, noise):
    file = kept_file(s3.url("noise"), tmp_path / "n", at_least=0, make_room=lambda _: None)
    for start in (0, 5_000, len(noise) - 1_000, 100_000, 4 * BLOCK_BYTES - 10, 0):
        assert file.read(start, start + 70_000) == noise[start : start + 70_000]
        (tmp_path / "n").unlink()
    assert file.read(len(noise), len(noise) + 10) == b""
    with opened_videos(s3.url(), cache_bytes=2**20) as videos:
        video = draw_film(tmp_path / "f.ts", "mpeg2video", seconds=24)
        s3.fs.put_file(str(video), f"{s3.bucket}/f.ts")
        clip = clip_of("f.ts", video.stat().st_size)
        facts = videos.ask("facts", clip)
        for number in range(11):
            start = facts["start"] + 2 * number
            assert videos.ask("convert", clip, start=start, end=start + 2, offset=facts["start"])
            assert num_kept_bytes(videos.folder) <= 2**20 + ROOM_BYTES


def test_readers_of_one_file_get_its_bytes(s3, tmp_path, noise):
    file = kept_file(s3.url("noise"), tmp_path / "n", at_least=0, make_room=lambda _: None)
    wrong = []

    def read(seed):
        random = np.random.default_rng(seed)
        for start in random.integers(0, len(noise), 40).tolist():
            end = start + int(random.integers(1, 3 * BLOCK_BYTES))
            if file.read(start, end) != noise[start:end]:
                wrong.append((start, end))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_film_that_is_another_by_now_is_read_anew(s3, tmp_path):
    paths = [draw_film(tmp_path / f"{each}.ts", "mpeg2video", seconds=each) for each in (40, 26)]
    clip = clip_of("f.ts", paths[0].stat().st_size)
    with opened_videos(s3.url()) as videos:
        s3.fs.put_file(str(paths[0]), f"{s3.bucket}/f.ts")
        before = videos.ask("facts", clip)
        assert not videos.is_changed(clip)
        file = videos.found(clip)
        s3.fs.put_file(str(paths[1]), f"{s3.bucket}/f.ts")
        with pytest.raises(ContentChangedError):
            file.read(file.size_bytes // 2, file.size_bytes // 2 + 10)
        after = videos.ask("facts", clip)
        assert (round(before["end"] - before["start"]), round(after["end"] - after["start"])) == (40, 26)
        assert videos.is_changed(clip)
        s3.fs.rm(f"{s3.bucket}/f.ts")
        with pytest.raises(VideoMissingError, match=r"f\.ts"):  # Where it was not read yet.
            convert_all(videos, clip, after)


def test_an_end_in_the_middle_of_a_conversion_leaves_no_child(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.labels.videos.END_SECONDS", 0.01)
    path = draw_film(tmp_path / "f.avi", "mpeg4", seconds=20)
    clip, told, begun = clip_of("f.avi", path.stat().st_size), [], threading.Event()

    def convert_for_ever():
        try:
            while True:
                videos.ask("convert", clip, start=0.0, end=20.0, offset=0.0)
                begun.set()
        except VideoMissingError as error:
            told.append(str(error))

    with opened_videos(str(tmp_path)) as videos:
        thread = threading.Thread(target=convert_for_ever)
        thread.start()
        assert begun.wait(timeout=60)
        (child,) = [sandbox.pid for sandbox in videos._sandboxes]
    thread.join(timeout=60)
    assert len(told) == 1
    assert "SIGKILL" in told[0] or "shown no more" in told[0]
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


class Whole(SimpleHTTPRequestHandler):
    """Gives all of a file, whatever is asked for, as Python's own server does."""

    def log_message(self, *_):
        pass


class Parts(Whole):
    """Gives the range that is asked for."""

    def do_GET(self):
        asked = self.headers.get("Range", "")
        data = Path(self.translate_path(self.path)).read_bytes()
        first, last = (int(each) for each in asked.removeprefix("bytes=").split("-"))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(data[first : last + 1])


@pytest.mark.parametrize("server", [Whole, Parts])
def test_a_web_server_that_gives_no_ranges_gives_the_whole_film(tmp_path, server):
    path = draw_film(tmp_path / "f.ts", "mpeg2video", seconds=24)

    def handler(*arguments):
        return server(*arguments, directory=str(tmp_path))

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        with opened_videos(f"http://127.0.0.1:{serving.server_port}") as videos:
            clip = clip_of("f.ts", path.stat().st_size)
            assert videos.ask("facts", clip)["codec"] == "mpeg2video"
            assert isinstance(videos.found(clip), KeptFile) == (server is Parts)
        serving.shutdown()
        thread.join()
