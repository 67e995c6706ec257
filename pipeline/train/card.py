"""README.md of a run: its model card, with the fields that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.dataset.card import lines_on_use
from pipeline.models.checkpoint_info import put, read_checkpoint_info
from pipeline.models.claims import model_classes


def put_card(run_url: str, summary: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """Write the card into a run. summary, info: as `run_card` takes them."""
    best = read_checkpoint_info(run_url, "best")["metrics"]
    put(run_url, "README.md", content=run_card(summary, info, best))


def run_card(summary: Mapping[str, Any], info: Mapping[str, Any], best: Mapping[str, Any]) -> bytes:
    """The card.

    Args:
        summary: of the run, as in summary.json.
        info: of its last checkpoint (`read_checkpoint_info`).
        best: metrics of its best epoch on the validation split.
    """
    data = info.get("data") or {}
    name = " ".join(str(data.get("name") or "unnamed data").split())
    accuracy, f1 = best.get("top1_accuracy"), best.get("macro_f1")
    metrics = [
        {"type": kind, "value": value} for kind, value in (("accuracy", accuracy), ("f1", f1)) if value is not None
    ]
    task = {"type": "image-classification", "name": "emotion of a face in its context"}
    result = {"task": task, "dataset": {"name": name, "type": name, "split": "validation"}, "metrics": metrics}
    head = {
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["emotion-recognition", "faces", str(summary["model"])],
        "model-index": [{"name": str(summary["model"]), "results": [result]}],
    }
    per_class = data.get("per_class") or {}
    right = best.get("per_class_accuracy") or {}
    rows = [
        f"| {each} | {per_class.get(each, 'not known')} | {_share(right.get(each))} |"
        for each in model_classes(info.get("config", {"model": {}}))
    ]
    synthetic = data.get("synthetic")
    made = "nobody said whether real" if synthetic is None else "made by a program" if synthetic else "real"
    lines = [
        f"# {summary['model']}",
        "",
        f"Best epoch {summary['best_epoch']} of {summary['epochs']}, by accuracy on the validation split.",
        "",
        "## Data",
        "",
        f"{name} ({made}); sha256 of its manifest: `{summary['manifest_sha256']}`. The splits are those of the",
        "manifest; its own card says how they were made. Figures are of the validation split, which chose the epoch.",
        "",
        f"Accuracy {_share(accuracy)}, macro-F1 {_share(f1)}.",
        "",
        "| emotion | examples it learned from | validation examples named right |",
        "|---|---|---|",
        *rows,
        "",
        "By groups of people: not known here. `jobs/evaluate.py --groups` measures them; the card beside an evaluation",
        "has them.",
        *lines_on_use(),
    ]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{chr(10).join(lines)}\n".encode()


def _share(value: Any) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else "not known"
