"""Recognises CAER, CAER-S and class folders, and gives files their labels and splits."""

from __future__ import annotations

import posixpath
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain

from fsspec import AbstractFileSystem

from pipeline.corpus.kinds import SortedFiles, as_ignored, why_not_a_video
from pipeline.corpus.labels import SPLIT_NAMES, Naming, class_folders
from pipeline.corpus.listing import list_input, url_of
from pipeline.corpus.table import SplitRules, corpus_of, needs_bytes
from pipeline.corpus.types import Corpus, CorpusError, IgnoredFiles, ListedFile, ListedFiles
from pipeline.records.vocabulary import SPLITS
from pipeline.video.formats import extension_of

# In which a list of clips may lie that somebody takes for a manifest.
_OTHER_TABLES = ("txt", "tab", "json", "jsonl", "ndjson", "xls", "xlsx", "ods", "feather", "arrow", "pkl")
_PACKED_TABLES = (".csv.gz", ".tsv.gz", ".json.gz", ".csv.zst", ".csv.bz2", ".csv.xz")


def read_files(
    place: str,
    store: AbstractFileSystem | None,
    *,
    layout: str,
    rules: SplitRules,
    naming: Naming,
    shown: str,
    follow_links: bool = False,
) -> Corpus:
    """The clips of a folder, glob, archive or single file. Raises CorpusError."""
    root, items, single = list_input(place, store, shown=shown, follow_links=follow_links)
    found = SortedFiles(root, store, reads_members=needs_bytes(rules))
    found.read(items)
    has_videos, has_images = bool(found.videos or found.broken_videos), bool(found.images or found.broken_images)
    takes_images = layout == "caer-s" or (layout == "auto" and not has_videos)
    wanted = found.images if takes_images else found.videos
    # Whatever the names of broken members are, they upset no layout.
    broken = found.broken + (found.broken_images if takes_images else found.broken_videos)
    move = None
    root_name = "" if single else posixpath.basename(root.rstrip("/"))
    naming.find(class_folders(root_name, wanted.tree_paths()) if naming.takes_found else (), shown=shown)
    if layout != "folder" and (found.num_members or not single):
        move = _caer_move(root_name, wanted.tree_paths(), naming)
    if layout in ("caer", "caer-s") and move is None:
        kind = "images" if layout == "caer-s" else "videos"
        raise CorpusError(
            f"input {shown} is not in the layout {layout!r}: no {kind} in {{train,validation,test}}/<Class>/; "
            "check the path, or set the layout to auto or folder"
        )
    if layout == "auto" and has_videos:
        _refuse_to_leave_out(found, naming, shown=shown)
    ignored = found.ignored
    if move is not None:
        layout = "caer-s" if layout == "caer-s" or not has_videos else "caer"
        if layout == "caer-s":
            videos = chain(found.videos.taken(), found.broken_videos)
            ignored.extend(as_ignored(file, "a video among the images of CAER-S") for file in videos)
        else:
            ignored.extend(map(why_not_a_video, chain(found.images.taken(), found.broken_images)))
        strip, add = move
        moves_root = not strip or any(file.path.startswith(strip) for file in wanted)
        if moves_root:  # else it is a folder inside an archive
            root = posixpath.join(root, strip) if strip else posixpath.dirname(root) if add else root
            ignored = IgnoredFiles(replace(item, path=_moved(item.path, strip, add)) for item in ignored)
            broken = [replace(file, path=_moved(file.path, strip, add)) for file in broken]
        _check_caer(wanted, move, naming, moves_root=moves_root, shown=shown)
        splits, notes = _new_splits(wanted, move, naming, rules) if layout == "caer-s" else ({}, [])
        clips = _in_caer(wanted, move, naming, moves_root=moves_root, new_splits=splits)
    else:
        layout = "folder"
        ignored.extend(map(why_not_a_video, chain(found.images.taken(), found.broken_images)))
        if not found.videos and not broken:
            raise _no_video(ignored, has_images=has_images, single=place if single else "", shown=shown)
        is_labelled = _are_labels(found.videos.tree_paths(), naming, shown=shown)
        notes = [] if is_labelled or not found.videos else ["no labels"]
        clips = _in_their_folders(found.videos, naming) if is_labelled else found.videos.taken()
    url = url_of(root.rstrip("/") or "/", store)
    files = chain(clips, broken)
    return corpus_of(layout, url, files=files, ignored=ignored, rules=rules, notes=notes)


def _no_video(ignored: IgnoredFiles, *, has_images: bool, single: str, shown: str) -> CorpusError:
    """single: where the input is one file."""
    reasons = ignored.reasons.most_common(3)
    told = "; ".join(f"{count:,} × {reason}" for reason, count in reasons) or "nothing is there"
    cure = "images are read in the CAER-S layout only" if has_images else "check the path"
    if extension_of(single) in _OTHER_TABLES or single.lower().endswith(_PACKED_TABLES):
        cure = "a manifest is a .csv, .tsv or .parquet with a column url"
    return CorpusError(f"input {shown} holds no video ({told}); {cure}")


def _refuse_to_leave_out(found: SortedFiles, naming: Naming, *, shown: str) -> None:
    """Raise CorpusError where the images of a CAER-S tree, or of folders named after classes, would be left out for a
    few videos among them."""
    num_images = len(found.images)
    if num_images <= len(found.videos):
        return
    if _are_labels(found.images.tree_paths(), naming):
        raise CorpusError(
            f"input {shown} holds {len(found.videos):,} videos and {num_images:,} images in folders named after"
            " classes, and images are read in CAER-S's layout only; put the folders into train/, or"
            " set the layout to folder (the videos)"
        )
    if _caer_move("", found.images.tree_paths(), naming) is not None:
        raise CorpusError(
            f"input {shown} holds {len(found.videos):,} videos and {num_images:,} images in CAER's layout, and one run "
            "reads one kind; set the layout to caer-s (the images) or to caer or folder (the videos)"
        )


def _tree_path(file: ListedFile) -> str:
    return file.path if file.tree_path is None else file.tree_path


def _moved(path: str, strip: str, add: str) -> str:
    if not strip:
        return add + path
    return path.removeprefix(strip) if path.startswith(strip) and path != strip else f"../{path}"


def _caer_move(root_name: str, paths: Iterable[str], naming: Naming) -> tuple[str, str] | None:
    """The prefixes to take from and to put before the paths, so that they are CAER's; None if they are not CAER."""
    tops: set[str] = set()
    is_below = is_above = False
    for path in paths:
        parts = path.split("/", 3)
        if _caer_class(parts, naming):
            return "", ""
        if len(tops) < 2:
            tops.add(parts[0])
        is_below = is_below or _caer_class(parts[1:], naming) is not None
        is_above = is_above or _caer_class([root_name, *parts], naming) is not None
    if len(tops) == 1 and is_below:
        return f"{tops.pop()}/", ""
    return ("", f"{root_name}/") if is_above else None


def _caer_class(parts: Sequence[str], naming: Naming) -> tuple[str, str] | None:
    """The split and label of a path that is split at its slashes."""
    if len(parts) < 3 or (split := SPLIT_NAMES.get(parts[0].lower())) is None:
        return None
    label = naming.class_of(parts[1])
    return None if label is None else (split, label)


def _caer_parts(tree_path: str, move: tuple[str, str]) -> list[str]:
    return (move[1] + tree_path.removeprefix(move[0])).split("/", 2)


def _check_caer(files: ListedFiles, move: tuple[str, str], naming: Naming, *, moves_root: bool, shown: str) -> None:
    num_strays, folders = 0, set[str]()
    for path in files.tree_paths():
        parts = _caer_parts(path, move)
        if _caer_class(parts, naming) is None:
            num_strays += 1
            folders |= {parts[1]} if len(parts) > 2 and parts[0].lower() in SPLIT_NAMES else set()
    if num_strays:
        paths = (file.path for file in files if _caer_class(_caer_parts(_tree_path(file), move), naming) is None)
        first = min(_moved(path, *move) if moves_root else path for path in paths)
        unknown = naming.unknown(folders)
        told = f"; folders that are no class: {', '.join(map(repr, unknown[:20]))}" if unknown else ""
        # Leaving them out would lose a class that is only misspelt.
        raise CorpusError(
            f"input {shown} is in CAER's layout, but {num_strays:,} of its {len(files):,} files are in no "
            f"{{train,validation,test}}/<Class>/, the first {first!r}{told}; {naming.cure()};"
            " rename or move them, or set the layout to folder"
        )


def _new_splits(
    files: ListedFiles, move: tuple[str, str], naming: Naming, rules: SplitRules
) -> tuple[dict[int, str], list[str]]:
    """Splits of rows of CAER-S, in place of those of their folders, and what is said of them."""
    # Each (split, label) in the order of file numbers: neighbours are frames of one clip.
    blocks: dict[tuple[str, str], list[tuple[list[str | int], int]]] = {}
    for row, tree_path in enumerate(files.tree_paths()):
        split, label = _caer_class(parts := _caer_parts(tree_path, move), naming) or ("", "")
        if rules.scheme == "official" and split == "validation":
            return {}, []
        if rules.scheme == "official" and split != "test":
            continue
        numbered = re.split(r"([0-9]+)", "/".join(parts))
        number = [int(part) if i % 2 else part for i, part in enumerate(numbered)]
        blocks.setdefault((split, label), []).append((number, row))
    ordered = {key: [row for _, row in sorted(block)] for key, block in blocks.items()}
    if rules.scheme == "shots":
        return _cut_by_shots(ordered, rules.split_fractions or (0.7, 0.1, 0.2))
    cut = {row: "validation" for rows in ordered.values() for row in rows[: (len(rows) + 1) // 3]}  # a third, rounded
    return cut, ["validation is the first third of each class of the official test"] if ordered else []


def _cut_by_shots(
    ordered: Mapping[tuple[str, str], Sequence[int]], split_fractions: Sequence[float]
) -> tuple[dict[int, str], list[str]]:
    """All splits pooled and each class cut into one block of files a split.

    Files of one clip lie beside one another in each of the official splits, and those of train and test at like places,
    so they are pooled by their place relative to their split's length. Only the two cuts may part a shot.
    """
    pooled: dict[str, list[tuple[float, int]]] = {}
    for (_, label), rows in sorted(ordered.items()):
        pooled.setdefault(label, []).extend(((place + 0.5) / len(rows), row) for place, row in enumerate(rows))
    found = {}
    for placed in pooled.values():
        edges = [round(len(placed) * edge) for edge in accumulate(split_fractions)]
        for place, (_, row) in enumerate(sorted(placed)):
            found[row] = SPLITS[min(bisect_right(edges, place), len(SPLITS) - 1)]
    return found, ["split by shots: official train and test pooled in file order, one block of each class a split"]


def _in_caer(
    files: ListedFiles, move: tuple[str, str], naming: Naming, *, moves_root: bool, new_splits: Mapping[int, str]
) -> Iterator[ListedFile]:
    for row, file in enumerate(files.taken()):
        split, label = _caer_class(_caer_parts(_tree_path(file), move), naming) or (None, None)
        path = _moved(file.path, *move) if moves_root else file.path
        yield replace(file, path=path, split=new_splits.get(row, split), label=label)


def _are_labels(tree_paths: Iterable[str], naming: Naming, *, shown: str | None = None) -> bool:
    """Whether there are direct sub-folders, and all are classes: labels for all of them, rather than for some.

    shown: the input, where classes that the user named must be there. Raises CorpusError.
    """
    tops = {top for top, slash, _ in (path.partition("/") for path in tree_paths) if slash}
    unknown = naming.unknown(tops)
    if shown is not None and naming.is_given and tops and unknown:
        raise CorpusError(
            f"input {shown}: its folders {', '.join(map(repr, unknown[:20]))} are no class; {naming.cure()};"
            " rename or move them"
        )
    return bool(tops) and not unknown


def _in_their_folders(files: ListedFiles, naming: Naming) -> Iterator[ListedFile]:
    for file in files.taken():
        top, slash, _ = _tree_path(file).partition("/")
        yield replace(file, label=naming.class_of(top)) if slash else file
