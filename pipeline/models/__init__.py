"""The networks by name: `build_model("cahfw")` gives a module that is called as `model(face, context)`."""

from __future__ import annotations

from torch import nn

from pipeline.models.caer_net import CAERNetS, CAHFWNetWithoutRecalibration
from pipeline.models.cahfw import AttentionGain, CAHFWNet, RecalibrationScale
from pipeline.records import UsageError

MODELS: tuple[str, ...] = ("cahfw", "se-ca-aa", "se-af", "caer-net-s")


def build_model(
    name: str,
    *,
    attention_gain: AttentionGain = "area",
    recalibration_scale: RecalibrationScale = "sqrt",
    dropout: float = 0.5,
) -> nn.Module:
    """A new, randomly initialised network: `model(face, context)`, both `(B, 3, height, width)`, to logits `(B, 7)`.

    `name` is one of MODELS: `cahfw`; `se-ca-aa`, without element recalibration (`recalibration_scale` is then unused);
    `se-af` and `caer-net-s`, the same network, without cross-attention too. The options are CAHFWNet's.
    Raises UsageError for a name or an option that is not known.
    """
    if not 0.0 <= dropout < 1.0:
        raise UsageError(f"dropout {dropout} is not a share; give a number from 0 up to, not including, 1")
    match name:
        case "cahfw":
            return CAHFWNet(attention_gain=attention_gain, recalibration_scale=recalibration_scale, dropout=dropout)
        case "se-ca-aa":
            return CAHFWNetWithoutRecalibration(attention_gain=attention_gain, dropout=dropout)
        case "se-af" | "caer-net-s":
            return CAERNetS(attention_gain=attention_gain, dropout=dropout)
    raise UsageError(f"model {name!r} is not known; use one of {', '.join(MODELS)}")
