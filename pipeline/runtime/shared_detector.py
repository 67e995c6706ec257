"""Detectors that many actors share: in go batches of frames of many clips, out come their faces.

One Ray actor holds each GPU. The units' actors decode on CPUs and send their frames through Ray's object store; what
arrives within a few milliseconds is searched together.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from pipeline.faces.detector import SHARED_BATCH_PX, Detect, DetectionError
from pipeline.records.faces import Face
from pipeline.records.vocabulary import UsageError

GATHER_SECONDS = 0.005


# Loading PyTorch and CUDA on a cold node, or waiting for a GPU that another job holds.
START_SECONDS = 300.0


# An answer, with what waits before it; and the restart of a detector that died.
ANSWER_SECONDS = 600.0


MAX_RESTARTS = 20


MAX_TRIES = 3


Request = tuple[list[np.ndarray], int, "asyncio.Future[list[list[Face]]]"]


class SharedDetectors:
    """Detector actors, as one detector; goes to other actors as their handles."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = list(actors)

    def __call__(self, images: list[np.ndarray], *, upsample: int) -> list[list[Face]]:
        """See `Detect`. A batch whose detector died is tried again, at most `MAX_TRIES` times in all."""
        actor = random.choice(self.actors)
        try:
            return ray.get(actor.detect.remote(images, upsample), timeout=ANSWER_SECONDS)
        except RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            detail = f"{type(error).__name__}: {lines[-1] if lines else ''}"[:500]
            raise DetectionError(f"no faces from the shared detector for {len(images)} frames: {detail}") from error


def start_detectors(
    build: Callable[[], Detect], *, device: str, num_detectors: int = 0, num_gpus_each: float = 1.0
) -> SharedDetectors:
    """Start detector actors on the running Ray, and wait until each has its network loaded.

    build: makes the detector in each actor, on `device`.
    num_detectors: 0 is one for each GPU of the cluster. num_gpus_each: of one detector; more than 0.5, so that no two
    share a GPU. Raises UsageError if they do not start.
    """
    num_detectors = num_detectors or max(1, int(ray.cluster_resources().get("GPU", 0)))
    remote: Any = ray.remote(
        num_cpus=0,  # The units' actors may hold every CPU that Ray counts.
        num_gpus=num_gpus_each if device == "cuda" else 0,
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_TRIES - 1,
    )(DetectorActor)
    actors = [remote.remote(build) for _ in range(num_detectors)]
    try:
        ray.get([actor.is_ready.remote() for actor in actors], timeout=START_SECONDS)
    except RayError as error:
        reason = str(error).strip().splitlines()[-1:]
        raise UsageError(
            f"{num_detectors} detectors on {device} did not start ({type(error).__name__}{': ' if reason else ''}"
            f"{''.join(reason)}); free the GPUs, or give --detector-device cpu"
        ) from error
    return SharedDetectors(actors)


class DetectorActor:
    """What one GPU does: gathers the frames that wait, searches them together, and answers each sender."""

    def __init__(self, build: Callable[[], Detect]) -> None:
        self._detect = build()
        self._waiting: list[Request] = []
        self._running: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1)  # Frames keep arriving while the detector works.

    async def is_ready(self) -> bool:
        """Answers once the network is loaded."""
        return True

    async def detect(self, images: list[np.ndarray], upsample: int) -> list[list[Face]]:
        """The faces of one sender's frames. images: RGB uint8 HWC. Raises what the detector raises for them."""
        answer: asyncio.Future[list[list[Face]]] = asyncio.get_running_loop().create_future()
        self._waiting.append((images, upsample, answer))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._serve())
        return await answer

    async def _serve(self) -> None:
        while self._waiting:
            if sum(image.size // 3 for images, _, _ in self._waiting for image in images) < SHARED_BATCH_PX:
                await asyncio.sleep(GATHER_SECONDS)
            upsample = self._waiting[0][1]
            batch = [request for request in self._waiting if request[1] == upsample]
            self._waiting = [request for request in self._waiting if request[1] != upsample]
            groups = [images for images, _, _ in batch]
            found = await asyncio.get_running_loop().run_in_executor(self._thread, self._search, groups, upsample)
            for (_, _, answer), faces in zip(batch, found, strict=True):
                if answer.done():
                    continue  # Its sender is gone.
                if isinstance(faces, Exception):
                    answer.set_exception(faces)
                else:
                    answer.set_result(faces)

    def _search(self, groups: list[list[np.ndarray]], upsample: int) -> list[list[list[Face]] | Exception]:
        """The faces of each sender's frames, or why there are none; the detector puts frames of one size together."""
        try:
            faces = iter(self._detect([image for images in groups for image in images], upsample=upsample))
            return [[next(faces) for _ in images] for images in groups]
        except Exception as error:  # noqa: BLE001 - told to the sender, whose clip it costs
            if "CUDA error" in str(error):
                os._exit(1)  # Every later call in this process would fail too; Ray starts another.
            if len(groups) > 1:  # One sender's frames may be too large for the GPU: the others shall not pay.
                return [self._search([images], upsample)[0] for images in groups]
            return [error]
