"""What a plan is made of: order, groups, and what is tried again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.ledger.snapshot import NOT_FINISHED, Snapshot
from pipeline.records.arrow import combined, pc
from pipeline.records.outcomes import State
from pipeline.storage.archives.members import MEMBERS_START, reading_order
from pipeline.storage.redaction import without_secrets

UNSPLIT = "unsplit"


COPIES = "copies"


def without_addresses(clips: pa.Table) -> pa.Table:
    """The clips with urls that may be written down: a signed address would be a password in a file, and is dead the day
    after; `pending_units` takes today's."""
    has_secret = pc.match_substring_regex(clips["url"], "@|%40|^https?:|https?%3A")
    if not pc.any(has_secret).as_py():
        return clips
    urls = pa.array(map(without_secrets, clips["url"].filter(has_secret).to_pylist()), pa.string())
    urls = pc.replace_with_mask(combined(clips["url"]), combined(has_secret), urls)
    place = clips.schema.get_field_index("url")
    return clips.set_column(place, clips.schema.field(place), urls)


def reading_ranks(urls: pa.ChunkedArray) -> pa.Array:
    """The place of each URL by its `reading_order`; 0 for those of files, most often all."""
    is_ordered = combined(pc.starts_with(urls, MEMBERS_START))
    orders = [reading_order(url) for url in urls.filter(is_ordered).to_pylist()]
    rank = {order: number for number, order in enumerate(sorted({(), *orders}))}
    found = pa.array([rank[order] for order in orders], pa.int64())
    return pc.replace_with_mask(pa.repeat(pa.scalar(0, pa.int64()), len(urls)), is_ordered, found)


def ids_to_retry(found: Snapshot) -> pa.ChunkedArray | pa.Array:
    """The ids of clips and segments whose latest unit ended retryable."""
    is_retryable = pc.field("state") == State.RETRYABLE.value
    if not found.outcomes.filter(is_retryable).num_rows:
        return pa.array([], pa.string())  # `latest_parts` has a row for each that is not finished: maybe millions.
    return found.latest_parts.filter(is_retryable & (pc.field("reason") != NOT_FINISHED))["clip_id"]


def describe_differences(saved: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    names = sorted(set(saved) | set(asked))
    return ", ".join(
        f"{name} {saved.get(name)!r} -> {asked.get(name)!r}" for name in names if saved.get(name) != asked.get(name)
    )
