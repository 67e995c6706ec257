"""What the page of a night shows."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline import report
from pipeline.records.arrow import pc
from pipeline.records.columns import FLAT_COLUMNS
from pipeline.records.documents import DocumentError, arrow_table
from pipeline.records.evolution import read_shard
from pipeline.records.faces import (
    CLIP_LABEL_SCHEMA,
    FRAME_SCHEMA,
    SHOT_SCHEMA,
    TRACK_SCHEMA,
    ClipLabel,
    Prediction,
    Shot,
    Thumbnail,
    TrackLabel,
)
from pipeline.runtime.console import log_status
from pipeline.runtime.run import Run
from pipeline.score.actor import thumbnails_folder
from pipeline.score.config import ScoreConfig
from pipeline.storage.redaction import without_secrets
from pipeline.storage.store import Storage

# Of a night's rows, what its page reads.
PAGE_CLIP_COLUMNS = [
    name for name in CLIP_LABEL_SCHEMA.names if name not in ("content_id", "state", "emotion_shares", *FLAT_COLUMNS)
]


PAGE_FRAME_COLUMNS = "frame_index pts_seconds seconds track_index box probabilities emotion stray".split()  # noqa: SIM905


SHARDS_AT_ONCE = 256


# Of one unit; a frame has 20 KB.
MAX_THUMBNAIL_BYTES = 2**30
_THUMBNAILS = re.compile(r"/g\d{3,}-u\d{6,}\.arrow$")


PAGE = "report.html"


# Units that keep small frames of their clips: twice as many as the page has room for, since some find no face.
MAX_PICTURED_UNITS = 2 * report.MAX_TIMELINES


def day_to_show(run: Run, *, day: str) -> str | None:
    """The day whose page must be written: tonight's where something was scored, else the last one with labels where the
    page that is there is gone or cut. None where nothing must."""
    if run.choice.details.num_to_score:
        return day
    try:
        is_whole = run.ledger.storage.read(PAGE).rstrip().endswith(b"</html>")
    except FileNotFoundError:
        is_whole = False
    found = "select max(regexp_extract(path, '/day=([0-9-]+)/', 1)) from shards where rows > 0"
    return None if is_whole else run.snapshot.database.value(found)


def write_page(run: Run, *, day: str, config: ScoreConfig) -> list[str]:
    """report.html of the night: totals, drift, labels, people over time, and what has no label; the sentences that it
    begins with.

    Of a night of any size only the columns and rows that the page shows are kept.
    """
    storage = run.ledger.storage
    by_unit: dict[str, dict[str, str]] = {}
    for shard in run.snapshot.shards("contains(path, $folder)", folder=f"/day={day}/"):
        by_unit.setdefault(shard["unit"], {})[shard["table"]] = shard["path"]
    paths = [each for each in by_unit.values() if "clips" in each]
    pictures: dict[str, list[Thumbnail]] = {}
    if not config.no_thumbnails:
        for thumbnail in _thumbnails_of(storage, day=day):
            pictures.setdefault(thumbnail.clip_id, []).append(thumbnail)
    labels = _night_labels(storage, [each["clips"] for each in paths])
    # Where other bytes lie by now: their labels stay as history, and are none of the collection's.
    replaced = run.snapshot.database.table("select clip_id from replaced")["clip_id"]
    labels = labels.filter(pc.invert(pc.is_in(labels["clip_id"], value_set=replaced.combine_chunks())))
    shown = []
    for label in report.shown_clips(labels, pictures.keys()):
        own = pc.field("clip_id") == label["clip_id"]
        shard = paths[label["shard"]]
        data = storage.read(shard["frames"])
        frames = read_shard(data, Prediction, FRAME_SCHEMA, columns=PAGE_FRAME_COLUMNS, filters=own)
        tracks = read_shard(storage.read(shard["tracks"]), TrackLabel, TRACK_SCHEMA, filters=own)
        cuts: list[float] = []
        if (label.get("num_shots") or 0) > 1 and "shots" in shard:
            shots = read_shard(storage.read(shard["shots"]), Shot, SHOT_SCHEMA, filters=own)
            cuts = shots.filter(shots["begins_with_cut"])["start_pts_seconds"].to_pylist()
        shown.append(report.shown_clip(label, frames, tracks, pictures.get(label["clip_id"], []), cuts=cuts))
    outcomes = run.snapshot.to_list(report.MAX_LISTED)
    page = report.score_page(
        run.summary,
        outcomes,
        labels,
        shown,
        title=f"Labels of {day}",
        labels_url=without_secrets(storage.url),
        no_thumbnails=config.no_thumbnails,
        blur_faces=config.blur_faces,
    )
    storage.put(PAGE, page.encode())
    log_status(f"page: {storage.url}/{PAGE}")
    return report.score_lead(run.summary, outcomes, labels)


def _night_labels(storage: Storage, paths: Sequence[str]) -> pa.Table:
    """`report.labels_of` the clips in these shards but copies, and in `shard` the number of each one's."""
    number, tables = 0, [report.labels_of(CLIP_LABEL_SCHEMA.empty_table().select(PAGE_CLIP_COLUMNS))]
    tables[0] = tables[0].append_column("shard", pa.array([], pa.int32()))
    for start in range(0, len(paths), SHARDS_AT_ONCE):
        read = []
        for data in storage.read_many(paths[start : start + SHARDS_AT_ONCE]).values():
            own = pc.field("same_as").is_null()
            rows = read_shard(data, ClipLabel, CLIP_LABEL_SCHEMA, columns=PAGE_CLIP_COLUMNS, filters=own)
            shard = pa.repeat(pa.scalar(number, pa.int32()), rows.num_rows)
            read.append(report.labels_of(rows.replace_schema_metadata(None)).append_column("shard", shard))
            number += 1
        tables.append(pa.concat_tables(read).combine_chunks())
    return pa.concat_tables(tables, promote_options="default")


def _thumbnails_of(storage: Storage, *, day: str) -> Iterator[Thumbnail]:
    """Small frames of a night. One that cannot be read is left out of the page."""
    names = [name for name in storage.sizes(thumbnails_folder(day)) if _THUMBNAILS.search(name)]
    few = names[:: -(-len(names) // MAX_PICTURED_UNITS) or 1]
    for data in storage.read_many(few).values():
        with contextlib.suppress(DocumentError):
            rows = arrow_table(data, "it", max_bytes=MAX_THUMBNAIL_BYTES).to_pylist()
            yield from (Thumbnail(**row) for row in rows)


def picture_options(config: ScoreConfig, num_clips: int) -> dict[str, int]:
    """Of how many clips of which units frames are kept small: together enough for the page and few more."""
    if config.no_thumbnails or not config.page:
        return {"num_pictured": 0}
    num_units = max(1, -(-num_clips // config.clips_of_unit(num_clips)))
    every = max(1, num_units // MAX_PICTURED_UNITS)
    return {"num_pictured": -(-report.MAX_TIMELINES * every // num_units), "pictured_every": every}
