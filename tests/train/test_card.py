"""The model card of a run: what the hub reads of it, and what a person does."""

import yaml

from pipeline.train.card import run_card


def test_a_card_has_data_figures_limits_and_uses():
    summary = {"model": "cahfw", "epochs": 3, "best_epoch": 2, "manifest_sha256": "ab" * 32}
    data = {"name": "a: b", "synthetic": True, "per_class": {"Anger": 7}}
    best = {"top1_accuracy": 0.5, "macro_f1": 0.25, "per_class_accuracy": {"Anger": 1.0, "Sad": None}}
    _, head, text = run_card(summary, {"data": data}, best).decode().split("---\n", 2)
    (model,) = yaml.safe_load(head)["model-index"]
    (result,) = model["results"]
    assert result["dataset"] == {"name": "a: b", "type": "a: b", "split": "validation"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.5}, {"type": "f1", "value": 0.25}]
    assert "ab" * 32 in text
    assert "made by a program" in text
    assert "| Anger | 7 | 100.0 % |" in text
    assert "| Sad | not known | not known |" in text
    for title in ("## Limits", "## Intended use", "## Forbidden use", "By groups of people: not known"):
        assert title in text


def test_a_card_of_a_run_of_before_says_what_is_not_known():
    summary = {"model": "cahfw", "epochs": 3, "best_epoch": 2, "manifest_sha256": "ab" * 32}
    head, text = run_card(summary, {}, {}).decode().removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(head)["model-index"][0]["results"][0]["metrics"] == []
    assert "unnamed data (nobody said whether real)" in text
