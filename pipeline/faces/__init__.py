"""Images in, faces with boxes and scores out; crops and masked contexts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "detector": ["Detect", "Detector", "build_detector", "find_weights"],
        "spec": ["DetectorSpec", "detector_names", "detector_spec"],
        "crops": ["crop_face", "encode_image", "make_context", "select_faces"],
        "given_boxes": ["read_boxes"],
    },
)
