"""Tells videos, images, manifests and archives from all other files, by name and first bytes."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial

from fsspec import AbstractFileSystem

from pipeline.corpus.archived import ArchiveLister, members_of
from pipeline.corpus.listing import ask_store, info_of, map_in_threads, printable_path, url_of
from pipeline.corpus.table import listed_md5
from pipeline.corpus.types import Ignored, IgnoredFiles, ListedFile, ListedFiles
from pipeline.storage.archives.members import Member, kind_of, member_url
from pipeline.storage.redaction import without_query
from pipeline.video.formats import HEAD_BYTES, IMAGE_NAMES, VIDEO_NAMES, container_of, extension_of

_MANIFEST_EXTENSIONS = frozenset({"csv", "tsv", "parquet"})


_OTHER_ARCHIVE_EXTENSIONS = frozenset({"7z", "bz2", "gz", "rar", "tbz2", "txz", "xz", "zst"})


# These names settle it too; a file of any other name is what its first bytes say.
_OTHER_EXTENSIONS = _MANIFEST_EXTENSIONS | frozenset(
    "aac arrow ass bmp cfg doc docx eaf flac h5 hdf5 heic htm html ini ipynb json jsonl log m3u m3u8 m4a mat md md5 "  # noqa: SIM905
    "mp3 mpd npy npz ogg opus pdf pkl pt pth py rst safetensors sh srt svg tif tiff toml txt vtt wav webp wma xls xlsx "
    "xml yaml yml".split()
)


# What browsers, sftp and download tools call a file that is still coming.
_IN_TRANSFER = (
    r"\.(part|partial|filepart|crdownload|(?:op|fdm|t)?download|downloading|upload|uploading|copying|tmp|temp|s3tmp|aria2"
    r"|ytdl|in[_-]?progress|incomplete|unfinished|lftp-pget-status|xltd|td|dlm|!ut|!qb|!bt|bc!|jc!)$"
    r"|\.(?:tmp|temp|partial)\.\w{2,5}$"
    r"|\.part-frag\d+|_?\.gstmp$|\.\w{2,5}\.[0-9a-f]{8}$"  # the last two: of gsutil and of the AWS command line
)
_ARCHIVE_PART = r"\.(z\d\d|0\d\d|r\d\d|part\d+\.rar)$|\.(?:zip|tar|tgz|tzst|gz|zst|7z)\.(?:part-?[a-z]{2}|a[a-z])$"


_NAMED_EXTENSIONS = VIDEO_NAMES | IMAGE_NAMES | _OTHER_EXTENSIONS


MAX_EXTENSION_LETTERS = 12


def is_manifest(place: str, store: AbstractFileSystem | None) -> bool:
    """Whether a place is a file that is named as a manifest is. Raises what its store raises."""
    if extension_of(without_query(place)) not in _MANIFEST_EXTENSIONS:
        return False
    if store is None:
        return os.path.isfile(place)
    info = info_of(place, store)  # Not isfile(): it takes every fault for a no.
    return info is not None and info["type"] == "file"


def _first_bytes(file: ListedFile) -> bytes | OSError:
    if file.size_bytes == 0:
        return b""
    if file.store is not None:
        return bytes(ask_store(file.store, "cat_file", file.place, start=0, end=HEAD_BYTES))
    try:
        with open(file.place, "rb") as stream:
            return stream.read(HEAD_BYTES)
    except OSError as error:
        return error


class SortedFiles:
    """What the files of an input are: by the name where it tells, else by the first bytes of a loose file.

    reads_members: whether what lies in archives on a disk is read for its MD5, as other files there are. In a store the
    members that may be like others are read later, see `alike`.
    """

    def __init__(self, root: str, store: AbstractFileSystem | None, *, reads_members: bool = False) -> None:
        self._reads_members = reads_members and store is None
        self.videos, self.images, self._unnamed = (ListedFiles(root, store) for _ in range(3))
        self.broken: list[ListedFile] = []  # archives that cannot be read (to their end), and archives in them
        self.broken_videos: list[ListedFile] = []
        self.broken_images: list[ListedFile] = []
        self.ignored = IgnoredFiles()
        self.num_members = 0

    def read(self, items: Iterable[ListedFile | Ignored]) -> None:
        """Sort out all that was listed, and what lies in the archives among it."""
        archives: list[ListedFile] = []
        for item in items:
            if isinstance(item, Ignored):
                self.ignored.append(item)
            elif (extension := extension_of(item.path)) not in _NAMED_EXTENSIONS and kind_of(item.path):
                archives.append(item)
            else:
                self._add(item, extension)
        with ArchiveLister() as lister:
            list_archive = partial(_with_members, lister=lister, read=self._reads_members)
            for archive, found in map_in_threads(list_archive, archives):
                if not found:
                    self.ignored.append(as_ignored(archive, "an archive that holds nothing"))
                for member in found:
                    self._add_member(archive, member)
        self._read_unnamed()

    def _add(self, file: ListedFile, extension: str) -> None:
        if (reason := _unfinished_reason(file.path)) is not None:
            self.ignored.append(as_ignored(file, reason))
        elif extension in VIDEO_NAMES:
            (self.broken_videos if file.is_broken else self.videos).append(file)
        elif extension in IMAGE_NAMES:
            (self.broken_images if file.is_broken else self.images).append(file)
        elif extension in _OTHER_ARCHIVE_EXTENSIONS:
            self.ignored.append(as_ignored(file, f"an archive of a kind that is not read: .{extension}"))
        elif extension in _OTHER_EXTENSIONS or file.url is not None:
            self.ignored.append(why_not_a_video(file))
        else:
            self._unnamed.append(file)

    def _add_member(self, archive: ListedFile, member: Member) -> None:
        path = f"{archive.path}!{member.name}" if member.name else archive.path
        file = replace(
            archive,
            path=path,
            size_bytes=member.size_bytes,
            content_id=member.content_id,
            bytes_id=member.bytes_id,
            is_broken=member.reason is not None,
            url=member_url(
                url_of(archive.place, archive.store), archive.size_bytes, member, content_id=archive.content_id or ""
            ),
            tree_path="/".join([*filter(None, map(posixpath.dirname, path.split("!"))), posixpath.basename(path)]),
        )
        if not member.name or kind_of(member.name):
            self.broken.append(file)
        elif any(part.startswith(".") and part != ".." for part in re.split("[/!]", member.name)):
            self.ignored.append(as_ignored(file, "hidden: its name begins with a dot"))
        else:
            self.num_members += 1
            self._add(file, extension_of(path))

    def _read_unnamed(self) -> None:
        def first_bytes(file: ListedFile) -> tuple[ListedFile, bytes | OSError]:
            return file, _first_bytes(file)

        for file, start in map_in_threads(first_bytes, self._unnamed.taken()):
            if isinstance(start, OSError):
                reason = f"not a video by its name, and it cannot be read: {start.strerror}"
                self.ignored.append(as_ignored(file, reason))
            elif container_of(start) is not None:
                self.videos.append(file)
            else:
                self.ignored.append(as_ignored(file, "not a video: no known container in its first bytes"))


def _unfinished_reason(path: str) -> str | None:
    """Why a file of this name is no whole file, in words; None where the name does not say so."""
    name = posixpath.basename(path)
    if re.search(_IN_TRANSFER, name, re.IGNORECASE):
        return "a transfer in progress by its name: run again when it has ended"
    if re.search(_ARCHIVE_PART, name, re.IGNORECASE):
        return "a part of a split archive by its name: join the parts, or unpack them"
    return None


def as_ignored(file: ListedFile, reason: str) -> Ignored:
    """A listed file as one that is ignored."""
    return Ignored(path=printable_path(file.path), reason=reason)


def why_not_a_video(file: ListedFile) -> Ignored:
    """A file that is ignored because of its name, with the reason."""
    name = file.path if file.url is None else file.path.rpartition("!")[2]  # of a member: its own
    extension = extension_of(name)
    # An upload chooses it, and every one is kept for the life of the process.
    is_plain = extension.isascii() and extension.isalnum() and len(extension) <= MAX_EXTENSION_LETTERS
    return as_ignored(file, _not_a_video_reason(extension if is_plain or not extension else "(another)"))


@cache  # A million files share a few texts.
def _not_a_video_reason(extension: str) -> str:
    return f"not a video by its name: .{extension}" if extension else "not a video by its name: no extension"


def _with_members(archive: ListedFile, *, lister: ArchiveLister, read: bool) -> tuple[ListedFile, list[Member]]:
    """An archive with its content id, and what lies in it."""
    if archive.content_id is None:
        archive = replace(archive, content_id=listed_md5(archive))
    return archive, members_of(archive, lister, read=read)
