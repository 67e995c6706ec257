"""What the paper reports on the test set of CAER-S, accuracies in percent, and which network of ours answers which.

Zhou et al., IJERPH 2023, 20, 1400. Its figures 8 and 10 draw per-class accuracies; figure 11 (two confusion matrices)
is a picture whose numbers are not in the text, and so not here. CAHFW-Net's 83.76 is exactly the mean of its column of
Table 3: the paper's accuracy is that of classes of equal size, or an average over classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.records.vocabulary import BACKBONES

CAHFW_NET = "CAHFW-Net"


CAER_NET_S = "CAER-Net-S"


SE_AF = "SE + AF"


SE_CA_AA = "SE + CA + AA"


SE_CA_ER_AA = "SE + CA + ER + AA"


# Top-1 accuracy of each method.
PAPER_TABLE_2: dict[str, float] = {
    "Off-the-shelf AlexNet": 47.36,
    "Off-the-shelf VGGNet": 49.89,
    "Off-the-shelf ResNet": 57.33,
    "Fine-tuned AlexNet": 61.73,
    "Fine-tuned VGGNet": 64.85,
    "Fine-tuned ResNet": 68.46,
    CAER_NET_S: 73.51,
    CAHFW_NET: 83.76,
}


# Accuracy on each emotion, in the order Anger, Disgust, Fear, Happy, Neutral, Sad, Surprise.
PAPER_TABLE_3: dict[str, tuple[float, ...]] = {
    "Off-the-shelf AlexNet": (59.92, 57.01, 54.62, 27.79, 34.08, 49.12, 48.48),
    "Fine-tuned AlexNet": (66.49, 74.59, 71.20, 47.74, 42.71, 64.58, 64.21),
    "Off-the-shelf VGGNet": (60.34, 61.40, 57.59, 30.58, 34.34, 51.71, 52.72),
    "Fine-tuned VGGNet": (68.34, 78.08, 75.70, 51.77, 47.16, 68.76, 63.57),
    "Off-the-shelf ResNet": (66.80, 68.29, 59.07, 47.11, 39.74, 61.19, 58.54),
    "Fine-tuned ResNet": (79.14, 75.28, 78.83, 56.21, 50.39, 72.79, 66.01),
    CAER_NET_S: (77.93, 83.49, 86.40, 63.15, 59.39, 74.11, 69.51),
    CAHFW_NET: (82.73, 93.07, 94.61, 80.50, 71.74, 85.21, 78.47),
}


# Top-1 accuracy of each ablation.
PAPER_TABLE_4: dict[str, float] = {SE_AF: 73.51, SE_CA_AA: 80.26, SE_CA_ER_AA: 83.76}


# How the paper's networks were trained; what it leaves unstated (from weight_decay on) as our defaults read it. A run
# that is older than a setting did so.
PAPER_TRAINING: dict[str, Any] = {
    "lr": 0.01,
    "schedule": "cosine",
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "flooding": 0.05,
    "dropout": 0.5,
    "weight_decay": 0.0,
    "batch_size": 128,
    "epochs": 50,
    "early_stop": None,
    "init": None,
    "flip": True,
    "augment_face": [],
    "flip_at_test": False,
    "mixup": 0.0,
    "label_smoothing": 0.0,
    "class_weights": "none",
    "warmup_steps": 0,
    "clip_grad_norm": None,
    "accumulate": 1,
    "ema": None,
}
PAPER_PX = 224


@dataclass(frozen=True, slots=True)
class PaperNetwork:
    """A network of the paper: the flags of jobs/train.py that train ours, and the rows and figures that it answers."""

    model: str
    pretrained: str
    table_2: str | None
    """Its row of Table 2 and its column of Table 3; None where they have none."""
    table_4: str | None
    figures: tuple[int, ...]


PAPER_NETWORKS: tuple[PaperNetwork, ...] = (
    PaperNetwork("alexnet", "frozen", "Off-the-shelf AlexNet", None, (8,)),
    PaperNetwork("alexnet", "finetune", "Fine-tuned AlexNet", None, (8,)),
    PaperNetwork("vgg16", "frozen", "Off-the-shelf VGGNet", None, (8,)),
    PaperNetwork("vgg16", "finetune", "Fine-tuned VGGNet", None, (8,)),
    PaperNetwork("resnet50", "frozen", "Off-the-shelf ResNet", None, (8,)),
    PaperNetwork("resnet50", "finetune", "Fine-tuned ResNet", None, (1, 8)),
    PaperNetwork("se-af", "none", CAER_NET_S, SE_AF, (8, 10)),
    PaperNetwork("se-ca-aa", "none", None, SE_CA_AA, (10, 11)),
    PaperNetwork("cahfw", "none", CAHFW_NET, SE_CA_ER_AA, (8, 10, 11)),
)


def network_of(config: Mapping[str, Any]) -> dict[str, str]:
    """What tells one network from another in a checkpoint's config: model, input, pretrained, encoder and readings."""
    model, options = config["model"]["name"], config["model"]["options"]
    return {
        # Before there was a pooled norm, caer-net-s was another name of se-af.
        "model": "se-af" if model == "caer-net-s" and "pooled_norm" not in options else model,
        "input": options.get("reads") or ("face" if model in BACKBONES else "pair"),
        "pretrained": config["training"].get("pretrained", "none"),
        "attention_gain": options.get("attention_gain", "area"),
        "recalibration_scale": options.get("recalibration_scale", "sqrt"),
        "pooled_norm": options.get("pooled_norm", "none"),
        "encoder": options.get("encoder", "paper"),
    }


def answered_by(network: Mapping[str, str]) -> PaperNetwork | None:
    """The paper's network that one of ours answers; None for one that the paper does not have."""
    return next((paper for paper in PAPER_NETWORKS if network == asked_for(paper)), None)


def drawn_as(network: Mapping[str, str]) -> PaperNetwork | None:
    """The paper's network in whose figures one of ours is drawn, whatever its readings of the equations."""
    names = ("model", "input", "pretrained", "encoder")
    return next(
        (each for each in PAPER_NETWORKS if all(network[name] == asked_for(each)[name] for name in names)), None
    )


def asked_for(paper: PaperNetwork) -> dict[str, str]:
    """Our network that answers one of the paper's, as `network_of` says it."""
    options = {"reads": None, "attention_gain": "area", "recalibration_scale": "sqrt"}
    return network_of(
        {"model": {"name": paper.model, "options": options}, "training": {"pretrained": paper.pretrained}}
    )


def is_caer_s(data: Mapping[str, Any]) -> bool:
    """Whether a data set, as its description names it, is the paper's."""
    return not data.get("synthetic") and str(data.get("name", "")).lower().replace("_", "-").startswith("caer-s")


def differences(config: Mapping[str, Any], *, dataset: Mapping[str, Any]) -> list[str]:
    """What a run did otherwise than the paper, in words: the data that it is measured on, sizes and training.

    config: of a checkpoint. dataset: the data's description. Its network is `answered_by`'s to tell.
    """
    return [*data_differences(config, dataset=dataset), *training_differences(config)]


def data_differences(config: Mapping[str, Any], *, dataset: Mapping[str, Any]) -> list[str]:
    """The part of `differences` that no flag of a training mends: the data, and the sizes of its images."""
    found = []
    if not is_caer_s(dataset):
        name = dataset.get("name") or "data without a name"
        found.append(
            f"made data {name}" if dataset.get("synthetic") else f"data {name}, which is not CAER-S by its name"
        )
    model = config["model"]
    if model["name"] != "caer-net-s":  # which has sizes of its own
        sizes = {name: model.get(name, PAPER_PX) for name in ("face_px", "context_px")}
        if set(sizes.values()) - {PAPER_PX}:
            told = "px and ".join(map(str, dict.fromkeys(sizes.values())))
            found.append(f"{told} px (paper {PAPER_PX})")
    return found


def training_differences(config: Mapping[str, Any]) -> list[str]:
    """The part of `differences` that is the training's."""
    found, training = [], config["training"]
    crop = config["model"].get("context_crop", "none")
    if crop != "none" and config["model"]["name"] != "caer-net-s":
        found.append(f"context_crop {crop}")
    for name, paper in PAPER_TRAINING.items():
        ours = training.get(name, paper)
        if (list(ours) if isinstance(ours, list | tuple) else ours) != paper:
            found.append(f"{name} {_shown(ours)} (paper {_shown(paper)})")
    return found


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)
