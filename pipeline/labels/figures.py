"""Labels as vector figures for a paper, each with a caption that names model, data and N."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from pipeline.labels.over_time import by_person, file_name, moments_of, printable
from pipeline.labels.source import Labels
from pipeline.records.columns import classes_of
from pipeline.records.evolution import from_first_frame
from pipeline.records.vocabulary import UsageError
from pipeline.report.charts import colours_of

MAX_PERSONS = 6
MAX_GROUPS = 6
KINDS = ("svg", "pdf")


def require_matplotlib() -> None:
    """Raise UsageError where the libraries of figures are not installed."""
    try:
        import matplotlib  # noqa: F401
        import statsmodels  # noqa: F401
    except ImportError:
        raise UsageError(
            "--format figure needs Matplotlib and statsmodels: pip install 'emotion-pipeline[analysis]'"
        ) from None


def figures(labels: Labels, chosen: dict[str, Any], *, every: float) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The files by name, each with what makes it: the collection's distribution, then each clip's persons over time."""
    require_matplotlib()
    for kind in KINDS:
        yield f"collection.{kind}", lambda kind=kind: _collection(labels, chosen, kind)
    yield "collection.md", lambda: _collection_caption(labels, chosen)
    for clip, faces, _ in labels.labelled(**chosen):
        for kind in KINDS:
            yield (
                file_name(clip, kind),
                lambda faces=faces, kind=kind: _clip(faces, kind, every=every),
            )
        yield file_name(clip, "md"), lambda clip=clip, faces=faces: _clip_caption(labels, clip, faces, every=every)


def _groups(labels: Labels, chosen: dict[str, Any]) -> list[tuple[str, dict[str, int]]]:
    """The groups (first folders) with most labelled clips, and how many of their clips have each emotion."""
    sql = (
        'select "show" as name, emotion, count(*) as num from clips where emotion is not null'
        " and (path glob $pattern or clip_id = $pattern)"
        " and ($ids is null or clip_id in (select unnest($ids::varchar[]))) group by 1, 2 order by 1, 2"
    )
    found: dict[str, dict[str, int]] = {}
    for row in labels.database.rows(sql, pattern=chosen["pattern"], ids=chosen["clip_ids"]):
        found.setdefault(row["name"] or "all", dict.fromkeys(labels.classes, 0))[row["emotion"]] = row["num"]
    most = sorted(found, key=lambda name: (-sum(found[name].values()), name))[:MAX_GROUPS]
    return [(name, found[name]) for name in sorted(most)]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # Not pyplot, which keeps every figure and looks for a screen.

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _plain(text: str) -> str:
    """A text as it is: for matplotlib a $ begins a formula, and a label that begins with _ is left out."""
    safe = printable(text).replace("$", r"\$")
    return f" {safe}" if safe.startswith("_") else safe


def _saved(figure: Any, kind: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # No date, and ids from a fixed salt: the same labels give the same bytes. Text stays text.
    settings: Any = {"svg.hashsalt": "emotion-pipeline", "svg.fonttype": "none", "pdf.fonttype": 42}
    # Letters that its font has not are boxes in a PDF; in an SVG text stays text.
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        metadata = {"Date": None} if kind == "svg" else {"CreationDate": None}
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def _collection(labels: Labels, chosen: dict[str, Any], kind: str) -> bytes:
    from statsmodels.stats.proportion import proportion_confint

    groups, classes = _groups(labels, chosen), labels.classes
    figure, axes = _figure(max(7.0, len(classes)), 3.2)
    width = 0.8 / max(1, len(groups))
    for place, (name, counts) in enumerate(groups):
        total = sum(counts.values())
        shares = [counts[each] / total for each in classes]
        edges = [proportion_confint(counts[each], total, method="wilson") for each in classes]
        low = [max(0.0, share - edge[0]) for share, edge in zip(shares, edges, strict=True)]
        high = [max(0.0, edge[1] - share) for share, edge in zip(shares, edges, strict=True)]
        at = [number + (place - (len(groups) - 1) / 2) * width for number in range(len(classes))]
        grey = 0.25 + 0.5 * place / max(1, len(groups) - 1) if len(groups) > 1 else 0.4
        label = _plain(f"{name} ({total})")
        axes.bar(at, shares, width=width * 0.92, yerr=[low, high], capsize=2, color=str(grey), label=label)
    axes.set_xticks(range(len(classes)), list(map(_plain, classes)))
    axes.set_ylabel("share of clips")
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", title="group (clips)", title_fontsize="small")
    return _saved(figure, kind)


def _collection_caption(labels: Labels, chosen: dict[str, Any]) -> bytes:
    groups = _groups(labels, chosen)
    parts = ", ".join(f"{name}: N = {sum(counts.values())}" for name, counts in groups)
    total = sum(sum(counts.values()) for _, counts in groups)
    return (
        f"**Figure.** Share of clips whose most probable emotion is each of {len(labels.classes)}, by group ({parts};"
        f" {total} clips in all). Bars: 95 % Wilson intervals over clips. Labels by model {labels.model}: a model's"
        " guess from pixels, not what a person feels. Clips of one group are not independent, so the intervals are too"
        " narrow.\n"
    ).encode()


def _most_seen(faces: pa.Table) -> dict[int, pa.Table]:
    persons = by_person(faces)
    most = sorted(persons, key=lambda person: (-persons[person].num_rows, person))[:MAX_PERSONS]
    return {person: persons[person] for person in sorted(most)}


def _clip(faces: pa.Table, kind: str, *, every: float) -> bytes:
    from matplotlib.figure import Figure

    persons, classes = _most_seen(faces), classes_of(faces.schema)
    colours = colours_of(classes)
    figure = Figure(figsize=(7.0, 1.0 + 1.5 * len(persons)), layout="constrained")
    all_axes = figure.subplots(len(persons), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (person, own) in zip(all_axes, persons.items(), strict=True):
        moments = moments_of(from_first_frame(own), every=every)
        for number, emotion in enumerate(classes):
            seconds, values = [], []
            for moment in moments:
                if seconds and moment.second - seconds[-1] > 1.5 * every:  # No face between: the line is broken there.
                    seconds.append(seconds[-1] + every)
                    values.append(float("nan"))
                seconds.append(moment.second)
                values.append(moment.probabilities[number])
            look = {"color": colours[emotion], "linewidth": 1.2, "marker": ".", "markersize": 3}
            axes.plot(seconds, values, label=_plain(emotion), **look)
        axes.set_ylim(0, 1)
        axes.set_ylabel(f"person {person + 1}")
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[-1].set_xlabel("seconds")
    handles, names = all_axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper center", ncols=min(7, len(classes)), frameon=False, fontsize="small"
    )
    return _saved(figure, kind)


def _clip_caption(labels: Labels, clip: dict[str, Any], faces: pa.Table, *, every: float) -> bytes:
    shown, total = len(_most_seen(faces)), len(by_person(faces))
    some = f"the {shown} persons seen most, of {total}" if shown < total else f"{total} persons"
    return (
        f"**Figure.** Mean probability of each of {len(labels.classes)} classes over {every:g} s, of {some} in"
        f" `{clip['path'].replace('`', chr(39))}` (N = {faces.num_rows} faces; gaps: no face). Labels by model"
        f" {labels.model}: a model's guess from pixels, not what a person feels.\n"
    ).encode()
