"""Records passed between modules, and the Arrow schemas in which they are stored."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "vocabulary": ["EMOTIONS", "SCHEMA_VERSION", "SPLITS", "Emotion", "UsageError"],
        "clips": ["CLIP_SCHEMA", "Clip", "Clips", "clip_of", "clip_table", "segment_id", "whole_id"],
        "outcomes": ["OUTCOME_SCHEMA", "Outcome", "State", "outcome_of"],
        "faces": [
            "CLIP_LABEL_SCHEMA",
            "EXAMPLE_SCHEMA",
            "FRAME_SCHEMA",
            "THUMBNAIL_SCHEMA",
            "TRACK_SCHEMA",
            "Box",
            "ClipLabel",
            "Example",
            "Face",
            "Prediction",
            "Thumbnail",
            "TrackLabel",
        ],
        "columns": ["column", "schema_of", "table_of"],
    },
)
