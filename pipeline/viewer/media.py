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
        self._reading = threading.Lock()

    def facts(self, clip: dict[str, Any]) -> dict[str, Any]:
        """`VideoFacts` by name, and how it is to be played. Raises VideoMissingError."""
        key = f"{clip['clip_id']} {self._videos.version(clip)}"
        if (known := self._facts.get(key)) is not None:
            return known
        found = self._videos.ask("facts", clip, child=PLAYER)
        is_changed = self._videos.is_changed(clip)
        num = max(1, math.ceil((found["end"] - found["start"]) / STRETCH_SECONDS - 1e-6))
        facts = {
            **found,
            "is_played": found["is_played"] and not self._blur,
            "is_changed": is_changed,
            "stretch_seconds": STRETCH_SECONDS,
            "num_stretches": num,
            "mime": self._mime(found),
        }
        self._facts[key] = facts
        return facts

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
