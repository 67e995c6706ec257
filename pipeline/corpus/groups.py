"""Which clips belong together: groups of a film, show or person by their paths, and files with the same bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.corpus.types import CorpusError
from pipeline.records.arrow import pc
from pipeline.storage.contents import HASHED_ID, MD5, UNTOLD_URL, WEB_URL
from pipeline.storage.spool import MEMORY_BYTES, BatchSpool

# So many rows are compared in memory at a time: 2**20 took 300 MiB.
ROWS_PER_PART = 2**17
_BYTES = ["bytes", "size_bytes"]
_NEEDED = [*_BYTES, "start_pts_seconds", "end_pts_seconds", "label", "split", "is_split_given", "group_name", "path"]
_NEEDED += ["content_key"]
_GIVEN = ("group_name", "split")
_SAME_BYTES = "same bytes "
_TOKEN = re.compile(r"\{(\w+)\}|\*\*|\*")


def group_pattern(pattern: str) -> Callable[[str], str | None]:
    """What finds the group in a clip's path: the parts in braces, such as `{show}/*` or `*/{show}-{season}/*`.

    A name in braces and `*` stand for letters other than `/`, `**` and a `*` that ends the pattern for any. The whole
    path has to match; else the clip has no group. Folders that the pattern gives as `*` may be renamed: they are no
    part of the group. Raises CorpusError for a pattern without a name, or with one twice.
    """
    names = [match[1] for match in _TOKEN.finditer(pattern) if match[1]]
    if not names or len(set(names)) < len(names):
        raise CorpusError(
            f"group pattern {pattern!r}: name the part of the path that tells a group in braces, each name once, such"
            " as '{show}/*'"
        )
    if set("{}") & set(_TOKEN.sub("", pattern)):
        raise CorpusError(
            f"group pattern {pattern!r}: a brace has no name of letters in it; write it like '{{show}}/*'"
        )
    text, end = "", 0
    for match in _TOKEN.finditer(pattern):
        text += re.escape(pattern[end : match.start()])
        end = match.end()
        is_any = match[0] == "**" or (match[0] == "*" and end == len(pattern))
        text += f"(?P<{match[1]}>[^/]+)" if match[1] else ".*" if is_any else "[^/]*"
    compiled = re.compile(text + re.escape(pattern[end:]), re.DOTALL)

    def group_of(path: str) -> str | None:
        found = compiled.fullmatch(path)
        return None if found is None else "/".join(found[name] for name in names)

    return group_of


def group_key(group: str) -> str:
    """What decides the split of a group, by its hash."""
    return f"group {group}"


@dataclass(kw_only=True)
class Kin:
    """Which clips of a listing belong together, and what follows from it.

    conflicts: row -> path of each clip whose bytes (and times) another has under another label. num_across: files that
    have the bytes of a file in another split, and groups_across: groups that lie in several, where the input says the
    splits. A content is what decides the split of a clip without a group by its hash (`content_key`): members of
    archives may have the same bytes and other contents.
    """

    conflicts: dict[int, str] = field(default_factory=dict)
    num_across: int = 0
    groups_across: int = 0
    # Nodes are groups and contents. Those that are kin have one root, the least of them: a group sorts before contents.
    _parents: dict[str, str] = field(default_factory=dict)
    _given: dict[str, tuple[int, str]] = field(default_factory=dict)  # root -> its first row with a split, and that

    def __bool__(self) -> bool:
        """Whether it changes anything of the listing."""
        return bool(self.conflicts or self._parents or self._given)

    def of(self, *, group: str | None, content: str) -> tuple[str | None, str | None]:
        """The split that is given to a clip's kin, or None; and the key that decides for all of them, or None if that
        is what decides for the clip alone."""
        node = _content_node(content)
        own = node if group is None else group_key(group)
        root = self._root(own)
        given = self._given.get(self._root(node)) or self._given.get(root)
        return None if given is None else given[1], None if root == own else root.removeprefix(_SAME_BYTES)

    def join(self, nodes: Iterable[str]) -> None:
        """Make kin of groups and contents."""
        roots = sorted({self._root(node) for node in nodes})
        self._parents.update(dict.fromkeys(roots[1:], roots[0]))
        if given := min((self._given[root] for root in roots if root in self._given), default=None):
            self._given[roots[0]] = given

    def give(self, node: str, row: int, split: str) -> None:
        """Take the split that the input gives to a row; of several the first row's holds."""
        root = self._root(node)
        self._given[root] = min(self._given.get(root, (row, split)), (row, split))

    def _root(self, node: str) -> str:
        while (parent := self._parents.get(node)) is not None:
            node = parent
        return node


def _content_node(content: str) -> str:
    return _SAME_BYTES + content


def content_key(split_key: str | None, content_id: str) -> str:
    """The content of a clip, from its split_key and content_id in the listing."""
    return content_id if split_key is None else split_key


def kin_of(rows: BatchSpool, *, finds_conflicts: bool, moves_splits: bool) -> Kin:
    """What the clips of a sorted listing (rows of CORPUS_SCHEMA) have to do with one another.

    finds_conflicts: look for labels that contradict each other. moves_splits: look for clips without a given split that
    are kin of others.
    """
    kin = Kin()
    for found in _same_bytes(rows):
        conflicting = {row["row"]: row["path"] for row in _with_other_labels(found)} if finds_conflicts else {}
        kin.conflicts.update(conflicting)
        alike = [row for row in found if row["row"] not in conflicting]
        given = [row for row in alike if row["is_split_given"]]
        paths = {row["path"] for row in given}
        if len(paths) > 1 and len({row["split"] for row in given}) > 1:  # ranges of one file: the manifest wants it so
            kin.num_across += len(paths)
        groups = {group_key(row["group_name"]) for row in alike if row["group_name"] is not None}
        nodes = {_content_node(row["content_key"]) for row in alike}
        if moves_splits and (groups or len(nodes) > 1 or 0 < len(given) < len(alike)):
            kin.join([*nodes, *groups])
            for row in given[:1]:
                kin.give(_content_node(row["content_key"]), row["row"], row["split"])
    splits: dict[str, set[str]] = {}
    for start, batch in _numbered(rows):
        has = pc.and_(batch["is_split_given"], pc.is_valid(batch["group_name"]))
        rows_given = pc.indices_nonzero(has).to_pylist()
        for row, group, split in zip(
            rows_given, *(batch[name].filter(has).to_pylist() for name in _GIVEN), strict=True
        ):
            splits.setdefault(group, set()).add(split)
            if moves_splits and start + row not in kin.conflicts:
                kin.give(group_key(group), start + row, split)
    kin.groups_across = sum(len(found) > 1 for found in splits.values())
    return kin


def _with_other_labels(alike: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Of rows with the same bytes those whose times another has under another label."""
    labels: dict[tuple[Any, Any], set[str]] = {}
    for row in alike:
        if row["label"] is not None:
            labels.setdefault((row["start_pts_seconds"], row["end_pts_seconds"]), set()).add(row["label"])
    for row in alike:
        times = (row["start_pts_seconds"], row["end_pts_seconds"])
        if row["label"] is not None and len(labels[times]) > 1:
            yield row


def _numbered(rows: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Each batch with the number of its first row."""
    start = 0
    for batch in rows:
        yield start, batch
        start += batch.num_rows


def _same_bytes(rows: BatchSpool) -> Iterator[list[dict[str, Any]]]:
    """The rows of each content that several have, in their order; sorted into parts that fit into memory."""

    def of_bytes(table: pa.Table) -> pa.Table:
        table = with_bytes(table)
        table = table.filter(pc.is_valid(table["bytes"]))
        is_same = pc.is_null(table["split_key"])
        return table.append_column("content_key", pc.if_else(is_same, table["content_id"], table["split_key"]))

    for table in in_parts(
        rows, of_bytes, columns=_NEEDED, part_of=lambda t, n: pc.utf8_slice_codeunits(t["bytes"], 0, n)
    ):
        counts = table.group_by(_BYTES).aggregate([("row", "count")])
        several = counts.filter(pc.greater(counts["row_count"], 1)).select(_BYTES)
        found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in table.join(several, _BYTES, join_type="left semi").sort_by("row").to_pylist():
            found.setdefault(tuple(row[name] for name in _BYTES), []).append(row)
        yield from found.values()


def in_parts(
    rows: BatchSpool,
    choose: Callable[[pa.Table], pa.Table],
    *,
    columns: Sequence[str],
    part_of: Callable[[pa.Table, int], Any],
) -> Iterator[pa.Table]:
    """The chosen rows in parts that fit into memory, with these columns and `row`, the number of each.

    choose: of some rows those that are wanted, with all columns. part_of: which part each row of a table is put into,
    of 16 to the power of the number that it is given.
    """
    num_digits = next(number for number in range(9) if rows.num_rows <= ROWS_PER_PART * 16**number)
    parts: dict[Any, BatchSpool] = {}
    for start, batch in _numbered(rows):
        numbers = pa.array(range(start, start + batch.num_rows), pa.int64())
        table = choose(pa.table(batch).append_column("row", numbers)).select([*columns, "row"])
        table = table.append_column("part", part_of(table, num_digits))
        table, first = table.sort_by("part").combine_chunks(), 0
        for counted in pc.value_counts(table["part"]).to_pylist():  # One slice each: they may be 256.
            part = parts.setdefault(counted["values"], BatchSpool(memory_bytes=MEMORY_BYTES // 16**num_digits))
            for some in table.drop_columns("part").slice(first, counted["counts"]).to_batches():
                part.append(some)
            first += counted["counts"]
    for part in parts.values():
        yield pa.Table.from_batches(part)


def with_bytes(table: pa.Table) -> pa.Table:
    """The rows with what says which bytes each has as `bytes`, or null: a web server's etag may be anything."""
    is_read = pc.fill_null(pc.match_substring_regex(table["bytes_id"], f"^{MD5}$"), False)
    is_told = pc.and_(
        pc.match_substring_regex(table["content_id"], f"^{HASHED_ID}$"),
        pc.invert(pc.match_substring_regex(table["url"], UNTOLD_URL)),
    )
    told = pc.if_else(is_told, table["content_id"], None)
    if pc.any(is_read).as_py():
        is_read = pc.and_(is_read, pc.invert(pc.match_substring_regex(table["url"], WEB_URL)))
        told = pc.if_else(is_read, table["bytes_id"], told)
    return table.append_column("bytes", told)
