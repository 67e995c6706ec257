"""The page of a comparison: the paper's tables and figures with ours beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.charts import OURS, THEIRS, THIRD, Chart, ConfusionMatrix, bars
from pipeline.report.paper import CAER_NET_S, CAHFW_NET, PAPER_TABLE_3, SE_AF, SE_CA_AA, SE_CA_ER_AA
from pipeline.report.parts import Table
from pipeline.report.pictures import picture_of
from pipeline.report.templates import render
from pipeline.report.values import said

# The paper's methods: pale off the shelf and full when fine-tuned, one hue a backbone; and its ablations.
ROW_COLOURS = dict(
    zip(
        PAPER_TABLE_3,
        ("#b3cde3", "#0072b2", "#fbd3a4", "#e69f00", "#b5e0d0", "#009e73", "#cc79a7", "#d55e00"),
        strict=True,
    )
) | {SE_AF: THEIRS, SE_CA_AA: THIRD, SE_CA_ER_AA: OURS}

# Ours, in greys, so that they stand out from the paper's hues.
OUR_COLOURS = ("#000000", "#4d4d4d", "#7f7f7f", "#a6a6a6", "#c7c7c7")


def comparison_page(comparison: Mapping[str, Any], faces: Sequence[bytes], *, title: str) -> str:
    """The paper's tables and figures with ours; `comparison` and the faces of figure 1 as `compare.compare` gives."""
    networks: Sequence[Mapping[str, Any]] = comparison["networks"]
    classes = tuple(comparison.get("classes", EMOTIONS))
    papers = {SE_AF: PAPER_TABLE_3[CAER_NET_S], SE_CA_ER_AA: PAPER_TABLE_3[CAHFW_NET]}
    mixed = comparison["figure_1"]["faces"] if comparison["figure_1"] else ()
    return render(
        "comparison.html",
        title=title,
        lead=[_sentence(networks)],
        warnings=[],
        facts={"data": comparison["data"], "split": comparison["split"]},
        notes=[*comparison["notes"], *comparison["warnings"]],
        provenance={},
        tables=[Table(each["title"], each["columns"], each["rows"]) for each in comparison["tables"]],
        mixtures=[_mixture(face, picture) for face, picture in zip(mixed, faces, strict=bool(mixed))],
        methods=_beside("by method", PAPER_TABLE_3, classes, [net for net in networks if 8 in net["figures"]]),
        ablations=_beside("by ablation", papers, classes, [net for net in networks if 10 in net["figures"]]),
        confusions=[
            ConfusionMatrix(net["confusion_matrix"], f"test, {net['name']}", names=net.get("classes", EMOTIONS))
            for net in networks
            if 11 in net["figures"]
        ],
    )


def _sentence(networks: Sequence[Mapping[str, Any]]) -> str:
    if not networks:
        return "No run fills the paper's tables yet; the commands are in comparison.md."
    best = max(networks, key=lambda net: net["top1_accuracy"])
    return (
        f"{len(networks)} of our networks stand beside the paper's; the best, {best['name']}, names"
        f" {said(best['top1_accuracy'])} of the test examples right."
    )


def _percents(network: Mapping[str, Any], classes: Sequence[str]) -> list[float | None]:
    shares = [network["per_class_accuracy"].get(emotion) for emotion in classes]
    return [None if share is None else 100 * share for share in shares]


def _beside(
    what: str,
    paper: Mapping[str, Sequence[float]],
    classes: Sequence[str],
    networks: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The accuracies of each emotion as bars: the paper's rows, and in the same chart ours, each under its name."""
    traces = [bars(EMOTIONS, values, name=f"{name}, paper", colour=ROW_COLOURS[name]) for name, values in paper.items()]
    for network, colour in zip(networks, cycle(OUR_COLOURS), strict=False):
        traces.append(bars(classes, _percents(network, classes), name=f"{network['name']}, ours", colour=colour))
    chart = Chart(traces, f"Accuracy of each emotion, {what}", "true emotion", "percent")
    return {"chart": chart, "has_ours": bool(networks)}


def _mixture(face: Mapping[str, Any], picture: bytes) -> dict[str, Any]:
    where = f"clip {face['clip_id']}, frame {face['frame_index']}, {face['label']}"
    shares = [round(share, 4) for share in face["probabilities"].values()]
    traces = [bars(list(face["probabilities"]), shares, name="probability", colour=OURS)]
    title = f"Probabilities of {where}"
    return {
        "where": where,
        "picture": picture_of(picture, alt=f"Face of {where}"),
        "chart": Chart(traces, title, "emotion", "probability", share=True, heading=False),
    }
