"""The settings of preprocessing.

What takes long to import is imported where it is needed: the help of the job reads this module.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pipeline.records.documents import shown_value
from pipeline.records.parts import part_url
from pipeline.records.settings import Setting
from pipeline.records.vocabulary import (
    DECODERS,
    EMOTIONS,
    FOUND,
    LAYOUTS,
    MAX_MARGIN,
    MAX_PX,
    UsageError,
    checked_classes,
)
from pipeline.runtime.config import PoolConfig

if TYPE_CHECKING:
    from pipeline.video.frames import Sampling

MAX_DETECT_EVERY = 32
MAX_FRAMES_PER_CLIP, MAX_SAMPLE_FPS = 100_000, 1000


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What decides which examples a clip gives; a model reads only examples made under its own."""

    frames_per_clip: Annotated[int, Setting("sampling", common=True)] = 8
    """Frames sampled from each clip, evenly spaced (count). Not used with --sample-fps or --every-frame."""
    sample_fps: Annotated[float | None, Setting("sampling", common=True)] = None
    """Frames sampled for each second of the clip (1/s), instead of --frames-per-clip."""
    every_frame: Annotated[bool, Setting("sampling", common=True)] = False
    """Take every frame of the clip."""
    min_sample_fps: Annotated[float, Setting("sampling")] = 0.0
    """Frames a second at least: a clip so long that --frames-per-clip would be fewer is sampled at this rate (1/s)."""
    faces: Annotated[Literal["largest", "all"], Setting("faces", common=True)] = "largest"
    """Faces kept of each frame: largest (one; ties by score, then box) or all."""
    detector: Annotated[str, Setting("faces", common=True)] = "dlib-cnn"
    """Face detector: dlib-cnn (Dlib's CNN, run in PyTorch), dlib-cnn-reference (run by dlib), dlib-hog, centerface
    (-half, -third: small faces), or one that an installed package adds."""
    detector_precision: Annotated[str, Setting("faces")] = "auto"
    """Arithmetic of the detector: fp32, bf16, int8 (on CPU), or auto (for dlib-cnn bf16 where the processor has it)."""
    detector_weights: Annotated[str | None, Setting("faces")] = None
    """Path of the detector's weights (for dlib-cnn mmod_human_face_detector.dat); default: the installed package's."""
    score_threshold: Annotated[float, Setting("faces")] = 0.0
    """Faces must score more than this (the detector's own scale)."""
    upsample: Annotated[int, Setting("faces", common=True)] = 0
    """Times the frame is doubled before detection (0 or 1): 1 finds faces of 40 px, 0 of 80 px; 1 costs 4 times."""
    retry_upsample: Annotated[bool, Setting("faces", common=True)] = False
    """Look again with --upsample 1 at clips in whose sampled frames no face was found; needs a CNN and --upsample 0."""
    detect_every: Annotated[int, Setting("faces", common=True)] = 1
    """Detect on every K-th sampled frame and the last one (count, 1 to 32); boxes between are interpolated.

    1, the default, detects on every frame: at 3 the boxes meet those of full detection with a mean IoU of 0.95 in
    steady clips and 0.87 in clips with cuts, and a face that is in one of two key frames only is lost between them."""
    whole_every: Annotated[int, Setting("faces")] = 1
    """Search whole only every K-th sampled frame and each that shows another picture than the one before (count, 1 to
    32), and the others around their last faces; dlib-cnn on CPU.

    For --every-frame and high --sample-fps: at 4 it takes two fifths of the time and finds 99.7 % of the faces, in the
    same boxes; a face that comes into the picture is found by the next whole search."""
    min_face_px: Annotated[int, Setting("faces", common=True)] = 0
    """Faces whose box is narrower or lower than this in the full frame are left out, and counted (pixels); 0: none."""
    min_sharpness: Annotated[float, Setting("faces")] = 0.0
    """Faces that are less sharp than this are left out, and counted (column sharpness: 0.2 is usual, under 0.05
    blurred); 0: none."""
    max_yaw: Annotated[float, Setting("faces")] = 90.0
    """Faces that are turned to a side by more than this are left out, and counted (degrees; 20: those that look about
    into the camera); 90: none."""
    boxes: Annotated[str | None, Setting("faces")] = None
    """CSV of given boxes (path,label,x1,y1,x2,y2; pixels), path or URL; skips detection."""
    box_margin: Annotated[float, Setting("faces")] = 0.0
    """Share of the box's width and height added on each side of the face crop (0.1 = 10 %)."""
    alignment: Annotated[Literal["none", "dlib5"], Setting("faces")] = "none"
    """How the face is cut out: none (the box as it is), or dlib5 (turned and scaled so that Dlib's five landmarks lie
    where its average face has them; --box-margin is then a share of the square)."""
    face_px: Annotated[int, Setting("faces")] = 224
    """Side of the face crop (pixels)."""
    context_px: Annotated[int, Setting("faces")] = 224
    """Side of the context image (pixels)."""
    image_format: Annotated[str, Setting("faces")] = "jpeg"
    """Encoding of the crops: jpeg (quality 95, 4:4:4) or png."""
    stream: Annotated[int | None, Setting("sampling")] = None
    """Which video stream of a file is read (number, from 0); by default the longest."""
    decoder: Annotated[str, Setting("sampling")] = "auto"
    """Video decoder: auto (decord where it is right, else PyAV), decord, pyav."""
    min_decode_integrity: Annotated[float, Setting("sampling")] = 0.0
    """Least share of a clip's frames that must decode whole (0 to 1); below it the clip is quarantined."""

    def __post_init__(self) -> None:
        from pipeline.faces.spec import PRECISIONS, detector_names, detector_spec

        _one_of("--faces", self.faces, ("largest", "all"))
        _one_of("--detector", self.detector, detector_names())
        _one_of("--detector-precision", self.detector_precision, PRECISIONS)
        _one_of("--alignment", self.alignment, ("none", "dlib5"))
        _one_of("--image-format", self.image_format, ("jpeg", "png"))
        _one_of("--decoder", self.decoder, DECODERS)
        _one_of("--upsample", self.upsample, (0, 1))
        _within("--frames-per-clip", self.frames_per_clip, 1, MAX_FRAMES_PER_CLIP)
        _within("--stream", self.stream or 0, 0, 1000)
        # The frames between two key frames are held in memory until the second is known.
        _one_of("--detect-every", self.detect_every, tuple(range(1, MAX_DETECT_EVERY + 1)))
        _one_of("--whole-every", self.whole_every, tuple(range(1, MAX_DETECT_EVERY + 1)))
        if self.whole_every > 1 and self.detect_every > 1:
            raise ValueError("--whole-every and --detect-every exclude each other; give one of them")
        if self.whole_every > 1 and detector_spec(self.detector).nearby is None:
            able = [name for name in detector_names() if detector_spec(name).nearby is not None]
            raise ValueError(
                f"--whole-every is {self.whole_every}, and --detector is {self.detector}; give --detector "
                f"{' or '.join(able)}, or leave --whole-every out"
            )
        _within("--min-face-px", self.min_face_px, 0, 2**16)
        _within("--min-sharpness", self.min_sharpness, 0, 100)
        _within("--max-yaw", self.max_yaw, 0, 90)
        _within("--face-px", self.face_px, 8, MAX_PX)
        _within("--context-px", self.context_px, 8, MAX_PX)
        _within("--box-margin", self.box_margin, 0, MAX_MARGIN)
        _within("--min-sample-fps", self.min_sample_fps, 0, MAX_SAMPLE_FPS)
        if not 0 <= self.min_decode_integrity <= 1:
            raise ValueError(f"--min-decode-integrity is {self.min_decode_integrity}; give a share from 0 to 1")
        if self.sample_fps is not None and not 0 < self.sample_fps <= MAX_SAMPLE_FPS:
            raise ValueError(
                f"--sample-fps is {self.sample_fps}; give a rate above 0 and up to {MAX_SAMPLE_FPS} frames a second"
            )
        if self.sample_fps is not None and self.every_frame:
            raise ValueError("--sample-fps and --every-frame exclude each other; give one of them")
        if self.retry_upsample and not detector_spec(self.detector).finds_more_upsampled:
            others = [name for name in detector_names() if detector_spec(name).finds_more_upsampled]
            raise ValueError(
                f"--retry-upsample is for a CNN, and --detector is {self.detector}; give --detector "
                f"{' or '.join(others)}, or leave --retry-upsample out"
            )
        if self.retry_upsample and self.upsample != 0:
            raise ValueError(
                f"--retry-upsample looks again at upsample 1, and --upsample is {self.upsample} already; give "
                "--upsample 0, or leave --retry-upsample out"
            )

    @property
    def sampling(self) -> Sampling:
        """Which frames these settings take."""
        from pipeline.video.frames import Sampling

        if self.every_frame:
            return Sampling(frames_per_clip=None, every_frame=True)
        if self.sample_fps is not None:
            return Sampling(frames_per_clip=None, sample_fps=self.sample_fps)
        return Sampling(frames_per_clip=self.frames_per_clip, min_fps=self.min_sample_fps)


def extract_config_of(values: Any) -> ExtractConfig:
    """The ExtractConfig part of a larger config object, or of a mapping such as a manifest's config.

    Raises ValueError where a value of a mapping is of another type than its field.
    """
    names = [field.name for field in fields(ExtractConfig)]
    if isinstance(values, dict):
        found = {name: values[name] for name in names if name in values}
        hints = get_type_hints(ExtractConfig)
        for name, value in found.items():
            kinds = tuple(type(each) if get_origin(hints[name]) is Literal else each for each in get_args(hints[name]))
            kinds = (*(kinds or (hints[name],)), *((int,) if float in (*kinds, hints[name]) else ()))
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise ValueError(f"{name} is {shown_value(value)}, which is of another type than it has")
        return ExtractConfig(**found)
    return ExtractConfig(**{name: getattr(values, name) for name in names})


def _one_of(flag: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{flag} is {value!r}; give one of {', '.join(map(str, allowed))}")


def _within(flag: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # NaN is not
        raise ValueError(f"{flag} is {value}; give {least} or more" + ("" if value < least else f", up to {most}"))


KIND = "examples"


PACKAGES = ("av", "decord", "dlib", "dlib-bin", "numpy", "pillow", "pyarrow", "ray", "torch")


# Where a file lies on this machine is no part of what was done with it; its sha256 is.
PATH_FIELDS = ("boxes", "detector_weights")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(ExtractConfig, PoolConfig):
    """Decodes clips, finds faces, and writes face crops and masked contexts as Parquet shards."""

    input: Annotated[str, Setting("input", common=True)]
    """Folder, CAER or CAER-S tree, manifest (CSV or Parquet), glob or single file; a path or any fsspec URL."""
    output: Annotated[str, Setting("input", common=True)]
    """Folder of the results; a path or any fsspec URL. Run the same command again to resume."""
    follow_links: Annotated[bool, Setting("input")] = False
    """Follow links in the input that lead out of it; without it they are ignored with a reason."""
    allow_private_hosts: Annotated[bool, Setting("input")] = False
    """Let a manifest name hosts of this machine, of its link or of a private network, and one on the web files here."""
    layout: Annotated[str, Setting("input", common=True)] = "auto"
    """Layout of the input: auto, caer, caer-s, manifest, folder."""
    split_fractions: Annotated[tuple[float, float, float], Setting("input", common=True)] = (0.7, 0.1, 0.2)
    """Shares of train, validation and test where the input gives no split."""
    split_scheme: Annotated[Literal["official", "shots"], Setting("input")] = "official"
    """Splits of CAER-S: official (a third of each class of test is validation), or shots: all files pooled in their
    order and each class cut into one block a split, because official test images have near copies in train."""
    group_by: Annotated[str | None, Setting("input", common=True)] = None
    """Pattern of paths, such as '{show}/*', whose named part is a clip's group, which lies in one split.

    `*` is any part, `**` any folders. A manifest has a column group instead."""
    classes: Annotated[tuple[str, ...], Setting("input")] = EMOTIONS
    """Classes that labels and folders name, in the order of a network's outputs; found: those that the input has. Other
    names of the seven are taken too (happiness, angry); a label that is no class is an error."""
    label_conflicts: Annotated[Literal["refuse", "leave-out"], Setting("input")] = "refuse"
    """Files with the same bytes under two labels: refuse the input, or leave all of them out and count them."""
    corrections: Annotated[str | None, Setting("input")] = None
    """Output of jobs/score.py whose labels people corrected (path or URL): corrected faces become examples with the
    label that was said. Clips without a label of their own and without a correction are left out."""
    segment_seconds: Annotated[float, Setting("work", common=True)] = 0.0
    """Clips longer than this are cut into segments (seconds), each a unit of work and a shard of its own, so that a
    film spreads over all actors and memory stays flat; 0: never.

    For --sample-fps and --every-frame; --frames-per-clip are found in the whole clip. The examples are the same."""
    segment_at_shots: Annotated[bool, Setting("work")] = False
    """Move each cut of --segment-seconds to the last shot that begins up to 10 s before it.

    The results are the same. Before the work each film that is cut is read once more, in one process (of a remote one
    the whole file), and decoded from the key frame before those 10 s on, a fifth of it or more."""
    page: Annotated[bool, Setting("pages")] = True
    """Write report.html, which shows faces of people, into the output."""

    def __post_init__(self) -> None:
        ExtractConfig.__post_init__(self)
        PoolConfig.__post_init__(self)
        object.__setattr__(self, "output", part_url(self.output, self.part))
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.classes != FOUND:
            checked_classes(self.classes, what="--classes")
        elif self.part is not None:
            raise ValueError("--classes found looks at the whole input, and --shard at a part; name the classes")
        if self.layout not in LAYOUTS:
            raise ValueError(f"--layout is {self.layout!r}; give one of {', '.join(LAYOUTS)}")
        _one_of("--split-scheme", self.split_scheme, ("official", "shots"))
        _one_of("--label-conflicts", self.label_conflicts, ("refuse", "leave-out"))
        if self.group_by is not None:
            from pipeline.corpus.groups import group_pattern

            group_pattern(self.group_by)
        if self.segment_seconds < 0:
            raise ValueError(f"--segment-seconds is {self.segment_seconds}; give 0 (never) or more")
        if self.segment_at_shots and not self.segment_seconds:
            raise ValueError("--segment-at-shots moves the cuts of --segment-seconds; give that too, or leave it out")
        if self.segment_seconds and (fault := why_not_cut(self)):
            raise ValueError(fault)
        if abs(sum(self.split_fractions) - 1) > 1e-6 or min(self.split_fractions) < 0:
            raise ValueError(f"--split-fractions are {self.split_fractions}; give three shares that sum to 1")


def why_not_cut(config: ExtractConfig) -> str | None:
    """Why clips that are read so cannot be cut into segments, in words; None where they can."""
    if config.sample_fps is None and not config.every_frame:
        return "--segment-seconds is for --sample-fps or --every-frame; give one of them, or leave it out"
    if config.detect_every > 1 or config.whole_every > 1 or config.retry_upsample:
        others = "--detect-every, --whole-every and --retry-upsample"
        return f"--segment-seconds excludes {others}, which see whole clips; leave one out"
    return None


def plan_config_of(config: ExtractConfig) -> dict[str, Any]:
    """What a resumed run is compared by, and what a model remembers of its examples."""
    from pipeline.faces.spec import detector_spec

    values = {name: value for name, value in asdict(config).items() if name not in PATH_FIELDS}
    values["boxes_sha256"] = _sha256(config.boxes) if config.boxes else None
    weights = detector_spec(config.detector).weights if config.boxes is None else None
    values["detector_weights_sha256"] = _sha256(str(weights.find(config.detector_weights))) if weights else None
    return values


def plan_defaults() -> dict[str, Any]:
    """What counts for each setting of `plan_config_of` in an output that is older than it."""
    from pipeline.records.evolution import with_defaults

    values = with_defaults(ExtractConfig, {})
    return {name: value for name, value in values.items() if name not in PATH_FIELDS} | {"boxes_sha256": None}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the output."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _sha256(url: str) -> str:
    from pipeline.storage.remote import read_url

    try:
        return hashlib.sha256(read_url(url, max_bytes=2**30)).hexdigest()
    except FileNotFoundError:
        raise UsageError(f"no file at {url}; check --boxes or --detector-weights") from None
