"""What the paper reports on the test set of CAER-S, accuracies in percent: data only, to print beside ours.

Zhou et al., IJERPH 2023, 20, 1400. Its figures 8 and 10 draw per-class accuracies; figure 11 (two confusion matrices)
is a picture whose numbers are not in the text, and so not here. CAHFW-Net's 83.76 is exactly the mean of its column of
Table 3: the paper's accuracy is that of classes of equal size, or an average over classes.
"""

from __future__ import annotations

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

# The row of Tables 2 and 3, and the row of Table 4, that each of our models answers; None where the table has none.
PAPER_ROWS: dict[str, tuple[str | None, str | None]] = {
    "cahfw": (CAHFW_NET, SE_CA_ER_AA),
    "se-ca-aa": (None, SE_CA_AA),
    "se-af": (CAER_NET_S, SE_AF),
    "caer-net-s": (CAER_NET_S, SE_AF),
}
