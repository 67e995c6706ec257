"""Video files and images in, upright RGB frames at chosen times out."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "open": ["claimed_range", "frames_of_spans", "open_clip"],
        "image": ["read_image"],
        "frames": ["DecodeReport", "DecodedClip", "Frame", "Sampling", "VideoError"],
    },
)
