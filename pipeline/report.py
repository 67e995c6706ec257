"""Pages that people look at: plain data comes in, one self-contained HTML string goes out. Pure.

A page asks the network for nothing (its content security policy forbids it), follows the reader's light or dark
setting, and says every chart in a table too. Charts are Plotly's, whose script (4.8 MB) is inlined once and draws a
chart when it comes into view. Everything that was named outside (paths, reasons, errors) is escaped.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from plotly.offline import get_plotlyjs

from pipeline.paper import CAER_NET_S, CAHFW_NET, PAPER_TABLE_2, PAPER_TABLE_3, SE_AF, SE_CA_AA, SE_CA_ER_AA
from pipeline.records import EMOTIONS, Example, Outcome, State

MOST_PAIRS = 60
MOST_ROWS = 300
MOST_TIMELINES = 40
MOST_POINTS = 300
THUMBNAIL_PX = 112

CAVEAT = "Labels and probabilities are a model's guess from pictures. They do not say what a person felt."
NONE = "–"

# Okabe and Ito's palette, which colour-blind readers tell apart, with Neutral in grey; dashes say the same again.
COLOURS = dict(
    zip(EMOTIONS, ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#8a8a8a", "#0072b2", "#56b4e9"), strict=True)
)
DASHES = dict(zip(EMOTIONS, ("solid", "dash", "dot", "solid", "solid", "dashdot", "dash"), strict=True))
OURS, THEIRS, THIRD = "#0072b2", "#e69f00", "#009e73"
# The paper's methods: pale off the shelf and full when fine-tuned, one hue a backbone; and its ablations.
ROW_COLOURS = dict(
    zip(
        PAPER_TABLE_3,
        ("#b3cde3", "#0072b2", "#fbd3a4", "#e69f00", "#b5e0d0", "#009e73", "#cc79a7", "#d55e00"),
        strict=True,
    )
) | {SE_AF: THEIRS, SE_CA_AA: THIRD, SE_CA_ER_AA: OURS}

Cell = str | int | float | None
T = TypeVar("T")


def preprocess_page(
    summary: Mapping[str, Any], outcomes: Sequence[Outcome], examples: Sequence[Example], *, title: str
) -> str:
    """What a preprocessing run made: states, what is not done and why, a contact sheet, histograms, outcomes.

    summary: as in summary.json. examples: those to show; at most 60 are, spread over what is given.
    """
    paths = {outcome.clip_id: outcome.path for outcome in outcomes}
    shown = _spread(examples, MOST_PAIRS)
    rates = [outcome.num_examples / outcome.num_frames for outcome in outcomes if outcome.num_frames]
    sides = [math.sqrt(example.box.area) for example in examples]
    return _page(
        title,
        [
            _run_section(summary, outcomes),
            _section(
                "Faces and contexts",
                _note(len(shown), len(examples), "of the examples read for this page"),
                '<ul class="sheet">',
                *(_pair(example, paths.get(example.clip_id, example.clip_id)) for example in shown),
                "</ul>",
            ),
            _section(
                "Histograms",
                _histogram(rates, title="Faces kept per sampled frame, mean of each clip", unit="faces a frame"),
                _histogram(sides, title="Box size of the examples read for this page", unit="px, root of the area"),
            ),
            _not_done_section(outcomes),
            _outcomes_section(outcomes),
        ],
    )


def training_page(summary: Mapping[str, Any], metrics_rows: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """A training run: its summary, and curves over the epochs, from rows as in metrics.csv (numbers or their text)."""
    rows = [{name: _number(value) for name, value in row.items()} for row in metrics_rows]
    epochs = [row["epoch"] for row in rows]

    def curve(name: str, label: str, colour: str, dash: str = "solid") -> dict[str, Any]:
        return _line(epochs, [row.get(name) for row in rows], name=label, colour=colour, dash=dash)

    names = {
        "epoch": "epoch",
        "train_loss": "train loss",
        "validation_loss": "validation loss",
        "validation_top1_accuracy": "top-1",
        "validation_macro_f1": "macro-F1",
        "lr": "learning rate at its end",
        "train_examples_per_second": "examples/s",
    }
    classes = [(emotion, f"validation_accuracy_{emotion}") for emotion in EMOTIONS]
    return _page(
        title,
        [
            _section("Run", _facts(_flat(summary))),
            _section(
                "Curves",
                _chart(
                    [
                        curve("train_loss", "train", OURS),
                        curve("validation_loss", "validation", THEIRS, "dash"),
                    ],
                    title="Loss by epoch",
                    x="epoch",
                    y="loss, nats",
                ),
                _chart(
                    [
                        curve("validation_top1_accuracy", "top-1", OURS),
                        curve("validation_macro_f1", "macro-F1", THEIRS, "dash"),
                    ],
                    title="Accuracy on the validation split by epoch",
                    x="epoch",
                    y="share",
                    share=True,
                ),
                _chart(
                    [curve(name, emotion, COLOURS[emotion], DASHES[emotion]) for emotion, name in classes],
                    title="Accuracy of each emotion on the validation split by epoch",
                    x="epoch",
                    y="share",
                    share=True,
                ),
            ),
            _section(
                "Epochs",
                _table(
                    "One row an epoch; the last columns are accuracies of each emotion on the validation split",
                    [*names.values(), *EMOTIONS],
                    [
                        [
                            row["epoch"],
                            *(_short(row.get(name)) for name in (*list(names)[1:], *(n for _, n in classes))),
                        ]
                        for row in rows
                    ],
                ),
            ),
        ],
    )


def evaluation_page(evaluation: Mapping[str, Any], *, title: str) -> str:
    """A checkpoint's metrics on each split, beside the paper's; `evaluation` is what `evaluate.evaluate` gives."""
    splits: Mapping[str, Mapping[str, Any]] = evaluation["splits"]
    facts = {name: value for name, value in evaluation.items() if name != "splits"}
    top1 = [[method, f"{accuracy:.2f}"] for method, accuracy in PAPER_TABLE_2.items()]
    top1 += [[f"ours, {split}", _percent(metrics["top1_accuracy"])] for split, metrics in splits.items()]
    return _page(
        title,
        [
            _section("Checkpoint and data", _facts(_flat(facts))),
            *(_split_section(split, metrics) for split, metrics in splits.items()),
            _section(
                "Beside the paper",
                "<p>The paper's numbers are on the test set of CAER-S: ours compare only where the data is CAER-S.</p>",
                _table("Top-1 accuracy, percent (paper's Table 2)", ["method", "top-1"], top1),
            ),
        ],
    )


def comparison_page(comparison: Mapping[str, Any], faces: Sequence[bytes], *, title: str) -> str:
    """The paper's tables and figures with ours; `comparison` and the faces of figure 1 as `compare.compare` gives."""
    networks: Sequence[Mapping[str, Any]] = comparison["networks"]
    ours_of = {network["table_2"]: network for network in networks if network["table_2"]}
    ablations = [network for network in networks if 10 in network["figures"]]
    confusions = [network for network in networks if 11 in network["figures"]]
    tables = (_table(table["title"], table["columns"], table["rows"]) for table in comparison["tables"])
    missing = "<p>No run fills this yet; the command is under “Not trained yet”.</p>"
    return _page(
        title,
        [
            _section(
                "Tables",
                "<p>The paper's numbers are on the test set of CAER-S: ours compare only where the data is CAER-S.</p>",
                _facts({"data": comparison["data"], "split": comparison["split"]}),
                *(f"<p><strong>Note:</strong> {_text(warning)}.</p>" for warning in comparison["warnings"]),
                *tables,
            ),
            _section(
                "Figure 1: faces as mixtures of emotions",
                "<p>What ResNet-50, trained on faces, says of one test face of each emotion: the one whose"
                " distribution is of median entropy. The paper's figure shows faces of its own.</p>",
                *(_mixture(face, picture) for face, picture in zip(comparison["figure_1"]["faces"], faces, strict=True))
                if comparison["figure_1"]
                else (missing,),
            ),
            _section(
                "Figure 8: each emotion, by method",
                _accuracy_chart("the paper", PAPER_TABLE_3),
                _accuracy_chart("ours", {name: _percents(found) for name, found in ours_of.items()})
                if ours_of
                else missing,
            ),
            _section(
                "Figure 10: each emotion, by ablation",
                "<p>The paper gives the numbers of its figure for SE + AF and SE + CA + ER + AA, in Table 3; those of"
                " SE + CA + AA are only in the picture.</p>",
                _accuracy_chart("the paper", {SE_AF: PAPER_TABLE_3[CAER_NET_S], SE_CA_ER_AA: PAPER_TABLE_3[CAHFW_NET]}),
                _accuracy_chart("ours", {net["table_4"]: _percents(net) for net in ablations})
                if ablations
                else missing,
            ),
            _section(
                "Figure 11: confusion matrices",
                "<p>The paper's are a picture without numbers in its text, so ours stand alone.</p>",
                *(_confusion_table(net["confusion_matrix"], split=f"test, {net['name']}") for net in confusions),
                "" if confusions else missing,
            ),
        ],
    )


def _percents(network: Mapping[str, Any]) -> list[float | None]:
    shares = [network["per_class_accuracy"][emotion] for emotion in EMOTIONS]
    return [None if share is None else 100 * share for share in shares]


def _accuracy_chart(whose: str, accuracies: Mapping[str, Sequence[float | None]]) -> str:
    """Accuracies of each emotion as bars; keys are rows of the paper's Tables 2 or 4."""
    return _chart(
        [_bars(EMOTIONS, values, name=name, colour=ROW_COLOURS[name]) for name, values in accuracies.items()],
        title=f"Accuracy of each emotion, {whose}",
        x="true emotion",
        y="percent",
    )


def _mixture(face: Mapping[str, Any], picture: bytes) -> str:
    where = f"clip {face['clip_id']}, frame {face['frame_index']}, {face['label']}"
    probabilities = [round(share, 4) for share in face["probabilities"].values()]
    return (
        f"<article><h3>{_text(where)}</h3>"
        + _image(picture, alt=f"Face of {where}")
        + _chart(
            [_bars(EMOTIONS, probabilities, name="probability", colour=OURS)],
            title=f"Probabilities of {where}",
            x="emotion",
            y="probability",
            share=True,
            heading=False,
        )
        + "</article>"
    )


def score_page(
    summary: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    predictions: Iterable[Mapping[str, Any]],
    clip_rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    thumbnails: Mapping[str, bytes] | None = None,
) -> str:
    """A scored collection: states, totals by emotion, and for each of up to 40 clips its probabilities over time.

    predictions: rows of PREDICTION_SCHEMA. clip_rows: rows of CLIP_LABEL_SCHEMA. thumbnails: JPEG or PNG bytes by
    clip_id, for the clips that have one.
    """
    labelled = sorted((row for row in clip_rows if row["emotion"]), key=lambda row: (row["path"], row["clip_id"]))
    shown = _spread(labelled, MOST_TIMELINES)
    faces: dict[str, list[Mapping[str, Any]]] = {row["clip_id"]: [] for row in shown}
    for row in predictions:
        if row["clip_id"] in faces:
            faces[row["clip_id"]].append(row)
    totals = Counter(row["emotion"] for row in labelled)
    return _page(
        title,
        [
            _run_section(summary, outcomes),
            _section(
                "Labels",
                f"<p>{CAVEAT}</p>",
                _chart(
                    [_bars(list(EMOTIONS), [totals[emotion] for emotion in EMOTIONS], name="clips", colour=OURS)],
                    title="Clips by label",
                    x="label",
                    y="clips",
                ),
            ),
            _section(
                "Clips over time",
                _note(len(shown), len(labelled), "of the labelled clips"),
                *(_timeline(row, faces[row["clip_id"]], (thumbnails or {}).get(row["clip_id"])) for row in shown),
            ),
            _not_done_section(outcomes),
            _outcomes_section(outcomes),
        ],
    )


def _run_section(summary: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    counts = Counter(outcome.state for outcome in outcomes)
    return _section(
        "Run",
        _table(
            f"How the {len(outcomes):,} inputs ended",
            ["state", "clips", "share"],
            [
                [str(state), counts[state], f"{_percent(counts[state] / len(outcomes) if outcomes else None)} %"]
                for state in State
            ],
        ),
        _facts({name: value for name, value in summary.items() if isinstance(value, str | int | float)}),
    )


def _not_done_section(outcomes: Sequence[Outcome]) -> str:
    not_done = [outcome for outcome in outcomes if outcome.state is not State.DONE]
    if not not_done:
        return _section("Not done", "<p>Every clip is done.</p>")
    reasons = Counter((str(outcome.state), outcome.reason) for outcome in not_done)
    # What somebody may have to act on comes first.
    urgent = sorted(not_done, key=lambda outcome: (outcome.state is State.NO_FACE, outcome.reason or "", outcome.path))
    shown = urgent[:MOST_ROWS]
    return _section(
        "Not done",
        _table(
            "Reasons",
            ["state", "reason", "clips"],
            [[state, reason, count] for (state, reason), count in sorted(reasons.items(), key=lambda item: -item[1])],
        ),
        _note(len(shown), len(not_done), "of the clips that are not done"),
        _table(
            "Clips that are not done",
            ["path", "state", "reason", "stage", "tries", "detail"],
            [[o.path, str(o.state), o.reason, o.stage, o.attempts, o.detail] for o in shown],
        ),
    )


def _outcomes_section(outcomes: Sequence[Outcome]) -> str:
    shown = _spread(outcomes, MOST_ROWS)
    return _section(
        "Outcomes",
        _note(len(shown), len(outcomes), "of the clips; all are in outcomes.jsonl"),
        "<details><summary>Table of outcomes</summary>",
        _table(
            "One row a clip",
            [
                "path",
                "state",
                "frames",
                "without a face",
                "examples",
                "clamped",
                "tries",
                "seconds",
                "decoder",
                "whole",
            ],
            [
                [
                    *(o.path, str(o.state), o.num_frames, o.num_faceless_frames, o.num_examples, o.num_boxes_clamped),
                    *(o.attempts, f"{o.seconds:.2f}", o.decoder, _short(o.decode_integrity)),
                ]
                for o in shown
            ],
        ),
        "</details>",
    )


def _split_section(split: str, metrics: Mapping[str, Any]) -> str:
    clips = metrics.get("clip_level")
    facts = {
        "examples": metrics["num_examples"],
        "top-1, percent": _percent(metrics["top1_accuracy"]),
        "macro-F1, percent": _percent(metrics["macro_f1"]),
    }
    if clips:
        facts |= {
            "clips": clips["num_clips"],
            "top-1 of clips, percent": _percent(clips["top1_accuracy"]),
            "macro-F1 of clips, percent": _percent(clips["macro_f1"]),
        }
    ours = [metrics["per_class_accuracy"][emotion] for emotion in EMOTIONS]
    columns = {"ours": [None if share is None else 100 * share for share in ours]}
    columns |= {f"{name}, paper": list(PAPER_TABLE_3[name]) for name in (CAHFW_NET, CAER_NET_S)}
    return _section(
        f"Split {split}",
        _facts(facts),
        _chart(
            [
                _bars(list(EMOTIONS), values, name=name, colour=colour)
                for (name, values), colour in zip(columns.items(), (OURS, THEIRS, THIRD), strict=True)
            ],
            title=f"Accuracy of each emotion on {split}, beside the paper's Table 3",
            x="true emotion",
            y="percent",
        ),
        _confusion_table(metrics["confusion_matrix"], split=split),
    )


def _confusion_table(matrix: Sequence[Sequence[int]], *, split: str) -> str:
    lines = []
    for emotion, counts in zip(EMOTIONS, matrix, strict=True):
        total = sum(counts)
        cells = []
        for predicted, count in zip(EMOTIONS, counts, strict=True):
            share = count / total if total else 0.0
            right = ' class="right"' if predicted == emotion else ""
            cells.append(f'<td{right} style="--share:{share:.3f}">{count:,}<br><small>{share:.0%}</small></td>')
        lines.append(f'<tr><th scope="row">{emotion}</th>{"".join(cells)}</tr>')
    caption = f"Confusion matrix on {split}: rows true, columns predicted; examples, and their share of the row"
    return _scrolled(
        f'<table class="confusion"><caption>{_text(caption)}</caption><thead><tr><th scope="col">true</th>'
        + "".join(f'<th scope="col">{emotion}</th>' for emotion in EMOTIONS)
        + f"</tr></thead><tbody>{''.join(lines)}</tbody></table>",
        label=caption,
    )


def _pair(example: Example, path: str) -> str:
    label = f" · {example.label}" if example.label else ""
    where = f"{path}, {example.pts_seconds:.2f} s"
    return (
        "<li><figure>"
        + _image(example.face_jpeg, alt=f"Face of {where}")
        + _image(example.context_jpeg, alt=f"Context of {where}, the face zeroed")
        + f"<figcaption>{_text(path)}<br>{example.pts_seconds:.2f} s{_text(label)}</figcaption></figure></li>"
    )


def _timeline(clip: Mapping[str, Any], faces: Sequence[Mapping[str, Any]], thumbnail: bytes | None) -> str:
    """One clip: its label, and at each time the mean over the faces of that frame."""
    moments: defaultdict[float, list[list[float]]] = defaultdict(list)
    for face in faces:
        moments[face["pts_seconds"]].append([face["probabilities"][emotion] for emotion in EMOTIONS])
    times = _spread(sorted(moments), MOST_POINTS)
    means = [np.mean(moments[time], axis=0) for time in times]
    share = clip["probabilities"][clip["emotion"]]
    return (
        f'<article><h3>{_text(clip["path"])}</h3><p class="label">{_text(clip["emotion"])}, {share:.0%}; '
        f"{clip['num_faces']:,} faces in {clip['num_frames']:,} frames</p>"
        + (_image(thumbnail, alt=f"A frame of {clip['path']}") if thumbnail else "")
        + _chart(
            [
                _line(
                    times,
                    [round(float(mean[index]), 4) for mean in means],
                    name=emotion,
                    colour=COLOURS[emotion],
                    dash=DASHES[emotion],
                )
                for index, emotion in enumerate(EMOTIONS)
            ],
            title=f"Probabilities over time of {clip['path']}",
            x="seconds",
            y="probability",
            share=True,
            heading=False,
        )
        + "</article>"
    )


def _histogram(values: Sequence[float], *, title: str, unit: str) -> str:
    if not values:
        return f"<p>{_text(title)}: there is nothing to count.</p>"
    counts, edges = np.histogram(values, bins=min(20, max(5, math.isqrt(len(values)))))
    names = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    return _chart([_bars(names, counts.tolist(), name="count", colour=OURS)], title=title, x=unit, y="count")


def _line(x: Sequence[Any], y: Sequence[Any], *, name: str, colour: str, dash: str = "solid") -> dict[str, Any]:
    style = {"line": {"color": colour, "dash": dash, "width": 2}, "marker": {"size": 5}}
    return {"type": "scatter", "mode": "lines+markers", "x": list(x), "y": list(y), "name": name, **style}


def _bars(x: Sequence[str], y: Sequence[Any], *, name: str, colour: str) -> dict[str, Any]:
    return {"type": "bar", "x": list(x), "y": list(y), "name": name, "marker": {"color": colour}}


def _chart(
    traces: list[dict[str, Any]], *, title: str, x: str, y: str, share: bool = False, heading: bool = True
) -> str:
    """A chart, and its numbers in a table under it. share: the y axis goes from 0 to 1."""
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": {"title": {"text": y}, "automargin": True, "rangemode": "tozero"},
        "showlegend": len(traces) > 1,
        "legend": {"orientation": "h", "y": -0.3},
        "margin": {"l": 50, "r": 10, "t": 10, "b": 40},
        "hovermode": "x unified",
    }
    if share:
        layout["yaxis"]["range"] = [0, 1.02]
    # "<" would let a name close the script element.
    data = json.dumps({"data": traces, "layout": layout}, allow_nan=False).replace("<", "\\u003c")
    rows = [
        [_short(value), *(_short(trace["y"][index]) for trace in traces)] for index, value in enumerate(traces[0]["x"])
    ]
    return (
        f'<figure class="plot">{f"<figcaption>{_text(title)}</figcaption>" if heading else ""}'
        f'<div class="chart" role="img" aria-label="{_text(title)}; the numbers are in the table below"></div>'
        f'<script type="application/json">{data}</script>'
        "<details><summary>Numbers</summary>"
        + _table(title, [x, *(trace["name"] for trace in traces)], rows)
        + "</details></figure>"
    )


def _image(data: bytes, *, alt: str) -> str:
    """A thumbnail: 60 pairs at 224 px and quality 95 would be 5 MB, at 112 px and 80 they are 0.7 MB."""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    source = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img src="data:image/jpeg;base64,{source}" alt="{_text(alt)}" width="{small.width}" height="{small.height}"'
        ' loading="lazy">'
    )


def _table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table whose first column names the row; numbers, and text that is one, stand to the right."""
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in columns)
    body = []
    for first, *others in rows:
        cells = "".join(f"<td{_aligned(cell)}>{_text(cell)}</td>" for cell in others)
        body.append(f'<tr><th scope="row">{_text(first)}</th>{cells}</tr>')
    return _scrolled(
        f"<table><caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>",
        label=caption,
    )


def _aligned(cell: Cell) -> str:
    return ' class="number"' if isinstance(_number(cell), int | float) else ""


def _scrolled(table: str, *, label: str) -> str:
    """A wide table scrolls by itself, with the keyboard too, and the page stays as wide as the phone."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(label)}">{table}</div>'


def _facts(facts: Mapping[str, Any]) -> str:
    items = (
        f"<div><dt>{_text(name.replace('_', ' '))}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items()
    )
    return f"<dl>{''.join(items)}</dl>"


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{prefix}{name} ") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _section(heading: str, *parts: str) -> str:
    return f"<section><h2>{_text(heading)}</h2>{''.join(parts)}</section>"


def _note(num_shown: int, num_all: int, what: str) -> str:
    return f"<p>{num_shown:,} of {num_all:,} {what}.</p>" if num_shown < num_all else f"<p>All {num_all:,} {what}.</p>"


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly spread and in their order."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]


def _number(value: Any) -> Any:
    """A number out of text; None for one that is not finite; anything else as it is."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
        value = int(value) if value.is_integer() else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> Cell:
    return f"{value:.4g}" if isinstance(value, float) else value


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.2f}"


def _text(value: Any) -> str:
    """Escaped for HTML. Unprintable characters (controls, reversals of direction, broken UTF-8) show as \\u codes."""
    if value is None or value == "":
        return NONE
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    visible = (char if char.isprintable() else f"\\u{ord(char):04x}" for char in str(value))
    return html.escape("".join(visible))


def _page(title: str, sections: Sequence[str]) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{_text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header><h1>{_text(title)}</h1></header>
<main id="main">
{"".join(sections)}
</main>
<footer><p>{CAVEAT}</p></footer>
<script>{get_plotlyjs()}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


STYLE = """
:root { --text: #1b1f24; --dim: #59616b; --page: #ffffff; --panel: #f4f6f8; --line: #d0d6dc; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8eaed; --dim: #a4adb8; --page: #14171a; --panel: #1f2429; --line: #3a424b; --accent: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; color: var(--text); background: var(--page);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin-bottom: 0; }
.skip { position: absolute; left: -100rem; } .skip:focus { position: static; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; }
caption { text-align: left; color: var(--dim); padding-bottom: .25rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; }
td { max-width: 30rem; overflow-wrap: break-word; }
tbody th { font-weight: 500; } .number { text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.confusion td { text-align: right;
  background: color-mix(in srgb, var(--accent) calc(var(--share) * 60%), transparent); }
.confusion .right { font-weight: 700; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .5rem; }
dl div { background: var(--panel); border-radius: .4rem; padding: .5rem .7rem; }
dt { color: var(--dim); font-size: .8rem; } dd { margin: 0; }
.sheet { list-style: none; padding: 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(14.5rem, 1fr));
  gap: .75rem; }
.sheet figure { margin: 0; background: var(--panel); border-radius: .4rem; padding: .3rem; font-size: .75rem; }
.sheet img { max-width: 49%; height: auto; margin-right: 1%; }
.plot { margin: 1rem 0; } figcaption { color: var(--dim); }
.chart { height: 20rem; } .label { margin: 0; color: var(--dim); }
summary { cursor: pointer; color: var(--accent); }
footer { margin-top: 3rem; color: var(--dim); font-size: .875rem; }
"""

SCRIPT = """
"use strict";
const charts = document.querySelectorAll(".chart");
const drawn = new Set();
function draw(node) {
  const { data, layout } = JSON.parse(node.nextElementSibling.textContent);
  const style = getComputedStyle(document.documentElement);
  const [text, line, panel] = ["--text", "--line", "--panel"].map(name => style.getPropertyValue(name).trim());
  for (const axis of [layout.xaxis, layout.yaxis]) Object.assign(axis, { gridcolor: line, zerolinecolor: line });
  Object.assign(layout, { font: { color: text }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: panel, font: { color: text } } });
  Plotly.react(node, data, layout, { responsive: true, displayModeBar: false });
  drawn.add(node);
}
const seen = new IntersectionObserver(entries => {
  for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
}, { rootMargin: "400px" });
charts.forEach(node => seen.observe(node));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));
addEventListener("beforeprint", () => charts.forEach(draw));
"""
