"""The names of a zip's members, as unzip reads them."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence

_IS_UTF8 = 0x800  # flag of a member
_WITH_BACKSLASHES = (0, 10, 11, 14)  # systems that pack them: MS-DOS, NTFS, MVS, VFAT


def zip_names(infos: Sequence[zipfile.ZipInfo]) -> list[str]:
    """The name of each member, with forward slashes where Windows wrote backward ones.

    Names that do not say their encoding are read as zipfile does, as code page 437, except where that makes backslashes
    of bytes that are half of a Japanese letter: then as Shift-JIS, all of this archive.
    """
    japanese = _japanese(infos)
    return [
        name.replace("\\", "/") if info.create_system in _WITH_BACKSLASHES else name
        for info, name in zip(infos, japanese or [each.filename for each in infos], strict=True)
    ]


def _japanese(infos: Sequence[zipfile.ZipInfo]) -> list[str] | None:
    """The names as Shift-JIS, where each can be and one has fewer backslashes then; else None."""
    try:
        names = [
            each.filename if each.flag_bits & _IS_UTF8 else each.filename.encode("cp437").decode("cp932")
            for each in infos
        ]
    except UnicodeError:
        return None
    has_fewer = any(name.count("\\") < each.filename.count("\\") for each, name in zip(infos, names, strict=True))
    return names if has_fewer else None
