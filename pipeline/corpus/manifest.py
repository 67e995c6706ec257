"""Reads a manifest (CSV, TSV or Parquet) into listed files."""

from __future__ import annotations

import csv
import errno
import math
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urljoin

from fsspec import AbstractFileSystem

from pipeline.corpus.columns import MANIFEST_COLUMNS, columns_of
from pipeline.corpus.csv_text import BLANK, csv_rows, with_decimal_point
from pipeline.corpus.labels import SPLIT_NAMES, Naming
from pipeline.corpus.listing import (
    NUM_TRIES,
    ask_store,
    locate,
    map_in_threads,
    remote_content_id,
    remote_modified,
    shown_url,
    url_of,
)
from pipeline.corpus.parquet_rows import parquet_rows
from pipeline.corpus.table import SplitRules, corpus_of
from pipeline.corpus.types import Corpus, CorpusError, ListedFile
from pipeline.records.arrow import pc
from pipeline.records.documents import shown_value
from pipeline.records.vocabulary import is_class_name
from pipeline.storage.hosts import SCHEMES_WITH_HOSTS, host_of, is_address, is_whole, private_address, same_host
from pipeline.storage.redaction import without_query, without_secrets
from pipeline.storage.remote import listed, read_url
from pipeline.storage.retry import StorageError, StoreLostError
from pipeline.video.formats import extension_of

# Stores in which a name stands after that of its bucket.
_BUCKETS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "r2")
# Ten million rows have about this much.
MAX_BYTES = 2**31


def read_manifest_file(
    place: str,
    store: AbstractFileSystem | None,
    *,
    rules: SplitRules,
    naming: Naming,
    shown: str,
    reach: frozenset[str] | None = frozenset(),
) -> Corpus:
    """The corpus of a manifest. Raises CorpusError for what it must not say, by row.

    shown: its name in messages. reach: the private hosts that it may name (`storage.reach_of`).
    """
    url = place if store is None else url_of(place, store)
    content = read_url(url, max_bytes=MAX_BYTES, what=f"manifest {shown}", num_tries=NUM_TRIES)
    extension = extension_of(without_query(place))
    names = _names(content, extension=extension, shown=shown)
    columns = columns_of(names, shown=shown)
    folder = os.path.dirname(place) if store is None else posixpath.dirname(without_query(place))

    def files() -> Iterator[tuple[str, str, ListedFile]]:
        for where, row in _manifest_rows(content, names, columns, extension=extension, shown=shown):
            thing = f"manifest {shown}, {where}"
            row_url = _url_of_row(row, thing, folder, store)
            if reach is not None:
                _check_host(row_url, thing, folder, reach)
            file = _file_of_row(row, row_url, thing, folder, store)
            if reach is not None and "://" in folder and file.store is None:
                raise CorpusError(
                    f"{thing}: {shown_url(row['url'])!r} is a file of this machine, which no manifest of a web"
                    " server may name; give its address there, or --allow-private-hosts"
                )
            yield where, row["url"], file

    # The rows are read twice: as objects, a million of them would take a gigabyte.
    folders, labels = _checked_rows(files, shown=shown)
    naming.find(labels, shown=shown)
    _check_labels(labels, naming, shown=shown)
    unread = [name for name in columns if name not in MANIFEST_COLUMNS and not name.startswith("unnamed")]
    notes = [f"columns not read: {', '.join(unread)}"] if unread else []
    found = corpus_of(
        "manifest",
        url_of(folder, store),
        files=_looked_up((_labelled(file, naming) for _, _, file in files()), folders),
        ignored=[],
        rules=rules,
        notes=notes,
    )
    missing = [batch["path"].filter(pc.equal(batch["content_id"], "missing")) for batch in found.rows]
    if num_missing := sum(map(len, missing)):
        first = repr(next(paths[0].as_py() for paths in missing if len(paths)))
        told = f"{num_missing} of {found.num_clips} are not there, the first {first}: paths count from its folder"
        return replace(found, description=f"{found.description}; {told}")
    return found


def _check_host(url: str, thing: str, folder: str, reach: frozenset[str]) -> None:
    """Raise CorpusError for a row whose host is not public, and none of `reach`.

    url: as it is read afterwards, and not as the row has it.
    """
    url = urljoin(f"{folder}/", url) if "://" in folder else url
    host = host_of(url)
    if host is None or same_host(host) in reach:
        return
    if (address := private_address(host)) is not None:
        raise CorpusError(
            f"{thing}: host {host} is at {address}, which is no public address; take the row out, or give"
            " --allow-private-hosts"
        )
    if not is_address(host) and (scheme := url.partition("://")[0].lower()) not in ("http", "https"):
        raise CorpusError(
            f"{thing}: where {scheme}://{host} leads to is not looked at once more when it is read, as with http and"
            " https; give its address of numbers, or --allow-private-hosts"
        )


def _names_a_file(url: str) -> bool:
    """Whether it is a path, or a URL that has more than a scheme: of a store a bucket and a name, of the web a host."""
    scheme, is_url, rest = url.partition("://")
    if not is_url:
        return re.fullmatch(r"[\w+.-]+:/*", url) is None
    if scheme.lower() in SCHEMES_WITH_HOSTS:
        return is_whole(url)
    host, _, name = rest.partition("/")
    if scheme.lower() in _BUCKETS:
        return bool(host and name.strip("/"))
    return bool(rest.strip("/"))


def _url_of_row(row: Mapping[str, Any], thing: str, folder: str, store: AbstractFileSystem | None) -> str:
    """The path or URL of a row. Raises CorpusError where it has none."""
    given = row["url"]
    url = given.strip(BLANK) if isinstance(given, str) and "\0" not in given else ""
    if store is None and "\\" in url and "://" not in url and not os.path.exists(os.path.join(folder, url)):
        url = url.replace("\\", "/")  # written on Windows
    if not url or not _names_a_file(url):
        told = repr(given[:80]) if isinstance(given, str) else shown_value(given)
        raise CorpusError(f"{thing}: url is {told}; give a path or URL")
    return url


def _file_of_row(
    row: Mapping[str, Any], url: str, thing: str, folder: str, store: AbstractFileSystem | None
) -> ListedFile:
    is_web = "://" in folder
    if re.match(r"[A-Za-z][\w+.-]*://", url) or (os.path.isabs(url) and not is_web):
        row_place, row_store = locate(url, is_listed=True)
    elif store is None:
        row_place, row_store = os.path.abspath(os.path.join(folder, url)), None
    elif is_web:
        row_place, row_store = locate(urljoin(f"{folder}/", url), is_listed=True)
    else:
        row_place, row_store = posixpath.join(folder, url), store
        if {".", ".."} & set(url.split("/")):  # else not: "a//b" is a key of its own
            row_place = posixpath.normpath(row_place)
    start, end = (_seconds(row.get(name), f"{thing}: {name}") for name in MANIFEST_COLUMNS[3:5])
    if end is not None and end <= (first := max(start or 0.0, 0.0)):
        raise CorpusError(f"{thing}: it ends at {end} s, before it starts at {first} s; correct it")
    return ListedFile(
        path=_path_from(folder, row_place, store=store, row_store=row_store),
        place=row_place,
        size_bytes=0,
        store=row_store,
        label=_text(row.get("label")),
        split=_named(row.get("split"), SPLIT_NAMES, f"{thing}: split"),
        group=_text(row.get("group")),
        start_pts_seconds=start,
        end_pts_seconds=end,
    )


def _checked_rows(
    files: Callable[[], Iterable[tuple[str, str, ListedFile]]], *, shown: str
) -> tuple[set[tuple[AbstractFileSystem, str]], dict[str, str]]:
    """The remote folders that a manifest's rows lie in, and what they say as labels, each with the place of the first
    row; `files` gives each row's place, url and file.

    Raises CorpusError for a wrong row and for one given twice.
    """

    def key_of(file: ListedFile) -> tuple[str, float | None, float | None]:
        return url_of(file.place, file.store), file.start_pts_seconds, file.end_pts_seconds

    folders, seen, labels = set(), set(), dict[str, str]()
    for where, url, file in files():
        if file.label is not None:
            labels.setdefault(file.label, where)
        key = key_of(file)
        if hash(key) in seen:
            first = next(other for other, _, earlier in files() if key_of(earlier) == key)
            if first != where:  # else two keys have one hash
                start, end = file.start_pts_seconds, file.end_pts_seconds
                times = "as a whole" if start is end is None else f"from {start or 0.0} s to {end or 'its end'}"
                raise CorpusError(
                    f"manifest {shown}: {first} and {where} both give {shown_url(url)!r} {times}; remove one"
                )
        seen.add(hash(key))
        if file.store is not None:
            folders.add((file.store, file.store._parent(file.place)))
    if not seen:
        raise CorpusError(f"manifest {shown} has no rows; give one row for each clip")
    return folders, labels


def _check_labels(labels: Mapping[str, str], naming: Naming, *, shown: str) -> None:
    """Raise CorpusError for labels that are no class, where somebody needs them. labels: each with its first place."""
    unknown = [label for label in labels if naming.class_of(label) is None]
    if not unknown or not naming.is_needed:
        return
    first, *others = map(_shown_label, unknown[:20])
    also = f", and so {'are' if others[1:] else 'is'} {', '.join(others)}" if others else ""
    raise CorpusError(
        f"manifest {shown}, {labels[unknown[0]]}: label {first} is unknown{also}; use one of"
        f" {', '.join(naming.classes)}, or name all classes, or found, with --classes"
    )


def _shown_label(name: str) -> str:
    return name if name.isdigit() else repr(name) if is_class_name(name) else shown_value(name)


def _labelled(file: ListedFile, naming: Naming) -> ListedFile:
    return file if file.label is None else replace(file, label=naming.class_of(file.label))


@contextmanager
def _manifest_errors(extension: str, *, shown: str) -> Iterator[None]:
    try:
        yield
    except (UnicodeDecodeError, csv.Error) as error:
        told = f"byte {error.start} is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise CorpusError(
            f"manifest {shown} is not a readable .{extension} file: {told}; "
            "write it again as UTF-8 CSV (in Excel: 'CSV UTF-8'), TSV or Parquet with a header"
        ) from None


def _names(content: bytes, *, extension: str, shown: str) -> list[str]:
    """The names of the columns, as the file has them."""
    if extension == "parquet":
        return next(parquet_rows(content, None, shown=shown))
    with _manifest_errors(extension, shown=shown):
        names = next(csv_rows(content, extension)[1], (0, []))[1]
        if any("\0" in name for name in names):
            raise csv.Error("its header holds NUL, as UTF-16 without its mark does")
        return names


def _manifest_rows(
    content: bytes, names: Sequence[str], columns: Sequence[str], *, extension: str, shown: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place in the file in words.

    names, columns: of its columns, as the file has them and as they are meant.
    """
    if extension == "parquet":
        read = {column: name for column, name in zip(columns, names, strict=True) if column in MANIFEST_COLUMNS}
        for number, row in enumerate(parquet_rows(content, tuple(read.values()), shown=shown), start=1):
            yield f"row {number}", dict(zip(read, row, strict=True))
        return
    with _manifest_errors(extension, shown=shown):
        separator, rows = csv_rows(content, extension)
        next(rows)
        for line, fields in rows:
            if not any(fields[len(columns) :]):
                del fields[len(columns) :]  # separators without a name, as spreadsheets leave them
            if len(fields) != len(columns):
                raise CorpusError(
                    f"manifest {shown}, line {line}: {len(fields)} fields, but the header has {len(columns)}; "
                    "quote fields that hold the separator"
                )
            row = dict(zip(columns, fields, strict=True))
            if separator != ",":  # Where it is, 1,234 may be thousands.
                row |= {name: row[name].replace(",", ".") for name in MANIFEST_COLUMNS[3:5] if name in row}
            yield f"line {line}", row


def _seconds(value: Any, thing: str) -> float | None:
    if value is None or value == "" or value != value:  # noqa: PLR0124 (NaN: how pandas writes an empty number)
        return None
    try:
        is_odd = isinstance(value, bool) or (isinstance(value, str) and "_" in value)  # Python's own 1_000
        seconds = math.nan if is_odd else float(with_decimal_point(value) if isinstance(value, str) else value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise CorpusError(f"{thing} {shown_value(value)} is not a number of seconds; write it like 12.5")
    return seconds


def _named(value: Any, names: Mapping[str, str], thing: str) -> str | None:
    if value is None or value != value or (text := str(value).strip()) == "":  # noqa: PLR0124 (NaN, as above)
        return None
    if text.lower() not in names:
        raise CorpusError(
            f"{thing} {shown_value(value)} is unknown; use one of {', '.join(dict.fromkeys(names.values()))}"
        )
    return names[text.lower()]


def _text(value: Any) -> str | None:
    """A label or a group's name; None where there is none (or NaN: how pandas writes an empty one)."""
    text = "" if value is None or value != value else str(value).strip()  # noqa: PLR0124
    return text or None


def _path_from(
    folder: str, place: str, *, store: AbstractFileSystem | None, row_store: AbstractFileSystem | None
) -> str:
    """The path of a listed file from the manifest's folder, so that ids hold when both are moved together."""
    if row_store is None:
        return os.path.relpath(place, folder) if store is None else place
    if (row_store == store or "://" in folder) and place.startswith(f"{folder}/"):
        return without_query(place.removeprefix(f"{folder}/"))
    return without_secrets(row_store.unstrip_protocol(place))


def _looked_up(files: Iterable[ListedFile], folders: Iterable[tuple[AbstractFileSystem, str]]) -> Iterator[ListedFile]:
    """Files of a manifest with their sizes and contents; one that is not there stays, marked "missing".

    folders: listed, where they can be, in place of a request for each file.
    """
    infos: dict[tuple[AbstractFileSystem, str], tuple[int, str, float | None]] = {}
    for store, folder in folders:
        if "://" in folder:
            continue  # the web has no listings: each file is asked for
        what = f"{url_of(folder, store)} cannot be read"
        try:
            for name, info in listed(store, folder, what=what, is_deep=False, num_tries=NUM_TRIES):
                infos[store, name] = _facts_of(info, store)
        except (FileNotFoundError, StorageError):
            continue  # reading may be allowed where listing is not: each file is asked for

    def looked_up(file: ListedFile) -> ListedFile:
        if file.store is None:
            try:
                status = os.stat(file.place)
            except OSError:
                return replace(file, content_id="missing")
            if not stat.S_ISREG(status.st_mode):
                return replace(file, content_id="not-a-file")
            return replace(file, size_bytes=status.st_size, modified=status.st_mtime)
        try:
            told = infos.get((file.store, file.place)) or _facts_of(
                ask_store(file.store, "info", file.place), file.store
            )
        except FileNotFoundError:
            return replace(file, content_id="missing")
        except StoreLostError as error:
            if error.errno != errno.ENOENT:  # a missing bucket
                raise
            return replace(file, content_id="missing")
        size_bytes, content_id, modified = told
        return replace(file, size_bytes=size_bytes, content_id=content_id, modified=modified)

    return map_in_threads(looked_up, files)


def _facts_of(info: Mapping[str, Any], store: AbstractFileSystem) -> tuple[int, str, float | None]:
    """Size, content id and time of a remote file, out of what its store says."""
    return info.get("size") or 0, remote_content_id(info, store), remote_modified(info)
