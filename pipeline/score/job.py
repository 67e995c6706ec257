"""A collection of clips and a checkpoint in, labels out: extract and a model, unit by unit, on Ray Data.

The clips are read exactly as the model's training data was: the checkpoint carries its preprocessing config. One row a
face in `frames/`, one a person in `tracks/`, one a clip in `clips/`, and every clip in a state. Each model writes into
a partition of its own and scores only the content that it has not seen: see `night`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.corpus.read import read_corpus
from pipeline.corpus.types import Corpus
from pipeline.dataset.card import labels_card
from pipeline.faces.same_person import check_linking
from pipeline.ledger.audit import audit
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.snapshot import Snapshot
from pipeline.models.checkpoint_info import read_checkpoint_info, temperature_of
from pipeline.models.shipped import portable
from pipeline.preprocess.config import (
    ExtractConfig,
    plan_config_of,
    plan_defaults,
    versions,
)
from pipeline.preprocess.detectors import resolve_detector_device, resolved, shared_detection
from pipeline.preprocess.job import TRIAL, cut_long_clips, try_out
from pipeline.preprocess.trial import made_example
from pipeline.records.arrow import combined, pc
from pipeline.records.clips import CLIP_SCHEMA, whole_ids
from pipeline.records.vocabulary import EMOTIONS
from pipeline.runtime.console import log_as_json, log_status
from pipeline.runtime.job import ActorSpec, Choice, Job
from pipeline.runtime.preflight import check_clips, preflight
from pipeline.runtime.run import Run, output_for, prepare, print_summary, run
from pipeline.runtime.worker_device import resolve_worker_device
from pipeline.score.actor import ScoreActor, join_segments
from pipeline.score.config import ScoreConfig, parse_since
from pipeline.score.model import ModelRecord, describe_model, model_record
from pipeline.score.night import (
    Night,
    close_night,
    describe_night,
    estimated_seconds,
    partition_of,
    plan_night,
)
from pipeline.score.page import day_to_show, picture_options, write_page
from pipeline.score.reading import read_otherwise, reading_config
from pipeline.storage.web import reach_of, reaching

KIND = "labels"


# Where network and detector share the GPUs: one detector on each (two do not fit), and up to 20 actors with a network
# each, because they decode on CPUs and a network's turn is short.
DETECTOR_GPU = 0.6


ACTOR_GPU = 0.02


def score(config: ScoreConfig, info: dict[str, Any] | None = None) -> Run:
    """Label what this model has not seen of the input, and write summary, manifest, the night's record and page.

    info: of the checkpoint, where it has been read (`read_checkpoint_info`).
    """
    log_as_json(config.json_logs)
    info = info or read_checkpoint_info(config.checkpoint, config.epoch)
    asked = reading_config(config, info)
    if config.link_persons:
        check_linking()
    detector_device = resolve_detector_device(config.detector_device, asked, no_ray=config.no_ray)
    extract_config = resolved(asked, device=detector_device)
    day = config.day or datetime.now(UTC).strftime("%Y-%m-%d")
    record = model_record(info, abstain_below=config.abstain_below)
    log_status(describe_model(record))
    if record.warnings:
        log_status(f"warning: {'; '.join(record.warnings)}", event="warning")
    job = job_of(config, info, extract_config, record=record, detector_device=detector_device, day=day)
    output = partition_of(config.output, info["checkpoint_sha256"])
    if config.dry_run:
        return _dry_run(job, output_for(output, job=job, force_new=config.force_new), config=config)
    for line in preflight(input_url=config.input, output_url=output):
        log_status(line)
    with reaching(reach_of(config.input, allow_private_hosts=config.allow_private_hosts)):
        found = run(job, partial(read_input, config), output, config=config)
    has_shots = found.snapshot.database.value("select count(*) from shards where \"table\" = 'shots'") > 0
    found.ledger.storage.put("README.md", labels_card(has_shots=has_shots, classes=record.classes))
    shown = day_to_show(found, day=day) if config.page else None
    lead = [] if shown is None else write_page(found, day=shown, config=config)
    print_summary(found)
    if lead:
        log_status(f"{' '.join(lead[:2])} To watch them: python jobs/view.py {config.output}")
    for line in found.summary.get("drift", {}).get("warnings", ()):
        log_status(f"warning: {line}", event="warning")
    return found


def read_input(config: ScoreConfig) -> Corpus:
    """List the input, and read a byte of some of its clips."""
    corpus = list_corpus(config)
    check_clips(corpus.rows)
    return corpus


def list_corpus(config: ScoreConfig) -> Corpus:
    """List the input."""
    return read_corpus(
        config.input,
        layout=config.layout,
        split_fractions=None,
        follow_links=config.follow_links,
        allow_private_hosts=config.allow_private_hosts,
        shard=config.part,
        classes=None,  # Labels say nothing to a model.
    )


def job_of(
    config: ScoreConfig,
    info: dict[str, Any],
    extract_config: ExtractConfig,
    *,
    record: ModelRecord,
    detector_device: str,
    day: str,
) -> Job:
    """What scoring is for the runner.

    Args:
        info, record: of the checkpoint (`read_checkpoint_info`, `model_record`).
        extract_config, detector_device: how and where faces are detected, with `auto` resolved.
        day: under which the labels are filed.
    """
    sha256 = info["checkpoint_sha256"]
    plan_config = {**plan_config_of(extract_config), **_model_config(info, record)}
    linking = {"link_persons": config.link_persons, "keep_embeddings": config.keep_embeddings}
    labelled = {"abstain_below": record.abstain_below, "day": day, **linking}

    def choose(ledger: Ledger, snapshot: Snapshot) -> Choice:
        since, paths_matter = parse_since(config.since) if config.since else None, config.boxes is not None
        night = plan_night(snapshot, since=since, limit=config.limit, paths_matter=paths_matter)
        if config.segment_seconds:
            snapshot.substitute(_with_joins(snapshot.unplanned(), config, extract_config))
        lines = (*read_otherwise(ledger, plan_config), f"model {sha256[:12]}: {describe_night(night)}")
        return Choice(lines=lines, details=night)

    def build_actor(choice: Choice) -> ActorSpec:
        device = resolve_worker_device(config.device, no_ray=config.no_ray)
        build = partial(
            ScoreActor,
            config=extract_config,
            reach=reach_of(config.input, allow_private_hosts=config.allow_private_hosts),
            checkpoint=portable(config.checkpoint),
            which=info["epoch"],
            device=device,
            **{name: getattr(config, name) for name in ("limits", "batch_size", "blur_faces", "shots")},
            **picture_options(config, choice.details.num_to_score),
            **labelled,
        )
        shared = shared_detection(extract_config, device=detector_device, num_gpus_each=DETECTOR_GPU)
        return ActorSpec(build=build, num_gpus=_gpu_of_actor(device, detector_device), start_shared=shared or dict)

    def finish(ledger: Ledger, snapshot: Snapshot) -> dict[str, Any]:
        join_segments(ledger, snapshot, checkpoint_sha256=sha256, classes=record.classes, **labelled)
        return {"model": record.facts(), **close_night(ledger, snapshot, day=day)}

    return Job(
        kind=KIND,
        plan_config=plan_config,
        plan_defaults={**plan_defaults(), "temperature": 1.0, "abstain_below": 0.0, "classes": list(EMOTIONS)},
        versions=versions(),
        choose=choose,
        try_out=partial(_try_out, config, info, extract_config, device=detector_device),
        trial=f"{TRIAL}, the network on a made face",
        build_actor=build_actor,
        finish=finish,
    )


def _try_out(config: ScoreConfig, info: dict[str, Any], extract_config: ExtractConfig, *, device: str) -> list[str]:
    """Extract a made image and label a made face, as an actor would; lines to tell.

    Raises OwnFault, or what the network raises.
    """
    from pipeline.models.predict import Predictor  # PyTorch, which planning alone does without.

    lines = try_out(extract_config, config.limits, device=device)
    Predictor(config.checkpoint, which=info["epoch"], device="cpu", batch_size=1).predict([made_example()])
    return lines


def _model_config(info: dict[str, Any], record: ModelRecord) -> dict[str, Any]:
    sha256, temperature = info["checkpoint_sha256"], temperature_of(info)
    return {
        "checkpoint_sha256": sha256,
        "temperature": temperature,
        "abstain_below": record.abstain_below,
        "classes": list(record.classes),
    }


def _with_joins(clips: pa.Table, config: ScoreConfig, extract: ExtractConfig) -> pa.Table:
    """The segments of the long ones among these clips, and each such clip as what joins them."""
    wanted = clips.filter(pc.is_null(clips["same_as"]))
    parts = cut_long_clips(wanted, config, sample_fps=extract.sample_fps, stream=extract.stream)
    joins = clips.filter(pc.is_in(clips["clip_id"], value_set=combined(whole_ids(parts["clip_id"]))))
    place = CLIP_SCHEMA.get_field_index("same_as")
    return pa.concat_tables([parts, joins.set_column(place, CLIP_SCHEMA.field(place), joins["clip_id"])])


def _dry_run(job: Job, output: str, *, config: ScoreConfig) -> Run:
    """Tell what would be done; write nothing."""
    ledger = Ledger(output)
    ledger.check(kind=job.kind, config=job.plan_config, defaults=job.plan_defaults)
    snapshot = ledger.snapshot(memory_bytes=config.driver_memory * 2**20)
    choice = prepare(job, ledger, snapshot, list_corpus(config))
    night: Night = choice.details
    seconds, source = estimated_seconds(ledger, night)
    summary = {
        "new": night.num_new,
        "to_score": night.num_to_score,
        "same_content": night.num_copies,
        "dry_run": True,
        "core_hours": round(seconds / 3600, 4),
    }
    log_status(f"dry run: {night.num_to_score} clips to score, about {seconds / 3600:.2f} core-hours ({source})")
    ledger.store_listing(snapshot)
    return Run(ledger=ledger, snapshot=snapshot, summary=summary, audit=audit(snapshot), exit_code=0, choice=choice)


def _gpu_of_actor(device: str, detector_device: str) -> float:
    if device == "cpu":
        return 0.0
    return ACTOR_GPU if detector_device == "cuda" else 1.0
