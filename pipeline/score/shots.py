"""Where shots begin in, rows of shots out, and the same of a film from those of its segments. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.records.faces import Shot
from pipeline.video.frames import Cuts


def shots_of(cuts: Cuts, *, clip_id: str, path: str, model: str | None = None) -> list[Shot]:
    """The shots of a clip, or of a segment of one, in order; they cover it without a gap."""
    begins = list(zip(cuts.frames, cuts.times, strict=True))
    is_cut = cuts.start_frame in cuts.frames[:1]
    if not is_cut:
        begins.insert(0, (cuts.start_frame, cuts.start_seconds))
    ends = [*(time for _, time in begins[1:]), cuts.end_seconds]
    return [
        Shot(
            clip_id=clip_id,
            path=path,
            shot_index=number,
            first_frame_index=frame,
            start_pts_seconds=start,
            end_pts_seconds=end,
            seconds=end - start,
            begins_with_cut=is_cut or number > 0,
            model=model,
        )
        for number, ((frame, start), end) in enumerate(zip(begins, ends, strict=True))
    ]


def joined_cuts(shots: Sequence[Shot]) -> Cuts | None:
    """The cuts of a film whose segments have these shots, in order of time; None where there are none."""
    if not shots:
        return None
    cuts = [shot for shot in shots if shot.begins_with_cut]
    return Cuts(
        start_frame=shots[0].first_frame_index,
        start_seconds=shots[0].start_pts_seconds,
        end_seconds=shots[-1].end_pts_seconds,
        frames=tuple(shot.first_frame_index for shot in cuts),
        times=tuple(shot.start_pts_seconds for shot in cuts),
    )
