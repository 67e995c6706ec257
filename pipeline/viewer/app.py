"""The web application: pages, questions, pictures, videos, corrections."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from pipeline.labels.source import Labels
from pipeline.labels.videos import VideoMissingError
from pipeline.ledger.database import DatabaseError
from pipeline.records.documents import DocumentError, parse_json
from pipeline.report.charts import colours_of
from pipeline.report.pictures import PERSON_COLOURS
from pipeline.storage.kept import KeptFile
from pipeline.storage.retry import ContentChangedError, StorageError
from pipeline.viewer.clip import clip_page, faces_between, strips_of
from pipeline.viewer.corrected import CorrectionLog
from pipeline.viewer.guard import Guard
from pipeline.viewer.media import Media
from pipeline.viewer.parts import part_of
from pipeline.viewer.questions import SORTS, BadQuestionError, Questions
from pipeline.viewer.rest import Rest

MAX_BODY_BYTES = 2**16
CLIPS_KEPT = 8
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_STATIC = re.compile(r"[a-z]+\.(?:html|css|js)")


class NotThereError(Exception):
    """What was asked for is not there; its text says what."""


class Application:
    """What answers the requests. models: of one model, or of two of which the first leads."""

    def __init__(self, models: list[Labels], media: Media, *, blur_faces: bool) -> None:
        self._models, self._media, self._blur = models, media, blur_faces
        self._questions = Questions(*models)
        self._logs = [CorrectionLog(model.storages) for model in models]
        self._asking = threading.Lock()
        self._faces = lru_cache(maxsize=CLIPS_KEPT)(self._read_faces)
        self.rest = Rest(models, self._show_read)

    def _show_read(self) -> None:
        with self._asking:
            for model in self._models:
                model.show_read()
            self._questions.refresh()
        self._faces.cache_clear()

    def _read_faces(self, model: int, clip_id: str) -> pa.Table:
        return self._models[model].faces(self._clip(model, clip_id))

    def _clip(self, model: int, clip_id: str) -> dict[str, Any]:
        with self._asking:
            clip = self._models[model].clip(clip_id)
        if clip is None:
            read = "" if self._models[model].is_whole else ", as far as they are read; wait until all are"
            raise NotThereError(f"no clip {clip_id!r} among these labels{read}")
        return clip

    def collection(self, _: Request) -> Any:
        with self._asking:
            self._questions.set_corrected(self._logs[0].counts())
            found = self._questions.summary()
        return {
            **found,
            "models": [model.model for model in self._models],
            "emotions": list(self._questions.classes),
            "own_emotions": list(self._models[0].classes),
            "colours": list(colours_of(self._questions.classes).values()),
            "person_colours": list(PERSON_COLOURS),
            "sorts": list(SORTS),
            "blur_faces": self._blur,
            "reading": self.rest.told(),
        }

    def reading(self, _: Request) -> Any:
        return {"reading": self.rest.told()}

    def clips(self, request: Request) -> Any:
        counts = self._logs[0].counts()
        with self._asking:
            self._questions.set_corrected(counts)
            return self._questions.page(request.query_params)

    def drift(self, request: Request) -> Any:
        with self._asking:
            return self._questions.drift(request.query_params)

    def clip(self, request: Request) -> Any:
        number, clip_id = _model_of(request, self._models), request.path_params["clip_id"]
        found = clip_page(self._models[number], self._clip(number, clip_id), classes=self._questions.classes)
        with self._asking:
            found["neighbours"] = self._questions.neighbours(request.query_params, clip_id)
        return found

    def video(self, request: Request) -> Any:
        return self._media.facts(self._clip(0, request.path_params["clip_id"]))

    def strips(self, request: Request) -> Any:
        number = _model_of(request, self._models)
        start, end, step = (_seconds(request, name) for name in ("from", "to", "step"))
        if not start < end or step <= 0:
            raise BadQuestionError(f"from is {start}, to is {end}, step is {step}; give a stretch")
        faces = self._faces(number, request.path_params["clip_id"])
        return strips_of(faces, start=start, end=end, step=step, classes=self._questions.classes)

    def faces(self, request: Request) -> Any:
        number = _model_of(request, self._models)
        start, end = _seconds(request, "from"), _seconds(request, "to")
        faces = self._faces(number, request.path_params["clip_id"])
        return faces_between(faces, start=start, end=end, classes=self._questions.classes)

    def corrections(self, request: Request) -> Any:
        return self._logs[_model_of(request, self._models)].of_clip(request.path_params["clip_id"])

    def correct(self, request: Request, said: Any) -> Any:
        number = _model_of(request, self._models)
        clip = self._clip(number, request.path_params["clip_id"])
        values = _said(said)
        track = values.get("track_index")
        # Of persons who were forgotten the numbers are not given again.
        if track is not None and track not in self._models[number].persons(clip)["track_index"].to_pylist():
            raise BadQuestionError(f"track_index is {track}; the clip has {clip['num_tracks']} persons")
        if values.get("label") not in (None, *self._models[number].classes):
            raise BadQuestionError(
                f"label is {values['label']!r}; give one of {', '.join(self._models[number].classes)}"
            )
        try:
            where = {"clip_id": clip["clip_id"], "path": clip["path"], "model": self._models[number].model}
            self._logs[number].add(part=clip["part"], **values, **where)
        except (ValueError, TypeError, KeyError) as error:
            raise BadQuestionError(str(error)) from None
        return self._logs[number].of_clip(clip["clip_id"])

    def picture(self, request: Request) -> Response:
        clip = self._clip(0, request.path_params["clip_id"])
        seconds = _seconds(request, "t") if "t" in request.query_params else None
        px = max(16, int(_seconds(request, "px"))) if "px" in request.query_params else 240
        path = self._media.picture(clip, seconds=seconds, max_px=px)
        return FileResponse(path, media_type="image/jpeg", headers={"cache-control": "private, max-age=600"})

    def whole(self, request: Request) -> Response:
        video, kind = self._media.whole(self._clip(0, request.path_params["clip_id"]))
        if isinstance(video, KeptFile):
            return part_of(video, request.headers.get("range"), kind=kind)
        return FileResponse(video, media_type=kind)

    def stretch(self, request: Request) -> Response:
        clip = self._clip(0, request.path_params["clip_id"])
        path = self._media.stretch(clip, request.path_params["number"])
        return FileResponse(path, media_type="video/mp4") if path.stat().st_size else Response(status_code=204)


def _model_of(request: Request, models: list[Labels]) -> int:
    text = request.query_params.get("model", "0")
    if text not in [str(number) for number in range(len(models))]:
        raise BadQuestionError(f"model is {text!r}; give a number from 0 to {len(models) - 1}")
    return int(text)


def _seconds(request: Request, name: str) -> float:
    text = request.query_params.get(name, "")
    if not re.fullmatch(r"-?\d{1,9}(\.\d{1,20})?(e[+-]?\d{1,2})?", text, re.ASCII):
        raise BadQuestionError(f"{name} is {text!r}; give a number")
    return float(text)


_KINDS: dict[str, tuple[type, ...]] = {
    "track_index": (int, type(None)),
    "start_pts_seconds": (int, float, type(None)),
    "end_pts_seconds": (int, float, type(None)),
    "said": (str,),
    "label": (str, type(None)),
    "annotator": (str,),
    "undoes": (str, type(None)),
}


def _said(said: Any) -> dict[str, Any]:
    """The fields of a correction that a page may give, checked. Raises BadQuestionError."""
    if not isinstance(said, dict):
        raise BadQuestionError("a correction is a JSON object")
    for name, value in said.items():
        if name not in _KINDS or isinstance(value, bool) or not isinstance(value, _KINDS[name]):
            raise BadQuestionError(f"{name} is {value!r}, which a correction cannot have")
    for name in ("said", "annotator"):
        if name not in said:
            raise BadQuestionError(f"{name} is missing")
    return {name: float(value) if "pts" in name and value is not None else value for name, value in said.items()}


def static_file(name: str) -> Response:
    """A file of the page, from the package."""
    data = resources.files("pipeline.viewer").joinpath("static", name).read_bytes()
    return Response(data, media_type=TYPES[name.rpartition(".")[2]])


async def _static(request: Request) -> Response:
    name = request.path_params.get("name", "index.html")
    folder = Path(str(resources.files("pipeline.viewer"))) / "static"
    if not _STATIC.fullmatch(name) or not (folder / name).is_file():
        return Response("no such file", status_code=404)
    return static_file(name)


async def _nothing(_: Request) -> Response:
    return Response(status_code=204)


def _answers(handler: Callable[..., Any], *, takes_body: bool = False) -> Callable[[Request], Any]:
    """The handler in a thread of its own; its errors as JSON with a line for the reader."""

    async def answer(request: Request) -> Response:
        call = partial(handler, request)
        try:
            if takes_body:
                body = bytearray()
                async for part in request.stream():
                    body += part
                    if len(body) > MAX_BODY_BYTES:
                        raise BadQuestionError(f"the request has more than {MAX_BODY_BYTES} bytes")
                call = partial(handler, request, parse_json(bytes(body), "the request"))
            found = await run_in_threadpool(call)
        except asyncio.CancelledError:  # The viewer ends, and waits no longer.
            return Response(status_code=503)
        except (BadQuestionError, DocumentError) as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        except NotThereError as error:
            return JSONResponse({"error": str(error)}, status_code=404)
        except VideoMissingError as error:
            return JSONResponse({"error": str(error)}, status_code=404)
        except DatabaseError as error:
            told = " ".join(str(error).split())[:200]
            told = f"the viewer's temporary folder cannot be read ({told}); start it again"
            return JSONResponse({"error": told}, status_code=502)
        except (StorageError, ContentChangedError, OSError) as error:  # A store or this machine's disk.
            return JSONResponse({"error": str(error)}, status_code=502)
        return found if isinstance(found, Response) else JSONResponse(found)

    return answer


def build_app(models: list[Labels], media: Media, *, token: str, cookie: str, blur_faces: bool) -> Starlette:
    """The application for uvicorn or a test."""
    own = Application(models, media, blur_faces=blur_faces)
    one = "/api/clips/{clip_id:str}"

    @asynccontextmanager
    async def reading_on(_: Starlette) -> AsyncIterator[None]:
        own.rest.start()
        yield
        await run_in_threadpool(own.rest.close)

    return Starlette(
        routes=[
            Route("/", _static),
            Route("/static/{name:str}", _static),
            Route("/favicon.ico", _nothing),
            Route("/api/collection", _answers(own.collection)),
            Route("/api/reading", _answers(own.reading)),
            Route("/api/clips", _answers(own.clips)),
            Route("/api/drift", _answers(own.drift)),
            Route(one, _answers(own.clip)),
            Route(f"{one}/video", _answers(own.video)),
            Route(f"{one}/strips", _answers(own.strips)),
            Route(f"{one}/faces", _answers(own.faces)),
            Route(f"{one}/corrections", _answers(own.corrections), methods=["GET"]),
            Route(f"{one}/corrections", _answers(own.correct, takes_body=True), methods=["POST"]),
            Route("/picture/{clip_id:str}", _answers(own.picture)),
            Route("/media/{clip_id:str}/whole", _answers(own.whole)),
            Route("/media/{clip_id:str}/{number:int}.mp4", _answers(own.stretch)),
        ],
        middleware=[Middleware(Guard, token=token, cookie=cookie)],
        lifespan=reading_on,
    )
