"""A corpus of clips in, shards of examples out: the composer of corpus, extract and ledger on Ray Data.

Every clip ends as done, no_face, quarantined or retryable; the output is plain Parquet with a manifest that names each
shard and its sha256.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa

from pipeline import report
from pipeline.corpus.read import read_corpus
from pipeline.corpus.types import Corpus
from pipeline.dataset.card import examples_card
from pipeline.dataset.description import NAME as DESCRIPTION
from pipeline.dataset.description import description_bytes, read_description
from pipeline.faces.detector import Detect
from pipeline.faces.spec import detector_spec
from pipeline.ledger.forgotten import read_records
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.removal import remove_replaced
from pipeline.ledger.snapshot import Snapshot
from pipeline.ledger.units import Unit
from pipeline.preprocess.config import (
    KIND,
    ExtractConfig,
    PreprocessConfig,
    extract_config_of,
    plan_config_of,
    plan_defaults,
    versions,
)
from pipeline.preprocess.corrected import CorrectedFaces
from pipeline.preprocess.detectors import resolve_detector_device, resolved, shared_detection
from pipeline.preprocess.extractor import ClipExtractor
from pipeline.preprocess.look_alikes import NAME as LOOK_ALIKES
from pipeline.preprocess.look_alikes import frame_hash, look_alikes
from pipeline.preprocess.segments import segmented
from pipeline.preprocess.trial import try_extraction
from pipeline.records.arrow import pc
from pipeline.records.clips import is_segment
from pipeline.records.columns import table_of
from pipeline.records.evolution import read_shard
from pipeline.records.faces import EXAMPLE_SCHEMA, Box, Example
from pipeline.records.outcomes import State
from pipeline.records.vocabulary import EMOTIONS, FOUND, UsageError, checked_classes, classes_found
from pipeline.runtime.console import log_as_json, log_status
from pipeline.runtime.job import ActorSpec, Choice, Job, go_on, unread
from pipeline.runtime.preflight import check_clips, preflight
from pipeline.runtime.run import Run, print_summary, run
from pipeline.sandbox.limits import SandboxLimits
from pipeline.storage.redaction import without_secrets
from pipeline.storage.spool import spooled
from pipeline.storage.web import let_reach, reach_of, reaching

MAX_EXAMPLES_SHOWN = 60
# What `try_out` tries.
TRIAL = "decoder, detector and crops on a made image"


class PreprocessActor:
    """Turns one unit of clips into one committed shard of examples."""

    def __init__(
        self,
        *,
        ledger_url: str,
        config: ExtractConfig,
        limits: SandboxLimits,
        reach: frozenset[str] | None = None,
        corrected: CorrectedFaces | None = None,
        shared_detect: Detect | None = None,
    ) -> None:
        let_reach(reach)
        self._corrected = corrected
        self._ledger = Ledger(ledger_url)
        self._forgotten = read_records(self._ledger.storage)
        self._extractor = ClipExtractor(config, limits=limits, shared_detect=shared_detect)
        self.clip_ended = go_on

    def close(self) -> None:
        self._extractor.close()

    def run(self, unit: Unit) -> dict[str, Any]:
        examples: list[Example] = []
        outcomes = []
        goes_on = True
        for clip in unit.clips:
            if (ended := unread(clip, unit, self._forgotten, goes_on=goes_on)) is not None:
                outcomes.append(ended)
                continue
            found, outcome = self._extractor.extract(clip)
            if self._corrected is not None:
                found = self._corrected.applied(clip, found)
                outcome = replace(outcome, num_examples=len(found))
                if outcome.state == State.DONE and not found:
                    detail = "no face of it has a label of its own or a corrected one"
                    outcome = replace(
                        outcome, state=State.NO_FACE, reason="not_labelled", stage="detect", detail=detail
                    )
            if found:
                outcome = replace(outcome, frame_hash=frame_hash(found[0]))
            examples += found
            outcomes.append(outcome)
            goes_on = self.clip_ended(outcome)
        return self._ledger.commit(
            unit,
            tables={KIND: table_of(examples, EXAMPLE_SCHEMA)},
            outcomes=outcomes,
            facts=self._extractor.facts(),
        )


def preprocess(config: PreprocessConfig, corrected: CorrectedFaces | None = None) -> Run:
    """Preprocess what is missing of the input, and write summary, manifest and page.

    corrected: what people said of its faces (`config.corrections`, which `labels/` reads).
    """
    log_as_json(config.json_logs)
    asked = extract_config_of(config)
    device = resolve_detector_device(config.detector_device, asked, no_ray=config.no_ray)
    extract_config = resolved(asked, device=device)
    for line in preflight(input_url=config.input, output_url=config.output):
        log_status(line)
    listed = []
    with reaching(reach_of(config.input, allow_private_hosts=config.allow_private_hosts)):
        if config.classes == FOUND:
            listed.append(read_input(config, corrected))
            config = replace(config, classes=classes_of_input(listed[0], corrected))
            log_status(f"classes found: {', '.join(config.classes)}")
        found = run(
            job_of(config, extract_config, device=device, corrected=corrected),
            lambda: listed.pop() if listed else read_input(config, corrected),
            config.output,
            config=config,
        )
    if corrected is not None:
        told = {"labels": config.corrections, "digest": corrected.digest, "corrections": list(corrected.correction_ids)}
        found.ledger.storage.put("corrections.json", (json.dumps(told, indent=1) + "\n").encode())
    found.ledger.storage.put(DESCRIPTION, description_bytes(read_description(config.input)))
    splits = found.snapshot.database.rows("select distinct coalesce(split, 'unsplit') as name from shards order by 1")
    found.ledger.storage.put("README.md", examples_card(row["name"] for row in splits))
    if config.page:
        write_page(found, config=config)
    print_summary(found)
    return found


def read_input(config: PreprocessConfig, corrected: CorrectedFaces | None = None) -> Corpus:
    """List the input, and read a byte of some of its clips; with corrections only clips that have a label by now.

    Raises UsageError where no corrected clip is in the input.
    """
    names = ("layout", "split_fractions", "split_scheme", "group_by", "label_conflicts", "classes")
    options = {name: getattr(config, name) for name in (*names, "follow_links", "allow_private_hosts")}
    corpus = read_corpus(config.input, shard=config.part, **options)
    if corrected is not None:
        is_corrected = pc.is_in(corpus.table["clip_id"], value_set=pa.array(list(corrected.clips), pa.string()))
        table = corpus.table.filter(pc.or_(is_corrected, pc.is_valid(corpus.table["label"])))
        if not pc.any(is_corrected).as_py():
            raise UsageError(
                f"--corrections {config.corrections}: none of its clips is in --input {config.input}; give the videos"
                " that were scored"
            )
        corpus = replace(corpus, rows=spooled(table))
    check_clips(corpus.rows)
    return corpus


def classes_of_input(corpus: Corpus, corrected: CorrectedFaces | None) -> tuple[str, ...]:
    """The classes that labels of clips and corrections name. Raises UsageError where they are no set of classes."""
    labels = {label for label in pc.unique(corpus.table["label"]).to_pylist() if label is not None}
    labels |= set() if corrected is None else corrected.labels
    return checked_classes(classes_found(labels), what="the classes found")


def job_of(
    config: PreprocessConfig, extract_config: ExtractConfig, *, device: str, corrected: CorrectedFaces | None = None
) -> Job:
    """What preprocessing is for the runner. extract_config: with `auto` resolved. device: where faces are detected."""
    shared = shared_detection(extract_config, device=device)
    spec = ActorSpec(
        build=partial(
            PreprocessActor,
            config=extract_config,
            limits=config.limits,
            reach=reach_of(config.input, allow_private_hosts=config.allow_private_hosts),
            corrected=corrected,
        ),
        start_shared=shared or dict,
    )

    def choose(ledger: Ledger, snapshot: Snapshot) -> Choice:
        del ledger
        if config.segment_seconds:
            parts = cut_long_clips(snapshot.unplanned(), config, sample_fps=config.sample_fps, stream=config.stream)
            snapshot.substitute(parts)
        return Choice()

    def finish(ledger: Ledger, snapshot: Snapshot) -> dict[str, Any]:
        num_removed = remove_replaced(ledger, snapshot)
        if num_removed:
            log_status(f"{num_removed} inputs have other bytes now: their old examples are taken out")
        return list_look_alikes(ledger, snapshot)

    return Job(
        kind=KIND,
        plan_config={
            **plan_config_of(extract_config),
            "split_fractions": list(config.split_fractions),
            "split_scheme": config.split_scheme,
            "group_by": config.group_by,
            "corrections": None if corrected is None else corrected.digest,
            **({} if config.classes == EMOTIONS else {"classes": list(config.classes)}),
        },
        plan_defaults={**plan_defaults(), "corrections": None, "split_scheme": "official", "group_by": None},
        versions=versions(),
        choose=choose,
        try_out=partial(try_out, extract_config, config.limits, device=device),
        trial=TRIAL,
        build_actor=lambda _: spec,
        finish=finish,
    )


def try_out(config: ExtractConfig, limits: SandboxLimits, *, device: str) -> list[str]:
    """Extract a made image as an actor would; lines to tell. Raises OwnFault."""
    lines: list[str] = []
    try_extraction(config, limits=limits, only_decode=device != "cpu", tell=lines.append)
    return lines


def cut_long_clips(clips: pa.Table, config: Any, *, sample_fps: float | None, stream: int | None) -> pa.Table:
    """The segments of those of these clips that are longer than the config's `segment_seconds`."""
    parts = segmented(
        clips,
        pa.array([], pa.string()),
        segment_seconds=config.segment_seconds,
        sample_fps=sample_fps,
        limits=config.limits,
        at_shots=config.segment_at_shots,
        stream=stream,
    )
    return parts.filter(is_segment(parts["clip_id"]))


def list_look_alikes(ledger: Ledger, snapshot: Snapshot) -> dict[str, Any]:
    """Write the pairs of clips that look alike across splits, where there are any, and say so; what the summary has."""
    found = look_alikes(snapshot)
    ledger.storage.delete(LOOK_ALIKES)
    if not found.is_whole:
        log_status("clips that look alike in two splits were not looked for: there are too many")
    if found.rows:
        ledger.storage.put(LOOK_ALIKES, found.csv_bytes())
        log_status(
            f"warning: {found.num_clips:,} clips of validation and test look like one of another split, which"
            f" flatters what is measured on them: {ledger.storage.url}/{LOOK_ALIKES}"
        )
    return {"look_alikes": found.num_clips if found.is_whole else None}


# Clips and examples of each class and split.
CLASSES = """select split, label, count(*)::int as clips, sum(num_examples)::int as examples
  from latest join planned using (clip_id) group by all order by all"""


def write_page(found: Run, *, config: PreprocessConfig) -> None:
    """report.html: states, reasons and a contact sheet."""
    examples = list(sample_examples(found.ledger, found.snapshot, most=MAX_EXAMPLES_SHOWN))
    page = report.preprocess_page(
        found.summary,
        found.snapshot.to_list(report.MAX_LISTED, [example.clip_id for example in examples]),
        examples,
        title="Preprocessed corpus",
        classes=list(found.snapshot.settle("planned").database.rows(CLASSES)),
        provenance={
            "Output": {"output": found.ledger.storage.url, "input": without_secrets(config.input)},
            "Detection": {"detector": config.detector, "its scores": detector_spec(config.detector).score_meaning}
            if config.boxes is None
            else {"boxes": without_secrets(config.boxes)},
        },
        no_thumbnails=config.no_thumbnails,
        blur_faces=config.blur_faces,
    )
    found.ledger.storage.put("report.html", page.encode())
    log_status(f"page: {found.ledger.storage.url}/report.html")


def sample_examples(ledger: Ledger, snapshot: Snapshot, *, most: int) -> Iterator[Example]:
    """The first example of each of up to `most` clips, from shards spread over the output."""
    where = "s.rows > 0"
    num_shards = snapshot.database.value(f"select count(*) from shards s where {where}")
    chosen = list(islice(snapshot.shards(where), 0, None, max(1, num_shards // 12)))[:12]
    for number, shard in enumerate(chosen):
        table = read_shard(ledger.storage.read(shard["path"]), Example, EXAMPLE_SCHEMA)
        seen: set[str] = set()
        share = most * (number + 1) // len(chosen) - most * number // len(chosen)
        for row in table.to_pylist():
            if row["clip_id"] not in seen and len(seen) < share:
                seen.add(row["clip_id"])
                yield Example(**{**row, "box": Box(**row["box"])})
