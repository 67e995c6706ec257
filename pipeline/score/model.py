"""What a model is, as its checkpoint remembers it: data, date, accuracy, and from which probability on it decides.

It stands wherever labels begin: in summary.json, on the page and in the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.models.claims import model_classes
from pipeline.records.vocabulary import EMOTIONS

# Of a model that was trained before it was calibrated. At a probability of one half a calibrated guess is right half of
# the time.
ABSTAIN_BELOW = 0.5


# A model is weak whose accuracy, at the lower end of its 95 % interval, is no better than this, or than naming the most
# frequent emotion always: twice of what guessing gives.
WEAK_TIMES_GUESSING = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecord:
    """One model. Values that its checkpoint does not tell are None.

    Args:
        model: first 12 letters of the checkpoint's sha256, as in the folder `model=`.
        name: of the network.
        trained_at: when its weights were saved, ISO 8601, UTC.
        data: name of the data set that it learned from.
        synthetic: whether that was made by a program.
        num_examples, per_class: how many examples it learned from, in all and of each emotion.
        accuracy, num_validation: share of so many validation examples that it named right.
        ece: expected calibration error on them.
        abstain_below: a face, person or clip whose highest probability is below it is undecided.
        card: what its maker says of it, in a line.
        warnings: why its labels are not to be relied on, a line each.
        classes: what its labels are called, in their order.
        source, licence, files_sha256: of a model from outside, where its files are from, under what licence, and what
            they are.
    """

    model: str
    name: str
    trained_at: str | None
    data: str | None
    synthetic: bool | None
    num_examples: int | None
    per_class: Mapping[str, int] | None
    accuracy: float | None
    num_validation: int | None
    ece: float | None
    abstain_below: float
    card: str | None = None
    warnings: tuple[str, ...] = ()
    classes: tuple[str, ...] = EMOTIONS
    source: str | None = None
    licence: str | None = None
    files_sha256: str | None = None

    def facts(self) -> dict[str, Any]:
        """The record as it stands in summary.json."""
        facts = {**asdict(self), "warnings": list(self.warnings), "classes": list(self.classes)}
        return {**facts, "words": model_words(facts)}


def model_record(info: Mapping[str, Any], *, abstain_below: float | None = None) -> ModelRecord:
    """The record of a checkpoint.

    Args:
        info: of `read_checkpoint_info`, of any version.
        abstain_below: as the user asked; None: as the model's calibration says.
    """
    metrics, data = info.get("metrics") or {}, info.get("data") or {}
    accuracy, num_validation = metrics.get("top1_accuracy"), metrics.get("num_examples")
    classes = model_classes(info["config"])
    decided = _probability(metrics.get("abstain_below")) if abstain_below is None else abstain_below
    return ModelRecord(
        model=info["checkpoint_sha256"][:12],
        name=str(info["config"]["model"]["name"]),
        trained_at=info.get("trained_at"),
        data=data.get("name"),
        synthetic=data.get("synthetic"),
        num_examples=data.get("num_examples"),
        per_class=data.get("per_class"),
        accuracy=accuracy,
        num_validation=num_validation,
        ece=metrics.get("ece"),
        abstain_below=decided,
        card=info.get("card"),
        warnings=tuple(_warnings(metrics, data, num_classes=len(classes))),
        classes=classes,
        **{name: info.get(name) for name in ("source", "licence", "files_sha256")},
    )


def describe_model(record: ModelRecord) -> str:
    """The record in one line."""
    return f"model {record.model}: {'; '.join(record.facts()['words'])}"


def model_words(facts: Mapping[str, Any]) -> list[str]:
    """What `ModelRecord.facts` say, in words: network and date, data, accuracy, from where on it decides."""
    day = f", trained {facts['trained_at'][:10]}" if facts["trained_at"] else ", nobody noted when it was trained"
    if facts["data"] is None:
        learned = "nobody noted on which data"
    else:
        made = " (SYNTHETIC: made by a program)" if facts["synthetic"] else ""
        count = "" if facts["num_examples"] is None else f"{facts['num_examples']:,} examples of "
        learned = f"on {count}{facts['data']!r}{made}"
    if facts["accuracy"] is None:
        right = "its accuracy is not known"
    else:
        right = f"right on {_percent(facts['accuracy'])} of {facts['num_validation']:,} validation examples"
        right += "" if facts["ece"] is None else f", calibration error {facts['ece']:.2f}"
    decides = f"undecided below a probability of {facts['abstain_below']:.2f}"
    named = [] if tuple(facts["classes"]) == EMOTIONS else [f"labels are {', '.join(facts['classes'])}"]
    said = [facts["card"]] if facts.get("card") else []
    told = [facts.get(name) for name in ("source", "licence")]
    said += [f"from {told[0]}" + ("" if told[1] in (None, "not said") else f" ({told[1]})")] * (
        told[0] not in (None, "not said")
    )
    return [f"{facts['name']}{day}", learned, right, decides, *named, *said]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _probability(value: Any) -> float:
    is_one = isinstance(value, int | float) and 0 <= value <= 1
    return float(value) if is_one else ABSTAIN_BELOW


def _warnings(metrics: Mapping[str, Any], data: Mapping[str, Any], *, num_classes: int) -> list[str]:
    found = []
    if data.get("synthetic"):
        found.append(
            f"this model learned from {data['name']!r}, which a program made: its labels say nothing of real people"
        )
    accuracy, num_examples = metrics.get("top1_accuracy"), metrics.get("num_examples")
    if accuracy is None or not num_examples:
        found.append("nobody knows how good this model is: its checkpoint holds no accuracy; see jobs/evaluate.py")
        return found
    matrix = metrics.get("confusion_matrix") or [[0]]
    always = max(WEAK_TIMES_GUESSING / num_classes, max(map(sum, matrix)) / num_examples)
    if lowest_accuracy(accuracy, num_examples) <= always:
        found.append(
            f"this model is weak: right on {_percent(accuracy)} of {num_examples:,} validation examples; naming one"
            f" emotion always would be on {_percent(max(map(sum, matrix)) / num_examples)}"
        )
    return found


def lowest_accuracy(accuracy: float, num_examples: int) -> float:
    """The lower end of the 95 % interval of Wilson of a share of so many examples."""
    z2 = 1.96**2
    spread = math.sqrt(accuracy * (1 - accuracy) / num_examples + z2 / (4 * num_examples**2)) * 1.96
    return (accuracy + z2 / (2 * num_examples) - spread) / (1 + z2 / num_examples)
