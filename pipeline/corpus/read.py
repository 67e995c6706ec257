"""An input (folder, file, glob, manifest, CAER, CAER-S; local or any fsspec URL) in; a sorted table of clips out.

Nothing vanishes: every file below the input is either a clip or an `Ignored` with a reason. Files are listed and
hashed here, never decoded. Clip ids do not depend on where the corpus lies: see `read_corpus`. A listing streams into
columns, which lie on a disk where there are many: ten million files would not fit into memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from pipeline.corpus.groups import group_pattern
from pipeline.corpus.kinds import is_manifest
from pipeline.corpus.labels import Naming
from pipeline.corpus.layouts import read_files
from pipeline.corpus.listing import ask_store, locate, one_line_errors, shown_url
from pipeline.corpus.manifest import read_manifest_file
from pipeline.corpus.table import LabelConflicts, SplitRules, SplitScheme, check_fractions
from pipeline.corpus.types import Corpus, CorpusError
from pipeline.records.vocabulary import EMOTIONS, LAYOUTS
from pipeline.storage.web import reach_of, reaching


def read_corpus(
    input_url: str,
    *,
    layout: str = "auto",
    split_fractions: Sequence[float] | None = (0.7, 0.1, 0.2),
    split_scheme: SplitScheme = "official",
    group_by: str | None = None,
    label_conflicts: LabelConflicts = "keep",
    follow_links: bool = False,
    allow_private_hosts: bool = False,
    shard: tuple[int, int] | None = None,
    classes: Sequence[str] | None = EMOTIONS,
) -> Corpus:
    """Every clip of a folder, file, glob or manifest, with stable ids, labels and splits.

    `input_url` is a local path or an fsspec URL. A manifest is a .csv, .tsv or .parquet given itself, with a column
    url and optionally label, split, start_seconds, end_seconds, group; its relative urls start at its folder. CAER is
    `{train,validation,test}/<Class>/*` of videos, CAER-S the same of images; auto also finds them one folder above or
    below the input. In any other folder, direct sub-folders that are all classes give labels. Class and split names
    are read in any case; other names of the seven (`vocabulary.SYNONYMS`) and val are taken too. classes: see `Naming`.

    Splits come from the layout or the manifest. A CAER-S without validation has its official test cut 1:2 into
    validation and test, per class, by blocks of file numbers: neighbouring files are frames of one clip, so random
    images would leak. split_scheme "shots" pools and cuts it anew, see `layouts`. Clips without a split get `split_of`
    of their group, else of their content, with `split_fractions`; None leaves them without. So all time ranges of one
    file, files with the same bytes and clips of one group fall into one split, and a renamed folder moves none. A group
    is the manifest's, or what `group_by` finds in the path (`groups.group_pattern`). label_conflicts: what is done with
    files of the same bytes under two labels (`table.SplitRules`).

    `clip_id` is from the path, size, content and time range. `content_id` is the MD5 of a local file and the store's
    etag of a remote one: equal for S3 objects written by a single PUT, so that a copied corpus keeps its ids. It is
    "missing", "unreadable" or "not-a-file" for clips that will fail when they are read.

    Archives (.zip, .tar, .tar.gz, .tgz, .tar.zst, .tzst) that are found in a folder, glob or given themselves are
    listed: their videos are clips with paths `archive!member`, labelled as if each were unpacked where it lies, known
    by their names alone. A member or an archive that cannot be read is a clip too, whose reading gives the reason.

    A link is followed within the input, or anywhere with `follow_links`. A manifest names no private host but its own,
    unless with `allow_private_hosts`. shard: the part of the input that is taken, number and count: files by a hash of
    their paths, whole archives. Splits do not depend on it; kin (same bytes, conflicts) are seen within a part.

    Raises CorpusError for an input that is missing, empty, forbidden or contradicts its layout or manifest.
    """
    if layout not in LAYOUTS:
        raise CorpusError(f"layout {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    if split_fractions is not None:
        check_fractions(split_fractions)
    if not input_url:
        raise CorpusError("the input is empty; give a folder, file, glob or manifest, local or as a URL")
    rules = SplitRules(
        split_fractions=split_fractions,
        group_of=None if group_by is None else group_pattern(group_by),
        label_conflicts=label_conflicts,
        scheme=split_scheme,
        shard=shard,
    )
    reach = reach_of(input_url, allow_private_hosts=allow_private_hosts)
    with reaching(reach), one_line_errors(input_url):
        return _read(input_url, rules, Naming(classes), layout=layout, follow_links=follow_links, reach=reach)


def _read(
    input_url: str,
    rules: SplitRules,
    naming: Naming,
    *,
    layout: str,
    follow_links: bool,
    reach: frozenset[str] | None,
) -> Corpus:
    place, store = locate(input_url)
    shown = shown_url(input_url)
    if layout in ("auto", "manifest") and is_manifest(place, store):
        return read_manifest_file(place, store, rules=rules, naming=naming, reach=reach, shown=shown)
    if layout == "manifest":
        raise CorpusError(f"input {shown} is not a manifest; give a .csv, .tsv or .parquet file, or another layout")
    return read_files(place, store, shown=shown, layout=layout, rules=rules, naming=naming, follow_links=follow_links)


def require_input(input_url: str) -> None:
    """Raise CorpusError where nothing is at the input, in one or two requests: nothing is listed or hashed."""
    if not input_url:
        raise CorpusError("the input is empty; give a folder, file, glob or manifest, local or as a URL")
    with one_line_errors(input_url):
        place, store = locate(input_url)
        wildcard = re.search(r"[^/]*[*?[]", place)
        above = (place[: wildcard.start()].rstrip("/") or "/") if wildcard else place
        if store is None:
            os.stat(place if os.path.lexists(place) else above)
        elif "://" in place:
            ask_store(store, "info", place)
        elif place:
            ask_store(store, "info", above)
