"""A viewer of drawn clips on a port of this machine, for tests that ask it and tests that open it in a browser."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import uvicorn
from made_labels import MadeClip

from pipeline.labels.videos import Videos
from pipeline.viewer.app import build_app
from pipeline.viewer.config import ViewConfig
from pipeline.viewer.media import Media
from pipeline.viewer.serve import listen, opened_models

TOKEN = "t" * 32
CLIPS = [
    MadeClip("show/one.avi", codec="mpeg4", emotions=(("Happy", "Sad"), ("Anger", "Anger")), num_frames=100),
    MadeClip("show/two.mp4", codec="libx264", sureness=0.4, has_sound=True),
    MadeClip("show/four.ts", codec="libx264", emotions=(("Disgust", "Fear"),), has_sound=True, num_frames=100),
    MadeClip("other/three.mkv", codec="libx264", emotions=(("Fear", "Neutral"),), sureness=0.6),
    MadeClip("other/nobody.mp4", codec="libx264", emotions=()),
    MadeClip("other/broken.mp4", codec=""),
]


class Answer(NamedTuple):
    """What the server said."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)


class Viewer(NamedTuple):
    """A running viewer and where its labels and videos lie."""

    address: str
    labels: Path
    videos: Path

    @property
    def link(self):
        return f"{self.address}/?token={TOKEN}"

    def get(self, path, *, method="GET", body=None, token=TOKEN, **headers):
        """One request; headers with _ for -."""
        request = urllib.request.Request(f"{self.address}{path}", method=method)
        request.data = None if body is None else json.dumps(body).encode()
        if token:
            port = self.address.rpartition(":")[2]
            request.add_header("Cookie", f"viewer-{port}={token}")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def ids(self):
        """The id of each clip by its path."""
        return {row["path"]: row["clip_id"] for row in self.get("/api/clips").json()["rows"]}


@contextmanager
def viewing(labels, videos=None, **options):
    """A viewer of these labels."""
    config = ViewConfig(labels=str(labels), input=None if videos is None else str(videos), **options)
    models, listening = opened_models(config), listen(0)
    port = listening.getsockname()[1]
    given = Videos(config.input, num_children=2)
    media = Media(given, models[0], blur_faces=config.blur_faces)
    app = build_app(models, media, token=TOKEN, cookie=f"viewer-{port}", blur_faces=config.blur_faces)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Viewer(f"http://127.0.0.1:{port}", Path(labels), Path(videos) if videos else None)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listening.close()
        given.close()
        for model in models:
            model.database.close()


def until(question, *, seconds=20.0):
    """Ask until the answer is true, and give it."""
    deadline = time.monotonic() + seconds
    while not (found := question()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
    return found
