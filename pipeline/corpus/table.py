"""Listed files in, the sorted table of clips with ids and splits out."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa

from pipeline.corpus.alike import key_of_bytes, with_bytes_read
from pipeline.corpus.groups import Kin, content_key, group_key, kin_of
from pipeline.corpus.listing import map_in_threads, printable_path, shown_url, url_of
from pipeline.corpus.sorting import sorted_tables
from pipeline.corpus.types import (
    CORPUS_SCHEMA,
    IGNORED_SCHEMA,
    ROWS_AT_ONCE,
    Corpus,
    CorpusError,
    Ignored,
    IgnoredFiles,
    ListedFile,
)
from pipeline.records.arrow import pc
from pipeline.records.clips import Clips
from pipeline.records.parts import is_of_part
from pipeline.records.vocabulary import SPLITS
from pipeline.storage.archives.members import MEMBERS_START
from pipeline.storage.contents import HASHED_ID, UNKNOWN, md5_of
from pipeline.storage.redaction import redacted
from pipeline.storage.spool import BatchSpool

# Fields of signed addresses: those of AWS, Google, Azure, CloudFront, and what others call a token.
_PASSES = re.compile(
    r"(?i)x-(amz|goog)-.*|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id|"
    r"s[vetrpi]|s[a-z]{2}|sig|sks?|sk[oteivs]+|.*(token|sign|secret|password|api_?key|auth).*"
)


LabelConflicts = Literal["keep", "refuse", "leave-out"]
SplitScheme = Literal["official", "shots"]


@dataclass(frozen=True, kw_only=True)
class SplitRules:
    """How clips get their splits.

    split_fractions: shares of train, validation and test where the input says none; None: clips then have none.
    group_of: the group in a clip's path, where the manifest says none. label_conflicts: what is done with clips whose
    bytes (and times) another has under another label: keep, refuse the input, or leave all of them out. scheme: of
    CAER-S as shipped, see `layouts`. shard: number and count of the part of the input that is taken (`records.parts`).
    """

    split_fractions: Sequence[float] | None = (0.7, 0.1, 0.2)
    group_of: Callable[[str], str | None] | None = None
    label_conflicts: LabelConflicts = "keep"
    scheme: SplitScheme = "official"
    shard: tuple[int, int] | None = None


def needs_bytes(rules: SplitRules) -> bool:
    """Whether it matters which clips have the same bytes."""
    return rules.split_fractions is not None or rules.label_conflicts != "keep"


def split_of(key: str, split_fractions: Sequence[float]) -> str:
    """The split of a key, by its hash: clips that are added or removed never move another.

    A clip's key is its group, else its content: neither a renamed folder nor a copy changes it (`split_key`).

    `split_fractions` are the shares of train, validation and test. Raises CorpusError if they do not sum to 1.
    """
    check_fractions(split_fractions)
    return _split_at(key, split_fractions)


def split_key(*, group: str | None, content_id: str, clip_id: str) -> str:
    """What decides the split of a clip. clip_id: of its whole file, where nothing is known of its content."""
    if group is not None:
        return group_key(group)
    return content_id if re.fullmatch(HASHED_ID, content_id) else clip_id


def _split_at(key: str, split_fractions: Sequence[float]) -> str:
    digest = hashlib.sha256(f"split {key}".encode(errors="surrogateescape")).digest()
    position = int.from_bytes(digest[:6], "big") / 2**48
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
    rules: SplitRules,
    notes: Sequence[str],
) -> Corpus:
    """The corpus of these files, sorted, with ids and splits. notes: for its description. Raises CorpusError."""
    if rules.scheme != "official" and layout != "caer-s":
        raise CorpusError(
            f"--split-scheme {rules.scheme!r} is for CAER-S, and the input is in the layout {layout!r}; leave it out"
        )
    if (shard := rules.shard) is not None:
        files = (file for file in files if is_of_part(file.path, shard))
        ignored = (item for item in ignored if is_of_part(item.path, shard))
        notes = [*notes, f"part {shard[0]} of {shard[1]}"]
    rows, counts = _rows(files, rules)
    if counts.num_members and needs_bytes(rules):
        rows = with_bytes_read(rows)
    rows, counts, conflicting, told = _with_kin(rows, counts, rules)
    ignored = _ignored_in_order(IgnoredFiles(chain(ignored, conflicting)))
    return Corpus(
        layout=layout,
        root=redacted(root),
        description=_description(layout, rows.num_rows, [*notes, *told], counts=counts, ignored=ignored),
        rows=rows,
        ignored=ignored,
    )


@dataclass(kw_only=True)
class _Counts:
    """What there are of clips. num_given, num_hashed: with a split of the input's, and by their hash. num_members:
    of archives."""

    splits: set[str | None] = field(default_factory=set)
    labels: set[str | None] = field(default_factory=set)
    groups: set[str | None] = field(default_factory=set)
    num_unlabelled: int = 0
    num_given: int = 0
    num_hashed: int = 0
    num_ungrouped: int = 0
    num_members: int = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self.splits |= set(pc.unique(batch["split"]).to_pylist())
        self.labels |= set(pc.unique(batch["label"]).to_pylist())
        self.groups |= set(pc.unique(batch["group_name"]).to_pylist())
        self.num_unlabelled += batch["label"].null_count
        self.num_ungrouped += batch["group_name"].null_count
        self.num_members += pc.sum(pc.starts_with(batch["url"], MEMBERS_START)).as_py() or 0
        num_given = pc.sum(batch["is_split_given"]).as_py() or 0
        self.num_given += num_given
        self.num_hashed += batch.num_rows - num_given - batch["split"].null_count


def _rows(files: Iterable[ListedFile], rules: SplitRules) -> tuple[BatchSpool, _Counts]:
    """Rows of CORPUS_SCHEMA, sorted, each of one clip; and what there are."""
    rows, counts = BatchSpool(), _Counts()
    last, is_sorted = "", True
    files = iter(files)
    while some := list(islice(files, ROWS_AT_ONCE)):
        # Many time ranges of one large file read it once.
        unhashed = {file.place: file for file in some if file.content_id is None}
        md5s = dict(zip(unhashed, map_in_threads(listed_md5, unhashed.values()), strict=True))
        ids = [md5s[file.place] if file.content_id is None else file.content_id for file in some]
        values = [_row(file, content_id, rules) for file, content_id in zip(some, ids, strict=True)]
        columns = zip(zip(*values, strict=True), CORPUS_SCHEMA.types, strict=True)
        batch = pa.record_batch([pa.array(column, kind) for column, kind in columns], schema=CORPUS_SCHEMA)
        rows.append(batch)
        counts.add(batch)
        paths = batch["path"]  # The listing of a store comes sorted.
        is_sorted = (
            is_sorted and last < paths[0].as_py() and pc.all(pc.less(paths[:-1], paths[1:])).as_py() is not False
        )
        last = paths[-1].as_py()
    return rows if is_sorted else _in_order(rows), counts


def _with_kin(
    rows: BatchSpool, counts: _Counts, rules: SplitRules
) -> tuple[BatchSpool, _Counts, list[Ignored], list[str]]:
    """The rows with clips that belong together in one split, and without labels that contradict each other.

    Also: what there is of them then, what was left out, and what is to be told. Raises CorpusError for such labels.
    """
    has_splits, has_groups = rules.split_fractions is not None, bool(counts.groups - {None})
    finds_conflicts = rules.label_conflicts != "keep" and len(counts.labels - {None}) > 1
    moves_splits = bool(has_splits and counts.num_hashed and (counts.num_given or has_groups or counts.num_members))
    kin = Kin()
    if finds_conflicts or moves_splits or (has_splits and counts.num_given):
        kin = kin_of(rows, finds_conflicts=finds_conflicts, moves_splits=moves_splits)
    if kin.conflicts and rules.label_conflicts == "refuse":
        one, other = islice(kin.conflicts.values(), 2)
        raise CorpusError(
            f"{len(kin.conflicts):,} clips have the bytes of another under another label, such as {one!r} and "
            f"{other!r}; correct or remove them, or leave all of them out with --label-conflicts leave-out"
        )
    if kin:
        rows, counts = _moved_to_kin(rows, kin, rules.split_fractions)
    notes = []
    if num_groups := len(counts.groups - {None}):
        text = f"{num_groups:,} {'group' if num_groups == 1 else 'groups'}"
        notes.append(text + (f", {counts.num_ungrouped:,} clips in none" if counts.num_ungrouped else ""))
    if kin.conflicts:
        notes.append(f"{len(kin.conflicts):,} left out, whose bytes lie under two labels")
    if kin.num_across:
        notes.append(f"{kin.num_across:,} files have the same bytes as one of another split")
    if kin.groups_across:
        notes.append(f"{kin.groups_across:,} groups lie in more than one split, as the input says")
    reason = "the same bytes lie under another label"
    return rows, counts, [Ignored(path=path, reason=reason) for path in dict.fromkeys(kin.conflicts.values())], notes


def _moved_to_kin(rows: BatchSpool, kin: Kin, split_fractions: Sequence[float] | None) -> tuple[BatchSpool, _Counts]:
    """The rows without those in conflict, and those without a given split in the one of their kin."""
    found, counts, start = BatchSpool(), _Counts(), 0
    place = CORPUS_SCHEMA.get_field_index("split")

    def split_now(group: str | None, own: str | None, content_id: str, split: str | None, is_given: bool) -> str | None:
        if is_given or split is None or split_fractions is None:
            return split
        given, key = kin.of(group=group, content=content_key(own, content_id))
        return given or (split if key is None else _split_at(key, split_fractions))

    for batch in rows:
        names = ("group_name", "split_key", "content_id", "split", "is_split_given")
        columns = [*batch.columns]
        columns[place] = pa.array(map(split_now, *(batch[name].to_pylist() for name in names)), pa.string())
        is_kept = [start + row not in kin.conflicts for row in range(batch.num_rows)]
        start += batch.num_rows
        kept = pa.record_batch(columns, schema=CORPUS_SCHEMA).filter(pa.array(is_kept, pa.bool_()))
        if kept.num_rows:
            found.append(kept)
            counts.add(kept)
    return found, counts


def _in_order(rows: BatchSpool) -> BatchSpool:
    """The same rows by path, then start, end and id. Raises CorpusError where two have the same id."""
    ordered, last = BatchSpool(), CORPUS_SCHEMA.empty_table()
    for table in sorted_tables(rows, CORPUS_SCHEMA, sort=_sorted):
        ids = pa.concat_tables([last, table])["clip_id"]  # One path: equal ids are neighbours.
        if (row := pc.index(pc.equal(ids[:-1], ids[1:]), True).as_py()) >= 0:
            one, other = Clips(pa.concat_tables([last, table])[row : row + 2])
            raise CorpusError(
                f"{shown_url(one.url)!r} and {shown_url(other.url)!r} cannot be told apart: same path {other.path!r}, "
                "size and content; remove one"
            )
        last = table.slice(table.num_rows - 1)
        for batch in table.combine_chunks().to_batches(max_chunksize=ROWS_AT_ONCE):
            ordered.append(batch)
    return ordered


def _sorted(table: pa.Table) -> pa.Table:
    """By path, then start, end and id."""
    start, end = table["start_pts_seconds"].fill_null(0.0), table["end_pts_seconds"].fill_null(math.inf)
    keys = pa.table({"path": table["path"], "start": start, "end": end, "clip_id": table["clip_id"]})
    return table.take(pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names]))


def _ignored_in_order(ignored: IgnoredFiles) -> IgnoredFiles:
    tables = sorted_tables(ignored.batches(), IGNORED_SCHEMA, sort=lambda table: table.sort_by("path"))
    return IgnoredFiles(
        Ignored(path=path, reason=reason)
        for table in tables
        for path, reason in zip(table["path"].to_pylist(), table["reason"].to_pylist(), strict=True)
    )


def _description(layout: str, num_clips: int, notes: list[str], *, counts: _Counts, ignored: IgnoredFiles) -> str:
    names = {"caer": "CAER layout", "caer-s": "CAER-S layout", "manifest": "manifest", "folder": "folder"}
    splits = [split for split in SPLITS if split in counts.splits]
    labels = counts.labels - {None}
    text = f"{names[layout]}: {num_clips:,} {'clip' if num_clips == 1 else 'clips'}"
    if splits:
        text += f" in {', '.join(splits)}"
    if labels:
        notes.insert(0, f"{len(labels)} {'class' if len(labels) == 1 else 'classes'}")
        if counts.num_unlabelled:
            notes.insert(1, f"{counts.num_unlabelled:,} without a label")
    if counts.num_hashed:
        notes.append("split by hash" if counts.num_hashed == num_clips else f"{counts.num_hashed:,} split by hash")
    if ignored:
        notes.append(f"{len(ignored):,} ignored")
    return "; ".join([text, *notes])


def listed_md5(file: ListedFile) -> str:
    """The content id of a local file: its MD5, or "unreadable"."""
    try:
        return md5_of(file.place)
    except OSError:
        return "unreadable"


def _row(file: ListedFile, content_id: str, rules: SplitRules) -> tuple[Any, ...]:
    """The values of CORPUS_SCHEMA's columns."""
    start, end = file.start_pts_seconds, file.end_pts_seconds
    clip_id, split, path = _clip_id(file, content_id, start, end), file.split, printable_path(file.path)
    group = file.group if file.group is not None or rules.group_of is None else rules.group_of(path)
    key = None if file.bytes_id is None else key_of_bytes(file.bytes_id, file.size_bytes)
    if split is None and rules.split_fractions is not None:
        # By the whole file: two time ranges of one video in train and test would leak.
        whole = clip_id if start is None and end is None else _clip_id(file, content_id, None, None)
        by_content = split_key(group=group, content_id=content_id, clip_id=whole)
        split = _split_at(by_content if key is None or group is not None else key, rules.split_fractions)
    url, same_as = file.url or url_of(file.place, file.store), None
    row = (clip_id, path, url, file.size_bytes, content_id, file.label, split, start, end, same_as, group)
    return *row, file.bytes_id, file.modified, file.split is not None, key


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
    """Raise CorpusError unless these are three shares of the splits that sum to 1."""
    shares = tuple(split_fractions)
    if len(shares) != len(SPLITS) or not all(share >= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise CorpusError(
            f"split fractions {shares} are not three shares of {', '.join(SPLITS)} that sum to 1; use 0.7, 0.1, 0.2"
        )
