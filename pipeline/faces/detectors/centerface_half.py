"""CenterFace on frames at a half of their size: faces from about 30 px, in a quarter of the time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from pipeline.faces.detectors import centerface

SPEC = replace(centerface.SPEC, name="centerface-half", build=partial(centerface.build, shrink=2))
