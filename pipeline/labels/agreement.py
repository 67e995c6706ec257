"""How often a model was right where people looked, and how far the people agree."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.metrics import confusion_matrix, metrics_of
from pipeline.labels.corrections import read_corrections, standing
from pipeline.labels.over_time import by_person, moments_of
from pipeline.labels.source import Labels, models_of
from pipeline.records.corrections import Correction, Said
from pipeline.records.vocabulary import EMOTIONS, UsageError
from pipeline.runtime.console import log_status, print_line
from pipeline.storage.remote import absolute_url
from pipeline.storage.store import Storage

EVERY_SECONDS = 1.0
# What an annotator said of a moment: the model's guess and each annotator's emotion.
Moment = tuple[str | None, Mapping[str, str]]


def moments_said(labels: Labels) -> list[Moment]:
    """Each person and second of which an annotator said an emotion: what the model says, and each annotator's last."""
    by_clip: dict[str, list[Correction]] = defaultdict(list)
    for each in standing(read_corrections(labels.storages)):
        if each.said == Said.EMOTION:
            by_clip[each.clip_id].append(each)
    abstain_below = labels.abstain_below
    found: list[Moment] = []
    for clip_id, said in by_clip.items():
        clip = labels.clip(clip_id)
        if clip is None:
            continue
        for person, own in by_person(labels.faces(clip)).items():
            about = [each for each in said if each.track_index in (None, person)]
            if not about:
                continue
            for moment in moments_of(own, every=EVERY_SECONDS, abstain_below=abstain_below):
                low, high = moment.second, moment.second + EVERY_SECONDS
                given = {
                    each.annotator: each.label
                    for each in about
                    if each.label in labels.classes
                    and (each.start_pts_seconds is None or each.start_pts_seconds < high)
                    and (each.end_pts_seconds is None or each.end_pts_seconds > low)
                }
                if given:
                    found.append((moment.emotion, given))
    return found


def rightness(moments: Sequence[Moment], *, classes: Sequence[str] = EMOTIONS) -> dict[str, Any]:
    """`metrics_of` the model's guesses against what was said, an entry an annotator and moment; abstentions apart."""
    said, guessed, num_abstained = [], [], 0
    for emotion, given in moments:
        for label in given.values():
            if emotion is None:
                num_abstained += 1
                continue
            said.append(classes.index(label))
            guessed.append(classes.index(emotion))
    metrics = None
    if said:
        matrix = confusion_matrix(np.array(said, int), np.array(guessed, int), num_classes=len(classes))
        metrics = metrics_of(matrix, classes=classes)
    return {"num_said": len(said) + num_abstained, "num_abstained": num_abstained, "metrics": metrics}


def agreement(moments: Sequence[Moment], *, classes: Sequence[str] = EMOTIONS) -> dict[str, Any]:
    """Cohen's kappa of each two annotators, and Fleiss' of all, over the moments of which they all spoke.

    None where there are fewer than two such moments, or only one class in them, of which kappa says nothing.
    """
    from sklearn.metrics import cohen_kappa_score
    from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

    names = sorted({name for _, given in moments for name in given})
    pairs = []
    for one, two in combinations(names, 2):
        both = [(given[one], given[two]) for _, given in moments if one in given and two in given]
        kappa = None
        if len(both) > 1 and len({label for pair in both for label in pair}) > 1:
            kappa = float(cohen_kappa_score(*zip(*both, strict=True), labels=list(classes)))
        pairs.append({"annotators": [one, two], "num_moments": len(both), "cohen_kappa": kappa})
    every = [[given[name] for name in names] for _, given in moments if len(given) == len(names)]
    fleiss = None
    if len(names) > 1 and len(every) > 1 and len({label for row in every for label in row}) > 1:
        rows = np.array([[classes.index(label) for label in row] for row in every])
        fleiss = float(fleiss_kappa(aggregate_raters(rows, n_cat=len(classes))[0]))
    return {"annotators": names, "pairs": pairs, "num_moments_of_all": len(every), "fleiss_kappa": fleiss}


def evaluate_corrections(config: EvaluateConfig) -> None:
    """Write corrections.json and corrections.md: each model's rightness, and the agreement. Raises UsageError."""
    try:
        import sklearn  # noqa: F401
        import statsmodels  # noqa: F401
    except ImportError:
        told = "pip install 'emotion-pipeline[analysis]'"
        raise UsageError(f"--corrections needs scikit-learn and statsmodels: {told}") from None
    assert config.corrections is not None
    found: dict[str, Any] = {}
    for folders in models_of(absolute_url(config.corrections)):
        labels = Labels(*folders)
        moments = moments_said(labels)
        if moments:
            own = {"num_moments": len(moments), "agreement": agreement(moments, classes=labels.classes)}
            found[labels.model] = {**rightness(moments, classes=labels.classes), **own, "classes": labels.classes}
    if not found:
        raise UsageError(f"--corrections {config.corrections}: nobody said an emotion yet; use jobs/view.py first")
    storage = Storage(config.output)
    storage.put("corrections.json", (json.dumps(found, indent=1) + "\n").encode())
    text = "\n".join(_lines(found)) + "\n"
    storage.put("corrections.md", text.encode())
    for line in text.splitlines():
        print_line(line)
    log_status(f"output: {storage.url}")


def _lines(found: Mapping[str, Any]) -> list[str]:
    caveat = "They look first where the model is least certain: no share here is one of all clips."
    lines = ["# Where people looked", "", caveat, ""]
    for model, own in found.items():
        told = f"{own['num_said']} emotions said of {own['num_moments']} moments of 1 s"
        lines += [f"## Model {model}", "", f"{told}; the model abstained on {own['num_abstained']}."]
        metrics = own["metrics"]
        if metrics is not None:
            lines += ["", f"Right: {metrics['top1_accuracy']:.1%} of {metrics['num_examples']}.", ""]
            lines += ["| said | times | right |", "|---|---|---|"]
            for number, name in enumerate(own.get("classes", EMOTIONS)):
                row = metrics["confusion_matrix"][number]
                if sum(row):
                    lines.append(f"| {name} | {sum(row)} | {row[number] / sum(row):.1%} |")
        agreed = own["agreement"]
        for pair in agreed["pairs"]:
            names = " and ".join(pair["annotators"])
            lines += ["", f"Cohen's kappa of {names}: {_kappa(pair['cohen_kappa'])} ({pair['num_moments']} moments)"]
        if len(agreed["annotators"]) > 2:
            lines += ["", f"Fleiss' kappa of all: {_kappa(agreed['fleiss_kappa'])}"]
            lines[-1] += f" ({agreed['num_moments_of_all']} moments)"
        lines.append("")
    return lines


def _kappa(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
