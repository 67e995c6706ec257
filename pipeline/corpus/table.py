"""Listed files in, the sorted table of clips with ids and splits out."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from itertools import accumulate, islice
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa

from pipeline.corpus.listing import map_in_threads, printable_path, shown_url, url_of
from pipeline.corpus.types import CORPUS_SCHEMA, ROWS_AT_ONCE, Corpus, CorpusError, Ignored, ListedFile
from pipeline.records.arrow import pc
from pipeline.records.clips import Clips
from pipeline.records.vocabulary import SPLITS
from pipeline.storage.contents import UNKNOWN, md5_of
from pipeline.storage.redaction import redacted

# A column of Arrow's strings holds no more, so some 50 million addresses.
_MAX_URL_BYTES = 2**31 - 1


# Fields of signed addresses: those of AWS, Google, Azure, CloudFront, and what others call a token.
_PASSES = re.compile(
    r"(?i)x-(amz|goog)-.*|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id|"
    r"s[vetrpi]|s[a-z]{2}|sig|sks?|sk[oteivs]+|.*(token|sign|secret|password|api_?key|auth).*"
)


def split_of(clip_id: str, split_fractions: Sequence[float]) -> str:
    """The split of a clip by the hash of its id: clips that are added or removed never move another.

    `split_fractions` are the shares of train, validation and test. Raises CorpusError if they do not sum to 1.
    """
    check_fractions(split_fractions)
    return _split_at(clip_id, split_fractions)


def _split_at(clip_id: str, split_fractions: Sequence[float]) -> str:
    position = int.from_bytes(hashlib.sha256(f"split {clip_id}".encode()).digest()[:6], "big") / 2**48
    for split, edge in zip(SPLITS, accumulate(split_fractions), strict=True):
        if position < edge:
            return split
    # The shares may sum to 1 - 1e-9.
    return max(zip(split_fractions, SPLITS, strict=True))[1]


def corpus_of(
    layout: str,
    root: str,
    *,
    files: Iterable[ListedFile],
    ignored: Iterable[Ignored],
    split_fractions: Sequence[float] | None,
    notes: Sequence[str],
) -> Corpus:
    table, num_hashed = _table(files, split_fractions)
    ignored = tuple(sorted(ignored, key=lambda item: item.path))
    return Corpus(
        layout=layout,
        root=redacted(root),
        description=_description(layout, table, [*notes], num_hashed=num_hashed, ignored=ignored),
        table=table,
        ignored=ignored,
    )


def _table(files: Iterable[ListedFile], split_fractions: Sequence[float] | None) -> tuple[pa.Table, int]:
    """Rows of CORPUS_SCHEMA, sorted, each of one clip; and how many were split by their hash."""
    parts, num_hashed, num_url_bytes, num_files = [CORPUS_SCHEMA.empty_table()], 0, 0, 0
    files = iter(files)
    while batch := list(islice(files, ROWS_AT_ONCE)):
        # Many time ranges of one large file read it once.
        unhashed = {file.place: file for file in batch if file.content_id is None}
        md5s = dict(zip(unhashed, map_in_threads(listed_md5, unhashed.values()), strict=True))
        ids = [md5s[file.place] if file.content_id is None else file.content_id for file in batch]
        rows = [_row(file, content_id, split_fractions) for file, content_id in zip(batch, ids, strict=True)]
        columns = zip(zip(*rows, strict=True), CORPUS_SCHEMA.types, strict=True)
        parts.append(pa.table([pa.array(column, kind) for column, kind in columns], schema=CORPUS_SCHEMA))
        num_files += len(batch)
        num_url_bytes += pc.sum(pc.binary_length(parts[-1]["url"])).as_py()
        if num_url_bytes > _MAX_URL_BYTES:
            raise CorpusError(
                f"the input is larger than one output can hold: the addresses of its first {num_files:,} clips take "
                f"more than {_MAX_URL_BYTES / 1e9:.1f} GB; give its sub-folders one after the other, each an --output"
            )
        num_hashed += sum(file.split is None for file in batch) if split_fractions is not None else 0
    table = pa.concat_tables(parts)
    paths = table["path"]
    if not pc.all(pc.less(paths[:-1], paths[1:])).as_py():  # the listing of a store comes sorted
        table = _sorted(table)
        ids = table["clip_id"]
        if (row := pc.index(pc.equal(ids[:-1], ids[1:]), True).as_py()) >= 0:  # One path: equal ids are neighbours.
            one, other = Clips(table[row : row + 2])
            raise CorpusError(
                f"{shown_url(one.url)!r} and {shown_url(other.url)!r} cannot be told apart: same path {other.path!r}, "
                "size and content; remove one"
            )
    return table, num_hashed


def _sorted(table: pa.Table) -> pa.Table:
    """By path, then start, end and id."""
    start, end = table["start_pts_seconds"].fill_null(0.0), table["end_pts_seconds"].fill_null(math.inf)
    keys = pa.table({"path": table["path"], "start": start, "end": end, "clip_id": table["clip_id"]})
    return table.take(pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names]))


def _description(layout: str, table: pa.Table, notes: list[str], *, num_hashed: int, ignored: Sequence[Ignored]) -> str:
    names = {"caer": "CAER layout", "caer-s": "CAER-S layout", "manifest": "manifest", "folder": "folder"}
    found = set(pc.unique(table["split"]).to_pylist())
    splits = [split for split in SPLITS if split in found]
    labels = set(pc.unique(table["label"]).to_pylist()) - {None}
    num_clips = table.num_rows
    text = f"{names[layout]}: {num_clips:,} {'clip' if num_clips == 1 else 'clips'}"
    if splits:
        text += f" in {', '.join(splits)}"
    if labels:
        notes.insert(0, f"{len(labels)} {'class' if len(labels) == 1 else 'classes'}")
        if num_unlabelled := table["label"].null_count:
            notes.insert(1, f"{num_unlabelled:,} without a label")
    if num_hashed:
        notes.append("split by hash" if num_hashed == num_clips else f"{num_hashed:,} split by hash")
    if ignored:
        notes.append(f"{len(ignored):,} ignored")
    return "; ".join([text, *notes])


def listed_md5(file: ListedFile) -> str:
    """The content id of a local file: its MD5, or "unreadable"."""
    try:
        return md5_of(file.place)
    except OSError:
        return "unreadable"


def _row(file: ListedFile, content_id: str, split_fractions: Sequence[float] | None) -> tuple[Any, ...]:
    """The values of CORPUS_SCHEMA's columns."""
    start, end = file.start_pts_seconds, file.end_pts_seconds
    clip_id, split = _clip_id(file, content_id, start, end), file.split
    if split is None and split_fractions is not None:
        # By the whole file: two time ranges of one video in train and test would leak.
        is_whole = start is None and end is None
        split = _split_at(clip_id if is_whole else _clip_id(file, content_id, None, None), split_fractions)
    url = file.url or url_of(file.place, file.store)
    path, same_as = printable_path(file.path), None
    return clip_id, path, url, file.size_bytes, content_id, file.label, split, start, end, same_as, file.modified


def _clip_id(file: ListedFile, content_id: str, start: float | None, end: float | None) -> str:
    # JSON in ASCII: no separator that a name could imitate, and a place for undecodable bytes.
    if content_id in UNKNOWN:
        # Its address alone: whether a server answered while it was listed, and what it said, must not make the id.
        text = json.dumps([file.path, *_identifying(file.url or file.place), start, end])
    else:
        text = json.dumps([file.path, file.size_bytes, content_id, start, end])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _identifying(url: str) -> list[tuple[str, str]]:
    """The fields of a web address's query that name what it gives, not those that say who may have it until when."""
    if not url.startswith(("http://", "https://")):
        return []
    fields = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    return [(name, value) for name, value in fields if not _PASSES.fullmatch(name)]


def check_fractions(split_fractions: Sequence[float]) -> None:
    shares = tuple(split_fractions)
    if len(shares) != len(SPLITS) or not all(share >= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise CorpusError(
            f"split fractions {shares} are not three shares of {', '.join(SPLITS)} that sum to 1; use 0.7, 0.1, 0.2"
        )
