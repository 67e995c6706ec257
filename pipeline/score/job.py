"""A collection of clips and a checkpoint in, labels out: extract and a model, unit by unit, on Ray Data.

The clips are read exactly as the model's training data was: the checkpoint carries its preprocessing config. One row a
face in `frames/`, one a person in `tracks/`, one a clip in `clips/`, and every clip in a state. Each model writes into
a partition of its own and scores only the content that it has not seen: see `night`.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute

from pipeline.corpus.read import read_corpus
from pipeline.ledger.audit import Audit
from pipeline.ledger.ledger import Ledger
from pipeline.models.checkpoint import read_checkpoint_info
from pipeline.models.predict import temperature_of
from pipeline.preprocess.config import ExtractConfig, extract_config_of, plan_config_of, versions, why_not_cut
from pipeline.preprocess.detectors import resolve_detector_device, resolved, shared_detection
from pipeline.preprocess.segments import check_shots, segmented
from pipeline.records.arrow import pc
from pipeline.records.clips import CLIP_SCHEMA
from pipeline.records.outcomes import State
from pipeline.records.vocabulary import UsageError
from pipeline.runtime.cluster import num_cluster_gpus
from pipeline.runtime.console import log_as_json, log_status
from pipeline.runtime.preflight import check_clips, preflight
from pipeline.runtime.run import Run, exit_code_of, output_for, print_summary, run_corpus
from pipeline.score.actor import ScoreActor, join_segments
from pipeline.score.config import ScoreConfig
from pipeline.score.night import Night, close_night, estimated_seconds, parse_since, partition_of, plan_night
from pipeline.score.page import picture_options, write_page
from pipeline.storage.remote import absolute_url

KIND = "labels"


# Where network and detector share the GPUs: one detector on each (two do not fit), and up to 20 actors with a network
# each, because they decode on CPUs and a network's turn is short.
DETECTOR_GPU = 0.6


ACTOR_GPU = 0.02


def score(config: ScoreConfig) -> Run:
    """Label what this model has not seen of the input, and write summary, manifest, the night's record and page."""
    started = time.monotonic()
    log_as_json(config.json_logs)
    if config.segment_at_shots:
        check_shots()
    info = read_checkpoint_info(config.checkpoint, config.epoch)
    asked = _extract_config(config, info)
    detector_device = resolve_detector_device(config.detector_device, asked)
    extract_config = resolved(asked, device=detector_device)
    plan_config = {
        **plan_config_of(extract_config),
        "checkpoint_sha256": info["checkpoint_sha256"],
        "temperature": temperature_of(info),
        "abstain_below": config.abstain_below,
    }
    output = output_for(
        partition_of(config.output, info["checkpoint_sha256"]),
        kind=KIND,
        plan_config=plan_config,
        force_new=config.force_new,
    )
    ledger = Ledger(output)
    ledger.check(kind=KIND, config=plan_config)
    if not config.dry_run:
        for line in preflight(input_url=config.input, output_url=output):
            log_status(line)
    corpus = read_corpus(config.input, layout=config.layout, split_fractions=None)
    night = plan_night(
        ledger,
        corpus,
        since=parse_since(config.since) if config.since else None,
        limit=config.limit,
        paths_matter=config.boxes is not None,
    )
    log_status(f"model {info['checkpoint_sha256'][:12]}: {night}")
    if config.dry_run or night.is_settled:
        return _told(ledger, night, config=config, started=started)
    check_clips(corpus.table)
    clips = _cut(ledger, night, config=config, extract_config=extract_config) if config.segment_seconds else night.clips
    device = _device(config.device) if night.num_to_score else "cpu"  # To ask for a GPU starts Ray.
    day = config.day or datetime.now(UTC).strftime("%Y-%m-%d")

    def close(ledger: Ledger) -> dict[str, Any]:
        found, sha256 = ledger.snapshot(), info["checkpoint_sha256"]
        entries = join_segments(ledger, found, checkpoint_sha256=sha256, abstain_below=config.abstain_below, day=day)
        return close_night(ledger, found.with_entries(entries) if entries else found, day=day)

    run = run_corpus(
        corpus,
        output,
        kind=KIND,
        plan_config=plan_config,
        versions=versions(),
        actor=ScoreActor,
        arguments={
            "config": extract_config,
            "limits": config.limits,
            "checkpoint": absolute_url(config.checkpoint),
            "which": info["epoch"],
            "device": device,
            "batch_size": config.batch_size,
            "abstain_below": config.abstain_below,
            "day": day,
            **picture_options(config, night.num_to_score),
            "blur_faces": config.blur_faces,
        },
        config=replace(config, force_new=False),
        num_gpus=_gpu_of_actor(device=device, detector_device=detector_device),
        start_shared=shared_detection(extract_config, device=detector_device, num_gpus_each=DETECTOR_GPU),
        close=close,
        clips=clips,
    )
    if config.page and night.num_to_score:
        write_page(run, day=day, config=config)
    print_summary(run)
    for line in run.summary.get("drift", {}).get("warnings", ()):
        log_status(f"warning: {line}", event="warning")
    return run


def _cut(ledger: Ledger, night: Night, *, config: ScoreConfig, extract_config: ExtractConfig) -> pa.Table:
    """The night's clips, the long ones among the new as segments and the clip that joins them."""
    clips = segmented(
        night.clips,
        ledger.planned_ids(),
        segment_seconds=config.segment_seconds,
        sample_fps=extract_config.sample_fps,
        limits=config.limits,
        at_shots=config.segment_at_shots,
    )
    joins = night.clips.filter(pc.invert(pc.field("clip_id").isin(clips["clip_id"])))
    place = CLIP_SCHEMA.get_field_index("same_as")
    return pa.concat_tables([clips, joins.set_column(place, CLIP_SCHEMA.field(place), joins["clip_id"])])


def _told(ledger: Ledger, night: Night, *, config: ScoreConfig, started: float) -> Run:
    """The end of a run that starts no work: what was or would be done, from the outcomes alone."""
    count = {str(state): pc.sum(pc.equal(night.outcomes["state"], state.value)).as_py() or 0 for state in State}
    audit = Audit(num_inputs=night.outcomes.num_rows, num_by_state=count, problems=())
    summary = {"new": night.num_new, "to_score": night.num_to_score, "same_content": night.num_copies}
    if config.dry_run:
        seconds, source = estimated_seconds(ledger, night)
        summary |= {"dry_run": True, "core_hours": round(seconds / 3600, 4)}
        log_status(f"dry run: {night.num_to_score} clips to score, about {seconds / 3600:.2f} core-hours ({source})")
        return Run(ledger=ledger, summary=summary, audit=audit, exit_code=0)
    with ledger.lock():
        seconds = round(time.monotonic() - started, 3)
        this_run = {"processed": 0, "scored": 0, "same_content": 0, "seconds": seconds, "clips_per_second": 0.0}
        summary = {**json.loads(ledger.storage.read("summary.json")), **this_run, "errors": []}
        ledger.storage.put("summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    log_status(f"nothing is missing: every input has a state ({seconds:.1f} s)")
    log_status(str(audit))
    log_status(f"output: {ledger.storage.url}")
    return Run(ledger=ledger, summary=summary, audit=audit, exit_code=exit_code_of(summary, audit, config))


def _extract_config(config: ScoreConfig, info: dict[str, Any]) -> ExtractConfig:
    saved = info["config"]["preprocessing"]
    if not isinstance(saved, dict) or "detector" not in saved:
        raise UsageError(f"checkpoint {config.checkpoint} does not say how its examples were made; train it again")
    values = {**saved, "faces": config.faces, "boxes": config.boxes, "detector_weights": config.detector_weights}
    found = extract_config_of(values)
    if config.segment_seconds and (fault := why_not_cut(found)):
        raise UsageError(f"checkpoint {config.checkpoint} was trained on clips read in another way: {fault}")
    return found


def _gpu_of_actor(*, device: str, detector_device: str) -> float:
    if device == "cpu":
        return 0.0
    return ACTOR_GPU if detector_device == "cuda" else 1.0


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if num_cluster_gpus() >= 1 else "cpu"
    return asked
