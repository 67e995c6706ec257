"""Pages that people look at: plain data comes in, one self-contained HTML string goes out. Pure.

A page asks the network for nothing (its content security policy forbids it), follows the reader's light or dark
setting, and says every chart in a table too. Charts are Plotly's, whose script (4.8 MB) is inlined once and draws a
chart when it comes into view. Everything that was named outside (paths, reasons, errors) is escaped. Pictures of people
can be blurred or left out of every page that has them.
"""

from __future__ import annotations

from pipeline.report.comparison import comparison_page
from pipeline.report.evaluation import evaluation_page
from pipeline.report.examined import Examined
from pipeline.report.parts import MAX_LISTED
from pipeline.report.people import MAX_TIMELINES, shown_clip, shown_clips
from pipeline.report.pictures import MAX_THUMBNAILS, thumbnails_of
from pipeline.report.preprocess import preprocess_page
from pipeline.report.score import labels_of, score_lead, score_page
from pipeline.report.training import training_page

__all__ = [
    "MAX_LISTED",
    "MAX_THUMBNAILS",
    "MAX_TIMELINES",
    "Examined",
    "comparison_page",
    "evaluation_page",
    "labels_of",
    "preprocess_page",
    "score_lead",
    "score_page",
    "shown_clip",
    "shown_clips",
    "thumbnails_of",
    "training_page",
]
