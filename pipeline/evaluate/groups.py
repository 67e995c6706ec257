"""Metrics by group: what a table says of each clip (show, light, skin tone, sex, age) and a split's labels in."""

from __future__ import annotations

import csv
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluate.metrics import balanced_accuracy, confusion_matrix, top1_accuracy
from pipeline.evaluate.persons import ClipPredictions
from pipeline.records.documents import shown_value
from pipeline.records.vocabulary import UsageError
from pipeline.storage.remote import absolute_url, read_url

KEYS = ("path", "url", "clip_id")
NUM_DRAWS = 200
MAX_GROUPS = 50
MAX_BYTES = 2**28
NOT_GIVEN = "not given"


def read_groups(url: str) -> dict[str, dict[str, str]]:
    """The columns of a CSV by the clip that each row names, in a column path, url or clip_id.

    Raises UsageError where it can't be read, has no such column or no other, or names a clip twice.
    """
    try:
        text = read_url(absolute_url(url), max_bytes=MAX_BYTES, what=f"--groups {url}").decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--groups {url}: it can't be read ({error}); give a CSV with a header") from None
    names = [name for name in (rows[0] if rows else ()) if name]
    key = next((name for name in KEYS if name in names), None)
    if key is None or not set(names) - set(KEYS):
        raise UsageError(
            f"--groups {url}: its columns are {_named(names)}; give path (or clip_id) and at least one column of groups"
        )
    found: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        if row[key] in found:
            raise UsageError(f"--groups {url}, row {number}: {key} {shown_value(row[key])} is there twice; remove one")
        found[row[key]] = {name: (row[name] or "").strip() for name in names if name not in KEYS}
    for name in set(names) - set(KEYS):
        if (count := len({row[name] for row in found.values()})) > MAX_GROUPS:
            raise UsageError(
                f"--groups {url}: column {shown_value(name)} has {count} values, and a table has {MAX_GROUPS} groups at"
                " most; write ranges or kinds, such as 20-29 for an age"
            )
    return found


def _named(columns: Sequence[str]) -> str:
    """The columns of a table; of a file that may be no table, how many."""
    is_plain = all(re.fullmatch(r"\w{1,24}", name) for name in columns)
    if not columns or (is_plain and (len(columns) > 1 or columns[0] in KEYS)):
        return ", ".join(columns) or "none"
    return f"others ({len(columns)} of them)"


def metrics_by_group(
    table: Mapping[str, Mapping[str, str]], *, clips: ClipPredictions, predictions: np.ndarray
) -> dict[str, list[dict[str, Any]]]:
    """Of each column its groups, sorted by name: clips, top-1 and balanced accuracy, interval (95 %, of top-1).

    The interval is by bootstrap over clips.

    table: as `read_groups` gives it; a clip that it does not name, or for which a column is empty, is in the group "not
    given". predictions: (C,) indices of the classes. Raises UsageError where it names no clip, and without fairlearn.
    """
    metric_frame, features = _metric_frame(), _features(table, clips)
    found: dict[str, list[dict[str, Any]]] = {}
    for name, values in features.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a group that is in no draw has no quantile
            frame = metric_frame(
                metrics={"num_clips": _count, "top1_accuracy": _top1, "balanced_accuracy": _balanced},
                y_true=clips.labels,
                y_pred=predictions,
                sensitive_features={name: np.array(values)},
                n_boot=NUM_DRAWS,
                ci_quantiles=[0.025, 0.975],
                random_state=0,
            )
            low, high = frame.by_group_ci
        found[name] = [
            {
                "group": str(group),
                "num_clips": int(row["num_clips"]),
                **{metric: float(row[metric]) for metric in ("top1_accuracy", "balanced_accuracy")},
                "interval": [_finite(edge.loc[group, "top1_accuracy"]) for edge in (low, high)],
            }
            for group, row in frame.by_group.iterrows()
        ]
    return found


def _features(table: Mapping[str, Mapping[str, str]], clips: ClipPredictions) -> dict[str, list[str]]:
    own = [table.get(path) or table.get(clip) for path, clip in zip(clips.paths, clips.clip_ids, strict=True)]
    if not any(own):
        raise UsageError(
            f"--groups: none of its {len(table):,} rows names a clip of the split, such as"
            f" {clips.paths[0] or clips.clip_ids[0]!r}; write paths as outcomes.jsonl has them"
        )
    names = next(iter(table.values()))
    return {name: [(row or {}).get(name) or NOT_GIVEN for row in own] for name in names}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _count(labels: Sequence[int], predictions: Sequence[int]) -> int:
    del predictions
    return len(labels)


def _top1(labels: Sequence[int], predictions: Sequence[int]) -> float:
    return top1_accuracy(_matrix(labels, predictions))


def _balanced(labels: Sequence[int], predictions: Sequence[int]) -> float:
    return balanced_accuracy(_matrix(labels, predictions))


def _matrix(labels: Sequence[int], predictions: Sequence[int]) -> np.ndarray:
    """Of the classes up to the last that occurs: one that does not occur changes neither metric."""
    return confusion_matrix(labels, predictions, num_classes=int(max(*labels, *predictions)) + 1)


def _metric_frame() -> Any:
    try:
        from fairlearn.metrics import MetricFrame
    except ModuleNotFoundError:
        raise UsageError(
            "--groups needs fairlearn: pip install fairlearn, or this package with its extra [analysis]"
        ) from None
    return MetricFrame
