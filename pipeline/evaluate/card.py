"""README.md of an evaluation: the card of the model that was evaluated, with its metrics by split and by group."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.dataset.card import lines_on_use
from pipeline.evaluate.tables import markdown_of, markdown_text


def evaluation_card(evaluation: dict[str, Any]) -> bytes:
    """The card. evaluation: as `evaluate` gives it."""
    model, data = str(evaluation["model"]["name"]), evaluation["dataset"]
    name = " ".join(str(data.get("name") or "unnamed data").split())
    task = {"type": "image-classification", "name": "emotion of a face in its context"}
    results = [
        {
            "task": task,
            "dataset": {"name": name, "type": name, "split": split},
            "metrics": [
                {"type": "accuracy", "value": metrics["top1_accuracy"]},
                {"type": "f1", "value": metrics["macro_f1"]},
            ],
        }
        for split, metrics in evaluation["splits"].items()
    ]
    head = {
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["emotion-recognition", "faces", model],
        "model-index": [{"name": model, "results": results}],
    }
    has_groups = any("groups" in metrics for metrics in evaluation["splits"].values())
    by_group = "stand below" if has_groups else "not known: give `--groups` a table of the clips"
    lines = [
        f"Checkpoint `{evaluation['checkpoint_sha256']}`, epoch {evaluation['epoch']}, trained on data whose manifest",
        f"has the sha256 `{evaluation['trained_on_manifest_sha256']}`; evaluated on {markdown_text(name)}, manifest",
        f"`{evaluation['manifest_sha256']}`. Metrics by groups of people: {by_group}.",
    ]
    title, _, tables = markdown_of(evaluation).partition("\n")
    text = "\n".join([title, "", *lines, tables.rstrip("\n"), *lines_on_use()])
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{text}\n".encode()
