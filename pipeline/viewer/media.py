"""Videos as browsers play them: the file itself, or stretches of it converted to H.264 in the sandbox and kept."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import threading
from pathlib import Path
from typing import Any

from pipeline.labels.source import Labels
from pipeline.labels.videos import VideoMissingError, Videos, plain_tracks, step_of
from pipeline.storage.kept import KeptFile

STRETCH_SECONDS = 2.0
MAX_PICTURE_PX = 640
# Children: one for what plays, one for pictures, so that a wall of thumbnails holds up no video.
PLAYER, PAINTER = 0, 1


class Media:
    """Facts, pictures and stretches of the videos of labelled clips. For several threads."""

    def __init__(self, videos: Videos, labels: Labels, *, blur_faces: bool) -> None:
        self._videos, self._labels, self._blur = videos, labels, blur_faces
        self._facts: dict[str, dict[str, Any]] = {}
        self._others: dict[str, bool | None] = {}
        self._reading, self._telling = threading.Lock(), threading.Lock()

    def facts(self, clip: dict[str, Any]) -> dict[str, Any]:
        """`VideoFacts` by name, how it is to be played, and whether it `is_changed` than the one that was scored: None
        while a large file is read to tell. Raises VideoMissingError."""
        key = f"{clip['clip_id']} {self._videos.version(clip)}"
        if (known := self._facts.get(key)) is None:
            found = self._videos.ask("facts", clip, child=PLAYER)
            known = self._facts[key] = {
                **found,
                "is_played": found["is_played"] and not self._blur,
                "stretch_seconds": STRETCH_SECONDS,
                "num_stretches": max(1, math.ceil((found["end"] - found["start"]) / STRETCH_SECONDS - 1e-6)),
                "mime": self._mime(found),
            }
        return {**known, "is_changed": self._is_changed(clip, key)}

    def _is_changed(self, clip: dict[str, Any], key: str) -> bool | None:
        with self._telling:
            if key in self._others:
                return self._others[key]
            is_changed = self._videos.has_other_size(clip)
            if not is_changed and self._videos.is_long_to_tell(clip):
                self._others[key] = None
                threading.Thread(target=self._tell, args=(clip, key), daemon=True).start()
                return None
            self._others[key] = is_changed or self._videos.is_changed(clip)
            return self._others[key]

    def _tell(self, clip: dict[str, Any], key: str) -> None:
        try:
            self._others[key] = self._videos.is_changed(clip)
        except VideoMissingError:  # It went meanwhile: the next question says so.
            self._others.pop(key, None)

    def _mime(self, found: dict[str, Any]) -> str:
        return 'video/mp4; codecs="avc1.42C01F' + (', mp4a.40.2"' if found["sound"] else '"')

    def whole(self, clip: dict[str, Any]) -> tuple[Path | KeptFile, str]:
        """The file itself and its type. Raises VideoMissingError where browsers do not play it."""
        facts = self.facts(clip)
        if not facts["is_played"]:
            raise VideoMissingError(f"{clip['path']} is played in converted stretches only")
        kind = "video/webm" if facts["container"] == "matroska" else "video/mp4"
        return self._videos.found(clip), kind

    def stretch(self, clip: dict[str, Any], number: int) -> Path:
        """A file with the frames of the stretch as MP4; empty where there is none. Raises VideoMissingError."""
        facts = self.facts(clip)
        if not 0 <= number < facts["num_stretches"]:
            raise VideoMissingError(f"stretch {number} of {clip['path']} is none of its {facts['num_stretches']}")
        start = facts["start"] + number * STRETCH_SECONDS
        is_last = number + 1 == facts["num_stretches"]
        target = self._place("stretches", clip, f"{number}.mp4")
        return self._kept(
            target,
            "convert",
            clip,
            child=PLAYER,
            number=facts["stream"],
            start=start,
            end=start + STRETCH_SECONDS + (1.0 if is_last else 0.0),
            offset=facts["start"],
        )

    def picture(self, clip: dict[str, Any], *, seconds: float | None, max_px: int) -> Path:
        """A file with a JPEG of the frame at a time, by default the first with a face. Raises VideoMissingError."""
        if seconds is None:
            faces = self._faces(clip)
            seconds = faces["pts_seconds"][0].as_py() if faces.num_rows else 0.0
        px = min(max_px, MAX_PICTURE_PX)
        target = self._place("pictures", clip, f"{seconds:.3f}-{px}.jpg")
        return self._kept(target, "picture", clip, child=PAINTER, seconds=seconds, max_px=px)

    def _kept(self, target: Path, what: str, clip: dict[str, Any], *, child: int, **options: Any) -> Path:
        if target.exists():
            os.utime(target)
            return target
        hidden: dict[str, Any] = {"blur": self._blur}
        if self._blur:
            self._videos.require_scored(clip)  # In another file faces are elsewhere.
            faces = self._faces(clip)
            hidden |= {"hidden": plain_tracks(faces), "step_seconds": step_of(faces, self._labels.info["config"])}
        made = self._videos.ask(what, clip, child=child, **options, **hidden)
        self._videos.make_room(len(made))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{secrets.token_hex(8)}")
        temporary.write_bytes(made)
        os.replace(temporary, target)
        return target

    def _faces(self, clip: dict[str, Any]) -> Any:
        with self._reading:
            return self._labels.faces(clip)

    def _place(self, kind: str, clip: dict[str, Any], name: str) -> Path:
        """Of this file as it is now: another under its name has other pictures."""
        key = hashlib.sha256(self._videos.version(clip).encode()).hexdigest()[:12]
        return self._videos.folder / kind / f"{clip['clip_id']}-{key}" / name
