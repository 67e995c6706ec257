"""What is written down of the network of FER2013: its card and the study's page, Markdown both."""

from __future__ import annotations

from typing import Any

from pipeline.records.vocabulary import EMOTIONS

ONE_LINE = "web faces of 2013, no context, not calibrated on your data"


def card_of(found: dict[str, Any]) -> str:
    """The model card that lies beside the weights."""
    return f"""# baseline

{ONE_LINE[0].upper()}{ONE_LINE[1:]}.

{_facts(found)}
- **Not for**: decisions about a person, medicine, hiring, policing; what somebody feels: it names what a face shows.
  Faces that are turned away, covered or under 40 px, children's, and those of groups that the web of 2013 seldom
  showed were not measured.

{_per_class(found)}
"""


def markdown(found: dict[str, Any]) -> str:
    """The page of the study."""
    counts = found["data"]["duplicates"]
    left_out = "\n".join(f"| {name.replace('_', ' ')} | {counts[name]} |" for name in counts if name != "files")
    curve = "\n".join(
        f"| {row['epoch']} | {row['loss']:.3f} | {_percent(row['validation_top1_accuracy'])}"
        f" | {row['seconds'] / 60:.1f} |"
        for row in found["history"]
    )
    return f"""# FER2013

{_facts(found)}

{_per_class(found)}

| pictures that are there more than once | count |
|---|---|
{left_out}

| epoch | loss, nats | PublicTest | minutes |
|---|---|---|---|
{curve}
"""


def _facts(found: dict[str, Any]) -> str:
    test, validation = found["test"], found["validation"]
    once = _percent(test["top1_accuracy_without_repeated"])
    return f"""- **What it is**: `face-resnet`, {found["parameters"]:,} parameters in half precision.
  It reads one face, grey, 48 px, and names one of seven expressions; the face and its mirror image are averaged.
- **Data**: FER2013's official training split (Goodfellow et al. 2013), a JPEG copy: {found["data"]["num_examples"]:,}
  faces that a search engine gave for words of emotion, without blank ones, doubles, and what the other splits have too.
  Chosen and calibrated on PublicTest, told on PrivateTest once. Its labels are noisy:
  people agree with 65 ± 5 % of them.
- **Licence**: the data is for research; use the weights for research too.
- **How good**: right on {_percent(test["top1_accuracy"])} of PrivateTest's {test["num_examples"]:,} faces ({once} where
  a picture that is there twice counts once; {_percent(_balanced(test))} balanced over classes), on
  {_percent(validation["top1_accuracy"])} of PublicTest's. Expected calibration error on PrivateTest
  {test["ece"]:.3f} at the temperature {found["temperature"]:.2f} that PublicTest gave,
  {test["ece_without_temperature"]:.3f} without."""


def _per_class(found: dict[str, Any]) -> str:
    test = found["test"]
    counts = [sum(row) for row in test["confusion_matrix"]]
    rows = "\n".join(
        f"| {emotion} | {count} | {_percent(test['per_class_accuracy'][emotion])} |"
        for emotion, count in zip(EMOTIONS, counts, strict=True)
    )
    return f"| class | faces of PrivateTest | right |\n|---|---|---|\n{rows}"


def _balanced(metrics: dict[str, Any]) -> float:
    accuracies = [value for value in metrics["per_class_accuracy"].values() if value is not None]
    return sum(accuracies) / len(accuracies)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
