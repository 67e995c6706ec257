"""The job: open labels and videos, serve them on loopback, print and open the address."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlencode

import uvicorn

from pipeline.labels.source import Labels, models_of, names_of, open_labels, otherwise_of
from pipeline.labels.videos import opened_videos
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.console import log_status
from pipeline.storage.remote import absolute_url
from pipeline.viewer.app import build_app
from pipeline.viewer.config import ViewConfig
from pipeline.viewer.media import Media

HOST = "127.0.0.1"


def view(config: ViewConfig) -> int:
    """Serve until interrupted; the exit code. Raises UsageError, StorageError."""
    models = opened_models(config)
    place = "" if config.clip is None else place_of(models[0], config.clip, seconds=config.at)
    listening = listen(config.port)
    port = listening.getsockname()[1]
    token = secrets.token_urlsafe(32)
    try:
        options: dict[str, Any] = {"num_children": 2, "allow_private_hosts": config.allow_private_hosts}
        with opened_videos(config.input, cache_bytes=int(config.cache_gib * 2**30), **options) as videos:
            media = Media(videos, models[0], blur_faces=config.blur_faces)
            app = build_app(models, media, token=token, cookie=f"viewer-{port}", blur_faces=config.blur_faces)
            options = {"access_log": False, "server_header": False, "timeout_graceful_shutdown": 2}
            address = f"http://{HOST}:{port}/?token={token}{place}"
            server = _Server(uvicorn.Config(app, log_level="error", **options))
            server.say = partial(_say_where, config, models, address)
            server.begin = videos.start
            server.run(sockets=[listening])
    except KeyboardInterrupt:
        log_status("the viewer has ended")
    return 0


class _Server(uvicorn.Server):
    """Says where it is once it answers and hears signals: a Ctrl-C before that would break into the loop's start."""

    say: Callable[[], None]
    begin: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.say()
        # What plays the first video starts while the first page is looked at.
        threading.Thread(target=self.begin, daemon=True).start()


def _say_where(config: ViewConfig, models: list[Labels], address: str) -> None:
    num_clips = models[0].database.value("select count(*) from clips")
    so_far = "" if models[0].is_whole else " so far"
    log_status(f"{num_clips} clips{so_far}, model {' and '.join(model.model for model in models)}; Ctrl-C ends it")
    print(address, flush=True)
    if not config.no_browser and has_screen():
        webbrowser.open(address)


def opened_models(config: ViewConfig) -> list[Labels]:
    """The labels of one model, or of two. Raises UsageError."""
    if config.model is not None:
        how = otherwise_of(config)
        return [open_labels(config.labels, model=name, waits=False, **how) for name in config.model.split(",")]
    found = models_of(absolute_url(config.labels))
    if len(found) > 2:
        told = f"{config.labels} holds the labels of {names_of(found)}"
        raise UsageError(f"--model is not given; {told}: give one or two of them")
    return [Labels(*folders, waits=False, **otherwise_of(config)) for folders in found]


def place_of(labels: Labels, clip: str, *, seconds: float) -> str:
    """What an address of the viewer goes on with to open a clip, by its path or id, so many seconds after its first
    frame. Raises UsageError for a clip that has no label."""
    find = "select * from clips where path = $clip or clip_id = $clip limit 1"
    rows = list(labels.database.rows(find, clip=clip))
    if not rows and not labels.is_whole:
        labels.finish()
        labels.show_read()
        rows = list(labels.database.rows(find, clip=clip))
    if not rows:
        raise UsageError(
            f"--clip {clip!r} is no path or clip_id of a labelled clip; leave it out to see the list of all"
        )
    faces = labels.faces(rows[0]).slice(0, 1).to_pylist()
    # The viewer's times are on the file's clock, on which a broadcast may begin at 54,321 s.
    zero = faces[0]["pts_seconds"] - faces[0]["seconds"] if faces and faces[0]["seconds"] is not None else 0.0
    return "&" + urlencode({"clip": rows[0]["clip_id"], "t": f"{zero + seconds:.3f}"})


def listen(port: int) -> socket.socket:
    """A socket on loopback. Raises UsageError where the port is taken."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        listening.close()
        raise UsageError(f"--port is {port}; it cannot be had ({error.strerror}): give another, or 0") from None
    return listening


def has_screen() -> bool:
    """Whether a browser would open in a window: on a terminal alone one would take the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
