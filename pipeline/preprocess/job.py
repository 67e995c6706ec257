"""A corpus of clips in, shards of examples out: the composer of corpus, extract and ledger on Ray Data.

Every clip ends as done, no_face, quarantined or retryable; the output is plain Parquet with a manifest that names each
shard and its sha256.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import report
from pipeline.corpus.read import read_corpus
from pipeline.faces.detector import Detect
from pipeline.ledger.ledger import Ledger
from pipeline.ledger.snapshot import Snapshot
from pipeline.ledger.units import Unit
from pipeline.preprocess.config import (
    KIND,
    ExtractConfig,
    PreprocessConfig,
    extract_config_of,
    plan_config_of,
    versions,
)
from pipeline.preprocess.detectors import resolve_detector_device, resolved, shared_detection
from pipeline.preprocess.extractor import ClipExtractor
from pipeline.preprocess.segments import check_shots, segmented
from pipeline.records.clips import clip_table
from pipeline.records.columns import table_of
from pipeline.records.faces import EXAMPLE_SCHEMA, Box, Example
from pipeline.runtime.console import log_as_json, log_status
from pipeline.runtime.preflight import check_clips, preflight
from pipeline.runtime.run import Run, output_for, print_summary, run_corpus
from pipeline.sandbox.limits import SandboxLimits

MAX_EXAMPLES_SHOWN = 60


class PreprocessActor:
    """Turns one unit of clips into one committed shard of examples."""

    def __init__(
        self, *, ledger_url: str, config: ExtractConfig, limits: SandboxLimits, shared_detect: Detect | None = None
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
        log_status(line)
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
        examples = list(sample_examples(run.ledger, found, most=MAX_EXAMPLES_SHOWN))
        page = report.preprocess_page(
            run.summary,
            found.latest,
            examples,
            title="Preprocessed corpus",
            no_thumbnails=config.no_thumbnails,
            blur_faces=config.blur_faces,
        )
        run.ledger.storage.put("report.html", page.encode())
        log_status(f"page: {run.ledger.storage.url}/report.html")
    print_summary(run)
    return run


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
