"""Where a setting of a job stands in its help: declared beside its type, its default and its docstring.

frames_per_clip: Annotated[int, Setting("sampling", common=True)] = 8
"""

from __future__ import annotations

from dataclasses import dataclass

# In the order of the help.
GROUPS = ("input", "sampling", "faces", "network", "training", "labels", "work", "pages", "machine", "other")


@dataclass(frozen=True, slots=True)
class Setting:
    """The group of a setting in the help, and whether most people need it.

    Attributes:
        group: one of GROUPS; a setting that declares none is among `other`.
        common: shown by --help, the others by --help-all alone.
    """

    group: str = "other"
    common: bool = False

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"group is {self.group!r}; give one of {', '.join(GROUPS)}")

    @property
    def place(self) -> tuple[int, bool]:
        """Sorts settings as the help shows them: by group, those that most people need first."""
        return GROUPS.index(self.group), not self.common
