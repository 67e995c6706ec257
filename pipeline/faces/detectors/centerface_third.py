"""CenterFace on frames at a third of their size: faces from about 40 px, in an eighth of the time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from pipeline.faces.detectors import centerface

SPEC = replace(centerface.SPEC, name="centerface-third", build=partial(centerface.build, shrink=3))
