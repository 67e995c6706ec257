"""A corpus of clips in, shards of examples out: the composer of corpus, extract and ledger on Ray Data.

Every clip ends as done, no_face, quarantined or retryable; the output is plain Parquet with a manifest that names each
shard and its sha256.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import report
from pipeline.console import log_as_json, say
from pipeline.corpus import LAYOUTS, read_corpus
from pipeline.detection import find_weights, resolve_device, resolve_precision
from pipeline.detection.boxes import read_boxes
from pipeline.extract import ClipExtractor, Detect, ExtractConfig, detector_of, extract_config_of
from pipeline.fence import FenceLimits
from pipeline.gpu_detection import start_detectors
from pipeline.ledger import Ledger, Snapshot, Unit
from pipeline.pool import PoolConfig, Run, num_cluster_gpus, output_for, print_summary, run_corpus
from pipeline.preflight import check_clips, preflight
from pipeline.records import EXAMPLE_SCHEMA, Box, Example, UsageError, clip_table, table_of
from pipeline.segments import check_shots, segmented
from pipeline.storage import absolute_url, read_url

KIND = "examples"
MOST_EXAMPLES_SHOWN = 60
PACKAGES = ("av", "decord", "dlib", "dlib-bin", "numpy", "pillow", "pyarrow", "ray", "torch")
# Where a file lies on this machine is no part of what was done with it; its sha256 is.
PATH_FIELDS = ("boxes", "detector_weights")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(ExtractConfig, PoolConfig):
    """Decodes clips, finds faces, and writes face crops and masked contexts as Parquet shards."""

    input: str
    """Folder, CAER or CAER-S tree, manifest (CSV or Parquet), glob or single file; a path or any fsspec URL."""
    output: str
    """Folder of the results; a path or any fsspec URL. Run the same command again to resume."""
    layout: str = "auto"
    """Layout of the input: auto, caer, caer-s, manifest, folder."""
    split_fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of train, validation and test where the input gives no split; by clip, stable when clips are added."""
    segment_seconds: float = 0.0
    """Clips longer than this are cut into segments (seconds), each a unit of work and a shard of its own, so that a
    film spreads over all actors and memory stays flat; 0: never.

    For --sample-fps and --every-frame; --frames-per-clip are found in the whole clip. The examples are the same."""
    segment_at_shots: bool = False
    """Move each cut of --segment-seconds to the last shot that begins up to 10 s before it (extra [shots]).

    The results are the same. Before the work each film that is cut is read once more, in one process (of a remote one
    the whole file), and decoded from the key frame before those 10 s on, a fifth of it or more."""
    page: bool = True
    """Write report.html, which shows faces of people, into the output."""

    def __post_init__(self) -> None:
        ExtractConfig.__post_init__(self)
        PoolConfig.__post_init__(self)
        if self.layout not in LAYOUTS:
            raise ValueError(f"--layout is {self.layout!r}; give one of {', '.join(LAYOUTS)}")
        if self.segment_seconds < 0:
            raise ValueError(f"--segment-seconds is {self.segment_seconds}; give 0 (never) or more")
        if self.segment_at_shots and not self.segment_seconds:
            raise ValueError("--segment-at-shots moves the cuts of --segment-seconds; give that too, or leave it out")
        if self.segment_seconds and (fault := why_not_cut(self)):
            raise ValueError(fault)
        if abs(sum(self.split_fractions) - 1) > 1e-6 or min(self.split_fractions) < 0:
            raise ValueError(f"--split-fractions are {self.split_fractions}; give three shares that sum to 1")


class PreprocessActor:
    """Turns one unit of clips into one committed shard of examples."""

    def __init__(
        self, *, ledger_url: str, config: ExtractConfig, limits: FenceLimits, shared_detect: Detect | None = None
    ) -> None:
        self._ledger = Ledger(ledger_url)
        self._extractor = ClipExtractor(config, limits=limits, shared_detect=shared_detect)

    def run(self, unit: Unit) -> dict[str, Any]:
        examples: list[Example] = []
        outcomes = []
        for clip in unit.clips:
            found, outcome = self._extractor.extract(clip)
            examples += found
            outcomes.append(outcome)
        return self._ledger.commit(
            unit,
            tables={KIND: table_of(examples, EXAMPLE_SCHEMA)},
            outcomes=outcomes,
            facts=self._extractor.facts(),
        )


def preprocess(config: PreprocessConfig) -> Run:
    """Preprocess what is missing of the input, and write summary, manifest and page."""
    log_as_json(config.json_logs)
    if config.segment_at_shots:
        check_shots()
    asked = extract_config_of(config)
    device = resolve_detector_device(config.detector_device, asked)
    extract_config = resolved(asked, device=device)
    for line in preflight(input_url=config.input, output_url=config.output):
        say(line)
    corpus = read_corpus(config.input, layout=config.layout, split_fractions=config.split_fractions)
    check_clips(corpus.table)
    plan_config = {**plan_config_of(extract_config), "split_fractions": list(config.split_fractions)}
    output = output_for(config.output, kind=KIND, plan_config=plan_config, force_new=config.force_new)
    clips = clip_table(corpus.table)
    if config.segment_seconds:
        ledger = Ledger(output)
        ledger.check(kind=KIND, config=plan_config)
        clips = segmented(
            clips,
            ledger.planned_ids(),
            segment_seconds=config.segment_seconds,
            sample_fps=config.sample_fps,
            limits=config.limits,
            at_shots=config.segment_at_shots,
        )
    run = run_corpus(
        corpus,
        output,
        kind=KIND,
        plan_config=plan_config,
        versions=versions(),
        actor=PreprocessActor,
        arguments={"config": extract_config, "limits": config.limits},
        config=replace(config, force_new=False),
        start_shared=shared_detection(extract_config, device=device),
        clips=clips,
    )
    if config.page:
        found = run.found or run.ledger.snapshot()
        examples = list(sample_examples(run.ledger, found, most=MOST_EXAMPLES_SHOWN))
        page = report.preprocess_page(
            run.summary,
            found.latest,
            examples,
            title="Preprocessed corpus",
            no_thumbnails=config.no_thumbnails,
            blur_faces=config.blur_faces,
        )
        run.ledger.storage.put("report.html", page.encode())
        say(f"page: {run.ledger.storage.url}/report.html")
    print_summary(run)
    return run


def why_not_cut(config: ExtractConfig) -> str | None:
    """Why clips that are read so cannot be cut into segments, in words; None where they can."""
    if config.sample_fps is None and not config.every_frame:
        return "--segment-seconds is for --sample-fps or --every-frame; give one of them, or leave it out"
    if config.detect_every > 1 or config.retry_upsample:
        return "--segment-seconds excludes --detect-every and --retry-upsample, which see whole clips; leave one out"
    return None


def resolve_detector_device(asked: str, config: ExtractConfig) -> str:
    """`cpu` or `cuda`, for --detector-device: auto is CUDA where the cluster has a GPU and the detector runs there.

    Joins the cluster that RAY_ADDRESS names to ask it; one without a GPU may bring it later. Raises UsageError where
    cuda cannot be had.
    """
    if asked == "cpu" or config.boxes is not None:
        return "cpu"
    on_cpu_alone = config.detector if config.detector != "dlib-cnn" else None
    if config.detector_precision == "int8":
        on_cpu_alone = "--detector-precision int8"
    if on_cpu_alone:
        if asked == "cuda":
            raise UsageError(
                f"--detector-device is cuda, but {on_cpu_alone} runs on CPU alone; give --detector dlib-cnn in bf16 or "
                "fp32, or --detector-device cpu"
            )
        return "cpu"
    if os.environ.get("RAY_ADDRESS"):
        # Loads PyTorch before the cluster is joined: nodes that share a machine each unpack the job's folder anew then,
        # and MKL ends a process whose folder was removed before.
        resolve_device("auto")
        has_gpu = num_cluster_gpus() >= 1
        if asked == "cuda" and not has_gpu:
            say("the cluster has no GPU now: asking it for one, as one that scales from zero needs")
        return "cuda" if has_gpu or asked == "cuda" else "cpu"
    return resolve_device(asked)  # A local Ray has what this machine has.


def shared_detection(
    config: ExtractConfig, *, device: str, num_gpus_each: float = 1.0
) -> Callable[[], Mapping[str, Any]] | None:
    """What starts the detectors that all actors of a run share, on CUDA; None on CPU, where each has its own."""
    if device == "cpu":
        return None
    return lambda: {"shared_detect": start_detectors(config, device=device, num_gpus_each=num_gpus_each)}


def resolved(config: ExtractConfig, *, device: str = "cpu") -> ExtractConfig:
    """The config with `auto` decided here, once, so that every actor of a cluster does the same arithmetic.

    device: cpu or cuda, where faces will be detected; this machine need not have it. Raises UsageError for a wrong box
    list, weights file or option now, instead of in every actor.
    """
    values = asdict(config)
    if config.detector == "dlib-cnn":
        # Not resolve_precision(..., "cuda"): the driver of a cluster may have no GPU of its own.
        is_bf16 = device == "cuda" and config.detector_precision == "auto"
        values["detector_precision"] = "bf16" if is_bf16 else resolve_precision(config.detector_precision, "cpu")
    for name in PATH_FIELDS:
        if values[name] is not None:
            values[name] = absolute_url(values[name])
    if config.boxes is not None:
        read_boxes(values["boxes"])
    found = ExtractConfig(**values)
    detector_of(found)
    return found


def plan_config_of(config: ExtractConfig) -> dict[str, Any]:
    """What a resumed run is compared by, and what a model remembers of its examples."""
    values = {name: value for name, value in asdict(config).items() if name not in PATH_FIELDS}
    values["boxes_sha256"] = _sha256(config.boxes) if config.boxes else None
    uses_weights = config.boxes is None and config.detector.startswith("dlib-cnn")
    values["detector_weights_sha256"] = _sha256(str(find_weights(config.detector_weights))) if uses_weights else None
    return values


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the output."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def sample_examples(ledger: Ledger, found: Snapshot, *, most: int) -> Iterator[Example]:
    """The first example of each of up to `most` clips, from shards spread over the output."""
    shards = [shard for head in found.heads for shard in head["shards"] if shard["rows"]]
    chosen = shards[:: max(1, len(shards) // 12)][:12]
    for number, shard in enumerate(chosen):
        data = ledger.storage.read(shard["path"])
        table = pq.read_table(pa.BufferReader(data))
        seen: set[str] = set()
        share = most * (number + 1) // len(chosen) - most * number // len(chosen)
        for row in table.to_pylist():
            if row["clip_id"] not in seen and len(seen) < share:
                seen.add(row["clip_id"])
                yield Example(**{**row, "box": Box(**row["box"])})


def _sha256(url: str) -> str:
    try:
        return hashlib.sha256(read_url(url)).hexdigest()
    except FileNotFoundError:
        raise UsageError(f"no file at {url}; check --boxes or --detector-weights") from None
