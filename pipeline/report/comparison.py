"""The page of a comparison: the paper's tables and figures with ours beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.records.vocabulary import EMOTIONS
from pipeline.report.charts import OURS, THEIRS, THIRD, bars, chart, confusion_table
from pipeline.report.paper import CAER_NET_S, CAHFW_NET, PAPER_TABLE_3, SE_AF, SE_CA_AA, SE_CA_ER_AA
from pipeline.report.parts import facts_list, page, section, table, text
from pipeline.report.pictures import image_of

# The paper's methods: pale off the shelf and full when fine-tuned, one hue a backbone; and its ablations.
ROW_COLOURS = dict(
    zip(
        PAPER_TABLE_3,
        ("#b3cde3", "#0072b2", "#fbd3a4", "#e69f00", "#b5e0d0", "#009e73", "#cc79a7", "#d55e00"),
        strict=True,
    )
) | {SE_AF: THEIRS, SE_CA_AA: THIRD, SE_CA_ER_AA: OURS}


def comparison_page(comparison: Mapping[str, Any], faces: Sequence[bytes], *, title: str) -> str:
    """The paper's tables and figures with ours; `comparison` and the faces of figure 1 as `compare.compare` gives."""
    networks: Sequence[Mapping[str, Any]] = comparison["networks"]
    ours_of = {network["table_2"]: network for network in networks if network["table_2"]}
    ablations = [network for network in networks if 10 in network["figures"]]
    confusions = [network for network in networks if 11 in network["figures"]]
    tables = (table(each["title"], each["columns"], each["rows"]) for each in comparison["tables"])
    missing = "<p>No run fills this yet; the command is under “Not trained yet”.</p>"
    return page(
        title,
        [
            section(
                "Tables",
                "<p>The paper's numbers are on the test set of CAER-S: ours compare only where the data is CAER-S.</p>",
                facts_list({"data": comparison["data"], "split": comparison["split"]}),
                *(f"<p><strong>Note:</strong> {text(warning)}.</p>" for warning in comparison["warnings"]),
                *tables,
            ),
            section(
                "Figure 1: faces as mixtures of emotions",
                "<p>What ResNet-50, trained on faces, says of one test face of each emotion: the one whose"
                " distribution is of median entropy. The paper's figure shows faces of its own.</p>",
                *(_mixture(face, picture) for face, picture in zip(comparison["figure_1"]["faces"], faces, strict=True))
                if comparison["figure_1"]
                else (missing,),
            ),
            section(
                "Figure 8: each emotion, by method",
                _accuracy_chart("the paper", PAPER_TABLE_3),
                _accuracy_chart("ours", {name: _percents(found) for name, found in ours_of.items()})
                if ours_of
                else missing,
            ),
            section(
                "Figure 10: each emotion, by ablation",
                "<p>The paper gives the numbers of its figure for SE + AF and SE + CA + ER + AA, in Table 3; those of"
                " SE + CA + AA are only in the picture.</p>",
                _accuracy_chart("the paper", {SE_AF: PAPER_TABLE_3[CAER_NET_S], SE_CA_ER_AA: PAPER_TABLE_3[CAHFW_NET]}),
                _accuracy_chart("ours", {net["table_4"]: _percents(net) for net in ablations})
                if ablations
                else missing,
            ),
            section(
                "Figure 11: confusion matrices",
                "<p>The paper's are a picture without numbers in its text, so ours stand alone.</p>",
                *(confusion_table(net["confusion_matrix"], split=f"test, {net['name']}") for net in confusions),
                "" if confusions else missing,
            ),
        ],
    )


def _percents(network: Mapping[str, Any]) -> list[float | None]:
    shares = [network["per_class_accuracy"][emotion] for emotion in EMOTIONS]
    return [None if share is None else 100 * share for share in shares]


def _accuracy_chart(whose: str, accuracies: Mapping[str, Sequence[float | None]]) -> str:
    """Accuracies of each emotion as bars; keys are rows of the paper's Tables 2 or 4."""
    return chart(
        [bars(EMOTIONS, values, name=name, colour=ROW_COLOURS[name]) for name, values in accuracies.items()],
        title=f"Accuracy of each emotion, {whose}",
        x="true emotion",
        y="percent",
    )


def _mixture(face: Mapping[str, Any], picture: bytes) -> str:
    where = f"clip {face['clip_id']}, frame {face['frame_index']}, {face['label']}"
    probabilities = [round(share, 4) for share in face["probabilities"].values()]
    return (
        f"<article><h3>{text(where)}</h3>"
        + image_of(picture, alt=f"Face of {where}")
        + chart(
            [bars(EMOTIONS, probabilities, name="probability", colour=OURS)],
            title=f"Probabilities of {where}",
            x="emotion",
            y="probability",
            share=True,
            heading=False,
        )
        + "</article>"
    )
