"""What to do about clips that ended without a result, by their reason."""

from __future__ import annotations

CURES = {
    "no_face_found": "look harder: --retry-upsample finds faces of 40 px; or there is nobody in it",
    "no_box_given": "give boxes for it in --boxes",
    "stray": "a face was seen once only: sample more frames with --sample-fps",
    "abstained": "the model is not sure: look at it yourself, or lower --abstain-below",
    "missing": "the file is gone: put it back, or take it out of the manifest",
    "unreadable": "nobody may read it: change its rights",
    "store_failed": "run the same command again: the store did not answer",
    "not_finished": "run the same command again: the run was cut off",
    "growing": "run the same command again once it is whole: it was still being written",
    "interrupted": "run the same command again: it goes on from there",
    "original_changed": "run the same command again",
    "detector_failed": "run the same command again",
    "killed": "run the same command again: something outside ended its process; is there enough memory?",
    "hang": "damaged, or very large: raise --clip-timeout, or convert it",
    "over_budget": "it takes long: raise --max-clip-seconds or --max-clip-gigapixels, cut it with --segment-seconds",
    "memory": "too large: raise --max-worker-memory, or convert it",
    "crash": "damaged: copy it again, or convert it",
    "exception": "a fault of this program: please report it",
    "low_integrity": "damaged: copy it again, or lower --min-decode-integrity",
    "undecodable": "damaged: copy it again, or convert it",
    "decode_error": "damaged: copy it again, or convert it",
    "no_frames": "it holds no picture: cut off, or sound only",
    "not_a_video": "it is no video: convert it, or leave it out",
    "image": "it is a picture: give it a picture's name, or leave it out",
    "playlist": "give the videos that the list points to",
    "too_large": "too large: convert it to a smaller size",
    "encrypted": "unpack it with its password first",
}


def cure_of(reason: str | None) -> str:
    """What to do, in words; what is not known here is said in the clip's detail."""
    return CURES.get(reason or "", "see its detail in the list below")
