"""Labels as WebVTT cues and as ELAN tiers: one voice or one tier a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pympi.Elan import Eaf

from pipeline.labels.over_time import by_person, moments_of, printable, spans_of
from pipeline.records.columns import classes_of
from pipeline.records.evolution import from_first_frame
from pipeline.storage.scratch import scratch

MIME_TYPES = {"mp4": "video/mp4", "mov": "video/quicktime", "mpg": "video/mpeg", "mpeg": "video/mpeg"}


def webvtt(faces: pa.Table, *, every: float, abstain_below: float) -> bytes:
    """A WebVTT file with a cue for each stretch of one emotion, spoken by its person."""
    cues = []
    for person, own in by_person(faces).items():
        moments = moments_of(from_first_frame(own), every=every, abstain_below=abstain_below)
        for span in spans_of(moments, every=every):
            cues.append((span.start, person, span))
    lines = ["WEBVTT", "", "NOTE A model's guess from pixels, not what a person feels", ""]
    for _, person, span in sorted(cues, key=lambda cue: cue[:2]):
        lines += [
            f"{_clock(span.start)} --> {_clock(span.end)}",
            f"<v Person {person + 1}>{span.emotion} {span.probability:.0%}",
            "",
        ]
    return "\n".join(lines).encode()


def _clock(seconds: float) -> str:
    whole = round(max(seconds, 0.0) * 1000)
    return f"{whole // 3_600_000:02d}:{whole // 60_000 % 60:02d}:{whole // 1000 % 60:02d}.{whole % 1000:03d}"


def elan(
    clip: dict[str, Any],
    faces: pa.Table,
    shots: Sequence[tuple[float, float]] = (),
    *,
    every: float,
    abstain_below: float,
    author: str,
) -> bytes:
    """An EAF file (ELAN) with a tier for each person, whose annotations take their values from the model's classes.

    shots: start and end of each in seconds from the clip's first frame; where there are any, a tier has their numbers.
    """
    eaf: Any = Eaf(author=author)
    eaf.add_controlled_vocabulary("emotions")
    eaf.add_language("eng", "http://cdb.iso.org/lg/CDB-00138502-001", "English (eng)")
    eaf.add_cv_description("emotions", "eng", "the classes of the model")
    for number, emotion in enumerate(classes_of(faces.schema)):
        eaf.add_cv_entry("emotions", f"cve{number}", [(emotion, "eng", None)])
    eaf.add_linguistic_type("emotion", constraints=None, timealignable=True, graphicreferences=False)
    eaf.linguistic_types["emotion"]["CONTROLLED_VOCABULARY_REF"] = "emotions"
    ending = clip["path"].rpartition(".")[2].lower()
    name = printable(clip["path"].rpartition("/")[2])
    eaf.add_linked_file(name, relpath=f"./{name}", mimetype=MIME_TYPES.get(ending, "video/unknown"))
    for person, own in by_person(faces).items():
        tier = f"Person {person + 1}"
        eaf.add_tier(tier, ling="emotion", part=f"P{person + 1}")
        for span in spans_of(moments_of(from_first_frame(own), every=every, abstain_below=abstain_below), every=every):
            eaf.add_annotation(tier, round(span.start * 1000), round(span.end * 1000), span.emotion)
    if shots:
        eaf.add_linguistic_type("shot", constraints=None, timealignable=True, graphicreferences=False)
        eaf.add_tier("Shots", ling="shot")
        for number, (start, end) in enumerate(shots, start=1):
            eaf.add_annotation("Shots", round(start * 1000), round(end * 1000), str(number))
    if "default" in eaf.tiers:
        eaf.remove_tier("default")
    with scratch("eaf") as folder:
        path = folder / "labels.eaf"
        eaf.to_file(str(path))
        return path.read_bytes()
