"""What a detector declares of itself, and the detectors by name.

Ours are the modules of `detectors/`; an installed package adds its own by an entry point of the group
`emotion_pipeline.detectors` that names its `DetectorSpec`. Neither loads the libraries that a detector needs.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.faces import detectors
from pipeline.records.vocabulary import UsageError

if TYPE_CHECKING:
    import numpy as np

    from pipeline.faces.follow import Nearby
    from pipeline.records.faces import Face

ENTRY_POINTS = "emotion_pipeline.detectors"
# Arithmetic that settings may ask for; auto is the detector's own choice for a device.
PRECISIONS = ("auto", "fp32", "bf16", "int8")
DEVICES = ("auto", "cpu", "cuda")


class Detector(Protocol):
    """Finds the faces of images."""

    def detect_faces(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """The faces of each image, sorted by falling score, then box.

        images: RGB uint8 HWC, or grey uint8 HW, of any sizes. The CNN finds none in images under 55x8 px (27x4 px
        with upsample 1). Raises ValueError for any other array.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A file of weights that an installed package carries.

    Attributes:
        package: distribution that carries it; it is looked up and not imported.
        path: of the file, below the package's folder.
        num_bytes: size of the file.
        sha256: of its bytes.
        owner: whose file it is, for messages.
    """

    package: str
    path: str
    num_bytes: int
    sha256: str
    owner: str

    def find(self, given: str | None = None) -> Path:
        """Where the file is, its sha256 checked: `given`, or the installed package's.

        Raises:
            UsageError: naming both digests and the cure, where the file is missing or another.
        """
        cure = f"install {self.package}, or give the path of {self.owner} {Path(self.path).name}"
        if given is None:
            spec = importlib.util.find_spec(self.package.replace("-", "_"))
            if spec is None or not spec.submodule_search_locations:
                raise UsageError(
                    f"the package {self.package}, which carries the detector's weights, is missing; {cure}"
                )
            found = Path(spec.submodule_search_locations[0]) / self.path
        else:
            found = Path(given)
        if not found.is_file():
            raise UsageError(f"detector weights {found}: no such file; {cure}")
        with found.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.sha256:
            raise UsageError(
                f"detector weights {found}: {found.stat().st_size} bytes with sha256 {digest}, but {self.owner} file "
                f"has {self.num_bytes} bytes with sha256 {self.sha256}; {cure}"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class DetectorOptions:
    """What a detector is built with.

    Attributes:
        upsample: times that an image is doubled first, 0 or 1.
        score_threshold: faces score above it.
        precision: one of those that the spec lists for the device.
        device: `cpu`, `cuda` or `cuda:N`, which is there.
        weights: the file, its sha256 checked; None where the spec has none.
    """

    upsample: int
    score_threshold: float
    precision: str
    device: str
    weights: Path | None


def only_fp32(device: str) -> str:
    """The precision of a detector that has no other."""
    del device
    return "fp32"


@dataclass(frozen=True, kw_only=True)
class DetectorSpec:
    """All that the rest of the pipeline knows of a detector.

    Attributes:
        name: as `--detector` takes it.
        build: makes it in the process that uses it; imports its libraries itself. Raises UsageError for options that
            this machine cannot run.
        score_meaning: what its score says, and its scale.
        precisions: what it runs in, by the devices that it runs on.
        auto_precision: the precision that `auto` means on a device.
        finds_more_upsampled: whether a second look at doubled images finds smaller faces.
        weights: the file that it reads, if any.
        extra: what brings its libraries, as `pip install` takes it, where the package does not.
        check: raises what `build` would raise for options, without loading a library; where it is None, a job builds
            the detector before it plans, only to learn that.
        preload: modules that a sandbox's fork server imports before a child starts, because they take long.
        nearby: makes, of a detector of its own on CPU, what also searches around boxes, for `--whole-every`.
    """

    name: str
    build: Callable[[DetectorOptions], Detector]
    score_meaning: str
    precisions: Mapping[str, tuple[str, ...]]
    auto_precision: Callable[[str], str] = only_fp32
    finds_more_upsampled: bool = False
    weights: Weights | None = None
    extra: str | None = None
    check: Callable[[DetectorOptions], None] | None = None
    preload: tuple[str, ...] = ()
    nearby: Callable[[Any], Nearby] | None = None

    @property
    def has_choice(self) -> bool:
        """Whether it runs in more than one precision."""
        return len({precision for each in self.precisions.values() for precision in each}) > 1


@functools.cache
def _own() -> dict[str, DetectorSpec]:
    modules = (import_module(f"{detectors.__name__}.{each.name}") for each in pkgutil.iter_modules(detectors.__path__))
    return {module.SPEC.name: module.SPEC for module in modules}


def detector_names() -> tuple[str, ...]:
    """Every detector that is installed, ours first."""
    others = {point.name for point in metadata.entry_points(group=ENTRY_POINTS)}
    return (*sorted(_own()), *sorted(others - _own().keys()))


def detector_spec(name: str) -> DetectorSpec:
    """The record of a detector. Raises UsageError for a name that none has."""
    if name in _own():
        return _own()[name]
    for point in metadata.entry_points(group=ENTRY_POINTS, name=name):
        return point.load()
    raise UsageError(f"detector {name!r} is not one of {', '.join(detector_names())}")


def detectors_on(device: str) -> tuple[str, ...]:
    """The names of the detectors that run on `cpu` or `cuda`."""
    return tuple(name for name in detector_names() if device in detector_spec(name).precisions)
