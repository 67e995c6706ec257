"""The outputs that a pattern names, such as `data-*`: those of all parts of a corpus, read as one."""

from __future__ import annotations

import fnmatch
import os

from pipeline.records.parts import MAX_PARTS, PART
from pipeline.records.vocabulary import UsageError
from pipeline.storage.remote import absolute_url
from pipeline.storage.retry import call
from pipeline.storage.store import Storage


def parts_of(url: str) -> list[str]:
    """The outputs that a URL names: itself, or where its last part is a pattern such as `data-*` all that fit, sorted.

    Raises UsageError where none does, or where outputs are parts of a whole (`-03-of-16`) of which some are not there.
    """
    url = absolute_url(url)
    parent, _, pattern = url.rpartition("/")
    if not any(sign in pattern for sign in "*?["):
        return [url]
    if Storage(url).exists(""):  # A folder may have such a name.
        return [url]
    names = [name for name in folder_names(Storage(parent or "/")) if fnmatch.fnmatchcase(name, pattern)]
    if not names:
        raise UsageError(f"{url}: nothing there fits; give an output, or a pattern of several, such as data-*")
    _require_whole(url, names)
    return [f"{parent}/{name}" for name in names]


def is_named(url: str, by: str) -> bool:
    """Whether an output is the one of a URL, or one of those that fit it."""
    (above, _, name), (parent, _, pattern) = url.rpartition("/"), by.rpartition("/")
    return url == by or (above == parent and fnmatch.fnmatchcase(name, pattern))


def folder_names(storage: Storage) -> list[str]:
    """The names of the folders that lie directly in a folder, sorted; none where there is none."""
    try:
        found = call(storage.filesystem, "ls", storage.path(), what=f"{storage.url} cannot be listed", detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    folders = (
        str(info["name"])
        for info in found
        if info["type"] == "directory" or (storage.is_local and os.path.isdir(info["name"]))  # through a link
    )
    return sorted(path.rstrip("/").rpartition("/")[2] for path in folders)


def _require_whole(url: str, names: list[str]) -> None:
    """Raise UsageError where names of parts do not make up their whole."""
    wholes: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if found := PART.fullmatch(name):
            wholes.setdefault((found[1], int(found[3])), set()).add(int(found[2]))
    for (stem, count), there in wholes.items():
        if missing := [number for number in range(1, min(count, MAX_PARTS) + 1) if number not in there]:
            told = ", ".join(map(str, missing[:5])) + ", …" * (len(missing) > 5)
            raise UsageError(
                f"{url}: of {count} parts of {stem} {len(missing)} are not there ({told}); run them with --shard, or "
                "name the outputs that you mean"
            )
    if len(wholes) > 1 and len({stem for stem, _ in wholes}) == 1:
        counts = " and ".join(str(count) for _, count in sorted(wholes))
        raise UsageError(f"{url} fits parts of {counts}, which hold the same clips; give a pattern of one of them")
