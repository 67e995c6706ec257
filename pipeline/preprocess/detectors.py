"""Builds the detector that a config asks for, where it asks for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pipeline.faces.detector import Detector, build_detector, check_detector
from pipeline.faces.follow import Follower, Nearby
from pipeline.faces.given_boxes import read_boxes
from pipeline.faces.spec import detector_spec, detectors_on
from pipeline.preprocess.config import PATH_FIELDS, ExtractConfig
from pipeline.records.faces import Face
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.worker_device import resolve_worker_device
from pipeline.storage.remote import absolute_url


def detector_of(config: ExtractConfig, *, upsample: int | None = None, device: str = "cpu") -> Detector | None:
    """The detector that the config asks for, None where boxes are given. Raises UsageError for a wrong option.

    upsample: in place of the config's.
    """
    if config.boxes is not None:
        return None
    options = _options(config, device=device)
    return build_detector(config.detector, **(options if upsample is None else {**options, "upsample": upsample}))


def _options(config: ExtractConfig, *, device: str) -> dict[str, Any]:
    return {
        "upsample": config.upsample,
        "score_threshold": config.score_threshold,
        "precision": config.detector_precision,
        "device": device,
        "weights": config.detector_weights,
    }


def detect_of(config: ExtractConfig, *, device: str) -> LocalDetect:
    """A detector in this process; the one of the second look is built at the first clip that needs it."""
    return LocalDetect(config, device=device)


class LocalDetect:
    """`Detect` in this process, and what follows faces through a clip where --whole-every asks for it."""

    def __init__(self, config: ExtractConfig, *, device: str) -> None:
        self._config = config
        self._build = functools.cache(lambda upsample: detector_of(config, upsample=upsample, device=device))
        self._build(config.upsample)
        self._nearby = functools.cache(self._build_nearby)

    def __call__(self, images: list[np.ndarray], *, upsample: int) -> list[list[Face]]:
        """See `Detect`."""
        return self._built(upsample).detect_faces(images)

    def _built(self, upsample: int) -> Detector:
        detector = self._build(upsample)
        assert detector is not None, "boxes are given"
        return detector

    def _build_nearby(self, upsample: int) -> Nearby:
        nearby = detector_spec(self._config.detector).nearby
        assert nearby is not None, "the config refuses it"
        return nearby(self._built(upsample))

    def of_clip(self, *, upsample: int) -> Callable[[list[np.ndarray]], list[list[Face]]]:
        """What finds the faces of one clip's frames, given in order."""
        if self._config.whole_every == 1 or self._config.boxes is not None:
            return functools.partial(self, upsample=upsample)
        follower = Follower(self._nearby(upsample), every=self._config.whole_every)
        return lambda images: [follower.find(image) for image in images]


def resolve_detector_device(asked: str, config: ExtractConfig, *, no_ray: bool = False) -> str:
    """`cpu` or `cuda`, for --detector-device: auto is CUDA where the cluster has a GPU and the detector runs there.

    Joins the cluster that RAY_ADDRESS names to ask it; one without a GPU may bring it later. Raises UsageError where
    cuda cannot be had.
    """
    if asked == "cpu" or config.boxes is not None:
        return "cpu"
    on_cuda = detector_spec(config.detector).precisions.get("cuda", ())
    on_cpu_alone, cure = (None if on_cuda else config.detector), ""
    if on_cuda and config.detector_precision not in ("auto", *on_cuda):
        on_cpu_alone = f"--detector-precision {config.detector_precision}"
    if on_cpu_alone:
        cure = f"give --detector {' or '.join(detectors_on('cuda'))} in bf16 or fp32"
    elif config.whole_every > 1:
        on_cpu_alone, cure = f"--whole-every {config.whole_every}", "leave it out"
    if on_cpu_alone:
        if asked == "cuda":
            raise UsageError(
                f"--detector-device is cuda, but {on_cpu_alone} runs on CPU alone; {cure}, or --detector-device cpu"
            )
        return "cpu"
    return resolve_worker_device(asked, no_ray=no_ray)


def shared_detection(
    config: ExtractConfig, *, device: str, num_gpus_each: float = 1.0
) -> Callable[[], Mapping[str, Any]] | None:
    """What starts the detectors that all actors of a run share, on CUDA; None on CPU, where each has its own."""
    if device == "cpu":
        return None

    def start() -> Mapping[str, Any]:
        # Ray, which a run that misses nothing does without.
        from pipeline.runtime.shared_detector import start_detectors

        build = functools.partial(detect_of, config, device=device)
        return {"shared_detect": start_detectors(build, device=device, num_gpus_each=num_gpus_each)}

    return start


def resolved(config: ExtractConfig, *, device: str = "cpu") -> ExtractConfig:
    """The config with `auto` decided here, once, so that every actor of a cluster does the same arithmetic.

    device: cpu or cuda, where faces will be detected; this machine need not have it. Raises UsageError for a wrong box
    list, weights file or option now, instead of in every actor.
    """
    values = asdict(config)
    spec = detector_spec(config.detector)
    if spec.has_choice and config.detector_precision == "auto":
        # Not resolve_precision(..., "cuda"): the driver of a cluster may have no GPU of its own.
        values["detector_precision"] = spec.auto_precision(device)
    for name in PATH_FIELDS:
        if values[name] is not None:
            values[name] = absolute_url(values[name])
    if config.boxes is not None:
        read_boxes(values["boxes"])
        return ExtractConfig(**values)
    found = ExtractConfig(**values)
    if device == "cpu":
        check_detector(config.detector, **_options(found, device="cpu"))
    elif "cpu" in spec.precisions:  # This machine may lack the GPU, and its processor the GPU's arithmetic.
        check_detector(config.detector, **_options(replace(found, detector_precision="auto"), device="cpu"))
    return found
