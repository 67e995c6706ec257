"""Names of folders and of cells in, classes out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.corpus.types import CorpusError
from pipeline.records.vocabulary import EMOTIONS, FOUND, SPLITS, checked_classes, class_names, classes_found

SPLIT_NAMES: dict[str, str] = {name: name for name in SPLITS} | {"val": "validation"}


class Naming:
    """Which names mean which classes.

    Args:
        classes: the classes; FOUND: those that the names of the input say; None: the seven, and whoever reads the
            input does not need its labels, so that a name that says none of them is no fault.
    """

    def __init__(self, classes: Sequence[str] | None) -> None:
        self.is_needed = classes is not None
        self.is_given = classes is not None and tuple(classes) not in (EMOTIONS, FOUND)
        self.takes_found = classes is not None and tuple(classes) == FOUND
        self._set(EMOTIONS if classes is None or self.takes_found else classes)

    def _set(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._names = class_names(self.classes)

    def find(self, names: Iterable[str], *, shown: str) -> None:
        """Take for classes what these names say, if that is what was asked for. Raises CorpusError."""
        if self.takes_found:
            found = classes_found(names)
            if not found:
                raise CorpusError(f"input {shown} names no class; put clips into folders of classes, or name them")
            self._set(checked_classes(found, what=f"input {shown}: its classes"))

    def class_of(self, name: str) -> str | None:
        """The class that a name means."""
        return self._names.get(name.strip().casefold())

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Those of the names that mean no class, sorted."""
        return sorted({name.strip() for name in names if self.class_of(name) is None})

    def cure(self) -> str:
        """What the classes are, and how others are named."""
        return f"the classes are {', '.join(self.classes)} (--classes names others, or found: those that are there)"


def class_folders(root_name: str, tree_paths: Iterable[str]) -> set[str]:
    """The names of the folders that say a class: those in train/, validation/ and test/, there or a folder below or
    above the input, else the folders of the input."""
    there, below, tops, over = set[str](), set[str](), set[str](), set[str]()
    is_above = root_name.lower() in SPLIT_NAMES
    for path in tree_paths:
        parts = path.split("/", 3)
        if len(parts) > 2 and parts[0].lower() in SPLIT_NAMES:
            there.add(parts[1])
        if len(parts) > 3 and parts[1].lower() in SPLIT_NAMES:
            below.add(parts[2])
        if len(parts) > 1:
            tops.add(parts[0])
        if is_above and len(parts) > 1:
            over.add(parts[0])
    return there or (below if len(tops) == 1 else set()) or over or tops
