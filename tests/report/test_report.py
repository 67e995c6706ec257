"""Pages: what they say, that names from outside cannot act in them, and what a reader does with them in Chromium."""

import base64
import csv
import io
import re
import shutil
import tomllib
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from pipeline import report
from pipeline.records.faces import CLIP_LABEL_SCHEMA, FRAME_SCHEMA, TRACK_SCHEMA, Box, Example
from pipeline.records.outcomes import OUTCOME_SCHEMA, Outcome, State
from pipeline.records.vocabulary import EMOTIONS
from pipeline.report import templates
from pipeline.report.charts import COLOURS, Chart, down, histogram
from pipeline.report.evaluation import evaluation_page
from pipeline.report.people import clip_view, shown_clip
from pipeline.report.pictures import PERSON_COLOURS, thumbnails_of
from pipeline.report.training import Examined, training_page, verdict

SCRIPT_NAME = "<script>alert(1)</script>.mp4"
HOSTILE = "</script><script>console.error('ran')</script>\u202e<img src=x onerror=console.error(1)>&\udcff.avi"
VOID = {"meta", "img", "br", "input"}


class Outline(HTMLParser):
    """The elements of a page, and whether every one is closed in its order."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def encoded(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def stripes(px):
    """A face that only sharp eyes see: 14 columns, black and white."""
    return (
        np.repeat(np.where(np.arange(px) * 14 // px % 2, 255, 0)[None, :, None], px, axis=0)
        .repeat(3, axis=2)
        .astype("u1")
    )


def picture(colour):
    return encoded(np.full((224, 224, 3), colour, np.uint8))


def outcome(number, state=State.DONE, **fields):
    fields = {"clip_id": f"{number:020x}", "path": f"train/Happy/{number:04d}.avi", "num_frames": 8, **fields}
    return Outcome(**{"reason": None if state is State.DONE else "decode_error", **fields, "state": state})


def example(number, **fields):
    fields = {"frame_index": 3, "pts_seconds": 0.12, "face_index": 0, "face_score": 1.0, "label": "Happy", **fields}
    sizes = {"box": Box(200, 100, 400 + number, 300), "frame_width": 712, "frame_height": 400}
    images = {"face_jpeg": encoded(stripes(224)), "context_jpeg": picture(90)}
    return Example(clip_id=f"{number:020x}", **fields, **sizes, **images)


def metrics():
    matrix = np.full((7, 7), 2) + 28 * np.eye(7, dtype=int)
    per_class = dict.fromkeys(EMOTIONS, 30 / 42) | {"Fear": None}
    return {
        "top1_accuracy": 0.714,
        "macro_f1": 0.7,
        "per_class_accuracy": per_class,
        "confusion_matrix": matrix.tolist(),
    }


def probabilities(happy):
    return dict.fromkeys(EMOTIONS, (1 - happy) / 6) | {"Happy": happy}


def face_row(clip_id, time, *, happy=0.4, track=0):
    return {
        "clip_id": clip_id,
        "frame_index": round(time * 25),
        "pts_seconds": time,
        "face_index": track,
        "track_index": track,
        "box": {"x_min": 200 + 220 * track, "y_min": 100, "x_max": 400 + 220 * track, "y_max": 300},
        "probabilities": probabilities(happy),
    }


def track_row(clip_id, track=0, *, num_faces=6, emotion="Happy"):
    figures = {"num_changes": 1, "mean_entropy": 1.5, "agreement": 0.5, "reason": None if emotion else "abstained"}
    shares = dict.fromkeys(EMOTIONS, 0.0) | {"Happy": 0.75, "Sad": 0.25}
    return {
        "clip_id": clip_id,
        "track_index": track,
        "num_faces": num_faces,
        "probabilities": probabilities(0.4),
        "emotion": emotion,
        "emotion_shares": shares,
        **figures,
    }


def clip_row(clip_id, path, *, emotion="Happy", has_face=True):
    figures = {"num_changes": 1, "mean_entropy": 1.5, "agreement": 0.5} if has_face else {}
    return {
        "clip_id": clip_id,
        "path": path,
        "emotion": emotion,
        "reason": None if emotion else "no_face",
        "probabilities": probabilities(0.4) if has_face else None,
        "num_faces": 6,
        "num_tracks": 1,
        "num_frames": 6,
        **dict.fromkeys(("num_changes", "mean_entropy", "agreement")),
        **figures,
    }


NIGHT = {"day": "2026-11-22", "clips": 40, "labelled_clips": 38, "mean_entropy": 1.2, "emotions": probabilities(0.4)}
DRIFT = {
    "nights": 3,
    "figures": {
        "emotions": {"tonight": probabilities(0.4), "before": probabilities(0.1), "distance": 0.3, "limit": 0.15}
        | {"jumped": True},
        "mean_entropy": {"tonight": 1.2, "before": 1.25, "distance": 0.05, "limit": 0.15, "jumped": False},
    },
    "warnings": ["drift: the share of Happy is 0.40, 0.10 in 3 nights before (distance 0.300, limit 0.150)"],
}


def table_of(rows, schema):
    """Rows as a table of those columns of the schema that they have; broken UTF-8 as the ledger writes it."""
    names = rows[0].keys() if rows else schema.names
    clean = [
        {n: v.encode("utf-8", "backslashreplace").decode() if isinstance(v, str) else v for n, v in row.items()}
        for row in rows
    ]
    return pa.Table.from_pylist(clean, schema=pa.schema([field for field in schema if field.name in names]))


def preprocess_page(summary, outcomes, examples, **options):
    return report.preprocess_page(summary, table_of(list(map(asdict, outcomes)), OUTCOME_SCHEMA), examples, **options)


def score_page(summary, outcomes, frames, tracks, clips, *, thumbnails=(), **options):
    """The page as a night makes it of these rows."""
    labels = report.labels_of(table_of(clips, CLIP_LABEL_SCHEMA))
    thumbnails = () if options.get("no_thumbnails") else thumbnails
    shown = []
    for label in report.shown_clips(labels, {each.clip_id for each in thumbnails}):
        own = [[row for row in rows if row["clip_id"] == label["clip_id"]] for rows in (frames, tracks)]
        pictures = [each for each in thumbnails if each.clip_id == label["clip_id"]]
        shown.append(report.shown_clip(label, table_of(own[0], FRAME_SCHEMA), table_of(own[1], TRACK_SCHEMA), pictures))
    outcomes = table_of(list(map(asdict, outcomes)), OUTCOME_SCHEMA)
    return report.score_page(summary, outcomes, labels, shown, **options)


def examined(number, attention=None):
    probability = np.full(7, 0.1)
    probability[number % 7] = 0.4
    image = np.full((32, 32, 3), 120, np.uint8)
    return Examined(
        where=f"clip {number}", label="Anger", face=stripes(32), context=image, attention=attention,
        probabilities=probability,
    )  # fmt: skip


def scored(**options):
    """A page of three clips: two persons with pictures, a hostile name, and a clip without a face."""
    outcomes = [
        outcome(0, num_examples=12),
        outcome(1, path=SCRIPT_NAME),
        outcome(8, State.QUARANTINED, path=HOSTILE, stage="decode", detail=HOSTILE),
        outcome(9, State.NO_FACE, reason="no_face"),
    ]
    ids = [each.clip_id for each in outcomes]
    examples = [example(0, frame_index=round(n / 5 * 25), pts_seconds=n / 5) for n in range(6)]
    return score_page(
        {"inputs": 4, "audit": "audit holds", "night": NIGHT, "drift": DRIFT},
        outcomes,
        [
            face_row(ids[n], t / 5, track=track, happy=0.4 + t / 10)
            for n in (0, 1)
            for track in (0, 1)
            for t in range(6)
        ],
        [track_row(ids[n], track) for n in (0, 1) for track in (0, 1)],
        [
            clip_row(ids[0], outcomes[0].path),
            clip_row(ids[1], SCRIPT_NAME),
            clip_row(ids[3], outcomes[3].path, emotion=None, has_face=False),
        ],
        title="Labels",
        thumbnails=thumbnails_of(examples, box_margin=0.0, blur_faces=False),
        **options,
    )


def preprocessed(**options):
    outcomes = [
        *(outcome(number, num_examples=8) for number in range(8)),
        outcome(8, State.QUARANTINED, path=HOSTILE, stage="decode", detail=HOSTILE),
        outcome(9, State.NO_FACE, reason="no_face"),
    ]
    outcomes[0] = replace(outcomes[0], path=SCRIPT_NAME)
    summary = {"inputs": 10, "done": 8, "audit": "audit holds"}
    return preprocess_page(summary, outcomes, [example(n) for n in range(6)], title=HOSTILE, **options)


def trained(**options):
    epochs = [
        {"epoch": n, "train_loss": 2 / n, "validation_loss": 2.1 / n, "validation_top1_accuracy": n / 4}
        | {"validation_macro_f1": n / 5, "lr": 0.01, **{f"validation_accuracy_{e}": n / 6 for e in EMOTIONS}}
        for n in (1, 2, 3)
    ]
    attention = np.zeros((2, 2))
    attention[0, 1] = 1.0
    return training_page(
        {"model": "cahfw", "best": {"top1": 0.75}},
        epochs,
        title="Training",
        best=metrics(),
        attended=[examined(0, attention)],
        wrong=[replace(examined(3), where=SCRIPT_NAME)],
        num_examined=64,
        **options,
    )


def evaluated():
    split = {"num_examples": 294, **metrics(), "clip_level": {"num_clips": 42, **metrics()}}
    splits = {"validation": split, "test": split}
    return evaluation_page({"data": HOSTILE, "model": {"name": "cahfw"}, "splits": splits}, title="Evaluation")


@pytest.fixture(scope="module")
def pages():
    return {"preprocess": preprocessed(), "train": trained(), "evaluate": evaluated(), "score": scored()}


NAMES = ("preprocess", "train", "evaluate", "score")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_one_whole_file_that_asks_nobody(pages, name):
    outline = Outline(pages[name])
    assert len(pages[name].encode()) < 6_000_000
    sources = [attrs[key] for _, attrs in outline.elements for key in ("src", "href") if key in attrs]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert any("default-src 'none'" in attrs.get("content", "") for attrs in outline.all("meta"))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_a_page_acts_but_what_its_policy_names(pages, name):
    outline = Outline(pages[name])
    (policy,) = [attrs["content"] for attrs in outline.all("meta") if "default-src" in attrs.get("content", "")]
    assert "unsafe" not in policy
    assert not [attrs for _, attrs in outline.elements if "style" in attrs or any(key[:2] == "on" for key in attrs)]


def test_every_template_escapes_and_prints_nothing_as_a_dash():
    environment = templates._environment()
    found = environment.from_string("{{ name }}|{{ missing }}|{{ count }}|{{ empty }}")
    assert found.render(name=HOSTILE[:9], missing=None, empty="", count=1234) == "&lt;/script&gt;|–|1,234|–"
    assert all(environment.get_template(name) for name in environment.list_templates())
    for name in environment.list_templates():
        source = environment.loader.get_source(environment, name)[0]
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", source), name


def test_what_is_no_module_travels_with_the_package():
    """Templates, style and script, as pyproject.toml names them."""
    folder = Path(report.__file__).parents[1]
    with open(folder.parent / "pyproject.toml", "rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["pipeline"]
    named = {path for pattern in patterns for path in folder.glob(pattern)}
    others = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".md")}
    assert others <= named


@pytest.mark.parametrize("name", NAMES)
def test_a_page_can_be_read_by_keyboard_and_screen_reader(pages, name):
    outline = Outline(pages[name])
    tags = [tag for tag, _ in outline.elements]
    assert tags.count("h1") == tags.count("main") == tags.count("header") == tags.count("footer") == 1
    assert outline.all("html")[0]["lang"] == "en"
    assert any(attrs.get("name") == "viewport" for attrs in outline.all("meta"))
    assert all(attrs.get("alt") for attrs in outline.all("img"))
    assert tags.count("table") == tags.count("caption") > 0
    assert all("scope" in attrs for attrs in outline.all("th"))
    assert all(attrs.get("aria-label") for attrs in outline.all("nav") + outline.all("form"))
    charts = [attrs for attrs in outline.all("div") if attrs.get("class") == "chart"]
    assert charts
    assert all(attrs["aria-label"] for attrs in charts)


@pytest.mark.parametrize("name", NAMES)
def test_names_from_outside_are_text_and_nothing_else(pages, name):
    outline = Outline(pages[name])
    islands = [attrs for attrs in outline.all("script") if attrs.get("type") == "application/json"]
    assert len(outline.all("script")) == len(islands) + 2
    assert not any("onerror" in attrs for _, attrs in outline.elements)
    assert SCRIPT_NAME not in pages[name]
    if name != "evaluate":
        assert SCRIPT_NAME in outline.text
    if name != "train":
        assert "\u202e" not in pages[name]
        assert "</script><script>console.error('ran')</script>\\u202e" in outline.text


def test_the_preprocess_page_counts_states_and_lists_what_is_not_done(pages):
    text = Outline(pages["preprocess"]).text
    assert "done 8 80.00 %" in text
    assert "quarantined 1 10.00 %" in text
    assert "train/Happy/0009.avi no_face no_face" in text
    assert "audit holds" in text
    assert len(Outline(pages["preprocess"]).all("img")) == 12
    assert "Box size of the examples" in text
    assert "Faces kept per sampled frame" in text


def test_bytes_that_others_replaced_are_no_clip_of_the_collection():
    kept = [outcome(n, State.DONE) for n in range(3)]
    old = outcome(3, State.CHANGED, reason="replaced", stage="plan")
    page = Outline(preprocess_page({}, [*kept, old], [example(0)], title="Replaced"))
    assert "All 3 clips are done." in page.text
    assert "Clips that are not done" not in page.text
    other = outcome(4, State.CHANGED, reason="changed", stage="fetch")
    page = Outline(preprocess_page({}, [*kept, old, other], [example(0)], title="Replaced"))
    assert "3 of 4 clips (75 %) are done; 1 changed since." in page.text


@pytest.fixture(scope="module")
def large_page():
    """A run of as many clips as CAER has, none of them done: the longest page there is of it."""
    detail = "moov atom not found, " * 100
    outcomes = [
        outcome(n, State.QUARANTINED, reason="undecodable" if n % 2 else "timeout", stage="decode", detail=detail)
        for n in range(13_201)
    ]
    return preprocess_page({}, outcomes, [example(n) for n in range(90)], title="Large")


@pytest.mark.lengthy
def test_a_large_run_has_every_clip_in_a_page_of_less_than_20_mb(large_page):
    text = Outline(large_page).text
    assert "60 of 90 of the examples" in text
    assert "All 13,201 rows are in this page" in text
    assert "train/Happy/13200.avi" in large_page
    assert len(large_page.encode()) < 20_000_000


@pytest.mark.lengthy
def test_a_large_night_shows_some_people_and_every_label_in_less_than_20_mb():
    outcomes = [outcome(n) for n in range(13_201)]
    labels = [clip_row(each.clip_id, each.path) for each in outcomes]
    frames = [face_row(each.clip_id, t, track=track) for each in outcomes[:60] for t in range(900) for track in (0, 1)]
    tracks = [track_row(each.clip_id, track) for each in outcomes[:60] for track in range(6)]
    pictures = thumbnails_of([example(0, frame_index=n) for n in range(90)], box_margin=0.0, blur_faces=False)
    page = score_page({}, outcomes, frames, tracks, labels, title="Night", thumbnails=pictures)
    outline = Outline(page)
    assert "40 of 13,201 of the clips with a face" in outline.text
    assert "4 of 6 persons" in outline.text
    assert len(outline.all("img")) == 9  # 8 frames, and the one that stands for the clip
    assert len(page.encode()) < 20_000_000


def test_a_run_of_more_than_a_page_lists_is_counted_by_its_summary():
    counts = {"inputs": 3_000_000, "done": 2_900_000, "no_face": 60_000, "retryable": 40_000}
    reasons = {"no_face: no_face_found": 60_000, "retryable: timeout": 40_000}
    summary = {**counts, "reasons": reasons, "frames": 24_000_000, "examples": 9_000_000}
    listed = [outcome(0), outcome(1), outcome(2, State.RETRYABLE, reason="timeout")]
    text = Outline(preprocess_page(summary, listed, [example(0)], title="Many")).text
    assert "2,900,000 of 3,000,000 clips" in text
    assert "9,000,000 faces were cut out of 24,000,000 sampled frames" in text
    assert "retryable timeout 40,000" in text
    assert "of 3 clips, first by path" in text
    assert "train/Happy/0002.avi retryable timeout" in text
    labels = [clip_row(each.clip_id, each.path) for each in listed[:2]]
    assert "100,000 other clips have no label" in Outline(score_page(summary, listed, [], [], labels, title="N")).text


def test_an_empty_run_has_a_page():
    assert "nothing to count" in Outline(preprocess_page({}, [], [], title="Empty")).text
    text = Outline(score_page({}, [], [], [], [], title="Empty")).text
    assert "Every clip is done" in text
    assert "nothing to compare" in text


def first_screen(page):
    """The sentences that a page begins with."""
    lead = page.split('<section class="lead"', 1)[1].split("</section>", 1)[0]
    return Outline(f"<section{lead}</section>").text


def test_each_page_answers_its_first_question_in_its_first_sentence(pages):
    assert "8 of 10 clips (80 %) are done; 1 without a face, 1 quarantined." in first_screen(pages["preprocess"])
    assert "It learned: 75 % of the validation examples right" in first_screen(pages["train"])
    evaluated_first = first_screen(pages["evaluate"])
    assert "On test it names 71.4 % of 294 faces right; the true figure lies between 56" in evaluated_first
    assert "(95 %, of 42 clips). Guessing gets 14.3 %" in evaluated_first
    scored_first = first_screen(pages["score"])
    assert "Most clips look Happy: 100 % of those it is decided on (95 %: 34.2 % to 100 %)" in scored_first
    assert "The model is decided on 2 of 2 clips with a face. 2 other clips have no label" in scored_first


def test_provenance_is_folded_away_at_the_end(pages):
    for page in pages.values():
        start = page.index('<details class="provenance">')
        assert "<section" not in page[start:]
    assert "audit holds" in pages["preprocess"].split('<details class="provenance">')[1]


def curves(*losses, accuracies=None):
    """Rows of epochs from (train loss, validation loss)."""
    accuracies = accuracies or [0.5] * len(losses)
    return [
        {"epoch": n, "train_loss": train, "validation_loss": validation, "validation_top1_accuracy": accuracy}
        for n, ((train, validation), accuracy) in enumerate(zip(losses, accuracies, strict=True), 1)
    ]


def test_the_verdict_on_a_training_follows_its_curves():
    overfits = verdict(curves((2, 1.9), (1.5, 1.6), (1, 1.8), (0.5, 2.2)))
    assert "It overfits: from epoch 2 on the validation loss rises (1.60 to 2.20)" in overfits[1]
    improving = verdict(curves((2, 1.9), (1.5, 1.6), (1, 1.2), accuracies=(0.3, 0.5, 0.6)))
    assert "its last epoch is its best: more epochs may do better" in improving[1]
    assert "does not overfit" in verdict(curves((2, 1.9), (1.5, 1.6), (1.5, 1.61)))[1]
    assert verdict(curves((2, 2), (2, 2), accuracies=(0.14, 0.13)))[0].startswith(
        "It did not learn: no better than chance"
    )
    # A quarter right is above chance, and of 20 examples it may be luck.
    assert verdict(curves((2, 2), accuracies=(0.25,)), num_validation=20)[0].startswith("It did not learn")
    assert verdict([]) == ["No epoch has been validated yet."]


def test_a_model_that_is_undecided_is_said_to_be():
    rows = [face_row("a", t / 5) | {"emotion": None} for t in range(3)]
    tracks = [track_row("a", emotion=None) | {"emotion_shares": dict.fromkeys(EMOTIONS, 0.0)}]
    clips = [clip_row("a", "a.mp4", emotion=None) | {"reason": "abstained"}]
    page = score_page({}, [outcome(1)], rows, tracks, clips, title="Labels")
    assert "The model is undecided on the 1 clip with a face: take no label from it." in first_screen(page)
    assert "Person 1: undecided: at most 40 % sure" in Outline(page).text
    assert "undecided 100 % of the time" in Outline(page).text
    assert 'class="undecided" x="0.0"' in page


def test_the_model_stands_where_the_labels_begin():
    model = {"warnings": ["this model learned from 'demo'"], "words": ["cahfw, trained 2026-11-20", "right on 57 %"]}
    first = first_screen(score_page({"model": model}, [], [], [], [], title="Labels"))
    assert "Warning: this model learned from 'demo'" in first
    assert "The model: cahfw, trained 2026-11-20; right on 57 %." in first


def test_where_a_person_was_not_seen_its_strip_and_its_lines_are_open():
    times = [0.0, 0.2, 0.4, 3.0, 3.2]
    label = clip_row("a", "a") | {"probability": 0.4}
    clip = shown_clip(label, table_of([face_row("a", t) for t in times], FRAME_SCHEMA),
                      table_of([track_row("a")], TRACK_SCHEMA), [])  # fmt: skip
    (person,) = clip_view(clip, most_points=300, blur_faces=False)["persons"]
    first, second = person["strip"].parts
    assert float(first.x) + float(first.width) < 200
    assert float(second.x) > 800
    assert [value is None for value in person["chart"].traces[0]["y"]] == [False] * 3 + [True] + [False] * 2


def test_cuts_are_marks_on_the_strips_counted_from_the_first_frame():
    rows = [face_row("a", t) | {"pts_seconds": t + 100.0, "seconds": t} for t in (0.0, 0.2, 0.4, 0.6, 0.8)]
    label = clip_row("a", "a") | {"probability": 0.4}
    tables = pa.Table.from_pylist(rows, FRAME_SCHEMA)
    clip = shown_clip(label, tables, table_of([track_row("a")], TRACK_SCHEMA), [], cuts=[100.5, 107.0])
    (person,) = clip_view(clip, most_points=300, blur_faces=False)["persons"]
    (mark,) = [part for part in person["strip"].parts if part.kind == "cut"]
    assert float(mark.x) == pytest.approx(499, abs=1)
    assert mark.words == "cut at 0.5 s"
    without = shown_clip(label, tables, table_of([track_row("a")], TRACK_SCHEMA), [])
    (person,) = clip_view(without, most_points=300, blur_faces=False)["persons"]
    assert [part.kind for part in person["strip"].parts if part.kind == "cut"] == []


def test_the_page_counts_from_the_first_frame_and_says_how_to_play_a_clip_there():
    pages = []
    for clock in (0.0, 54321.0):
        rows = [face_row("a", t) | {"pts_seconds": t + clock, "seconds": t} for t in (1.0, 1.2, 1.4)]
        clips = [clip_row("a", "it's a.ts")]
        options = {"title": "Labels", "labels_url": "/out/my labels/model=0123456789ab"}
        pages.append(score_page({}, [outcome(1)], rows, [track_row("a")], clips, **options))
    assert pages[0] == pages[1]
    assert "54321" not in pages[1]
    command = """python jobs/view.py '/out/my labels/model=0123456789ab' --clip 'it'"'"'s a.ts' --at 1.0"""
    assert command in Outline(pages[1]).text


def test_the_edges_of_a_histogram_are_round():
    names = histogram([12.1, 47.3, 88.8, 61.0], title="", unit="px").traces[0]["x"]
    assert names[0] == "0 to 20"
    assert histogram([1.0, 1.0], title="", unit="").traces[0]["y"] == [2]
    assert histogram([float("nan")], title="", unit="").traces == []


@pytest.mark.parametrize(("num_epochs", "step"), [(1, 1), (3, 1), (11, 1), (16, 2), (30, 5), (1000, 100)])
def test_epochs_are_whole_numbers_and_the_name_of_the_best_hides_no_line(num_epochs, step):
    line = {"x": list(range(1, num_epochs + 1)), "y": [1.0] * num_epochs, "name": "top-1"}
    layout = Chart([line], "Accuracy", "epoch", "share", share=True, marks=[down(1, "best")]).figure["layout"]
    assert layout["xaxis"]["dtick"] == step
    assert layout["yaxis"]["range"][1] > 1.1
    line["x"] = [0.1 * n for n in range(num_epochs)]
    assert "dtick" not in Chart([line], "Accuracy", "seconds", "share").figure["layout"]["xaxis"]


def test_a_persons_colours_are_no_emotions():
    assert not set(PERSON_COLOURS) & set(COLOURS.values())


@pytest.mark.parametrize(
    ("data", "shown"),
    [({"name": "CAER-S", "synthetic": False}, True), ({"name": "demo", "synthetic": True}, False), (None, True)],
)
def test_the_paper_stands_only_beside_its_own_data(data, shown):
    split = {"num_examples": 294, **metrics()}
    given = {"data": "d", "splits": {"test": split}} | ({"dataset": data} if data else {})
    page = evaluation_page(given, title="Evaluation")
    assert ("CAHFW-Net" in Outline(page).text) == shown
    assert ("if this data is CAER-S" in Outline(page).text) == (data is None)


def test_curves_are_read_from_the_text_of_a_csv_and_survive_what_is_not_finite():
    row = {"epoch": "1", "train_loss": "nan", "validation_loss": "1.5", "validation_accuracy_Fear": ""}
    page = training_page({}, [row], title="Training")
    assert '"y":[null]' in page
    assert '"y":[1.5]' in page


def test_the_training_page_has_the_best_epoch_its_attention_and_its_worst_examples(pages):
    outline = Outline(pages["train"])
    assert "Confusion matrix on validation" in outline.text
    assert "CAHFW-Net, paper" in outline.text
    assert "Of 64 validation examples" in outline.text
    assert "true Anger (10%); said Happy (40%)" in outline.text
    face, _, context, overlay = [decoded(image) for image in outline.all("img")]
    assert "row 1 of 2, column 2 of 2" in outline.all("img")[3]["alt"]
    assert np.ptp(context) < 10
    corners = overlay[8, -8], overlay[8, 8], overlay[-8, -8]
    assert corners[0][0] > corners[0][2] + 100  # orange where the attention is
    assert all(np.ptp(corner) < 40 for corner in corners[1:])  # grey where it is not
    assert np.ptp(face[:, :, 0]) > 200


def test_the_evaluation_page_stands_beside_the_paper(pages):
    text = Outline(pages["evaluate"]).text
    assert "CAHFW-Net 83.76" in text
    assert "ours, test 71.40" in text
    assert "Anger 71.43 82.73 77.93" in text
    assert "Fear – 94.61 86.4" in text
    assert "Anger 30 71% 2 5%" in text


def test_a_timeline_is_of_one_person():
    rows = [face_row("a", 0.5, happy=0.9), face_row("a", 0.0, happy=0.4), face_row("a", 0.0, happy=0.6, track=1)]
    tracks = [track_row("a", 0, num_faces=2), track_row("a", 1, num_faces=1, emotion=None)]
    page = score_page({}, [outcome(1)], rows, tracks, [clip_row("a", "a.mp4")], title="Labels")
    assert '"x":[0.0,0.5],"y":[0.4,0.9],"name":"Happy"' in page
    assert '"x":[0.0],"y":[0.6],"name":"Happy"' in page
    text = Outline(page).text
    assert "Person 1: Happy, 40 % sure" in text
    assert "Person 2: undecided: at most 40 % sure" in text
    assert "Happy 75 %, Sad 25 % of the time" in text


def test_the_score_page_tells_the_drift_and_warns(pages):
    outline = Outline(pages["score"])
    assert "Warning: drift: the share of Happy is 0.40, 0.10 in 3 nights before" in outline.text
    assert "emotions – – 0.300 0.150 jumped" in outline.text
    assert "share of Happy 0.400 0.100" in outline.text
    assert "mean entropy 1.200 1.250 0.050 0.150 steady" in outline.text
    assert "labelled clips 38" in outline.text


def decoded(attrs):
    """The pixels of an img element."""
    kind, data = attrs["src"].split(",", 1)
    assert kind == "data:image/jpeg;base64"
    return np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def sharpness(pixels):
    """The mean difference of neighbours in a row, of 255: over 15 for the stripes."""
    return np.abs(np.diff(pixels[:, :, 0], axis=1)).mean()


def test_frames_are_put_together_with_the_face_at_its_place(pages):
    frames = [decoded(attrs) for attrs in Outline(pages["score"]).all("img")]
    assert len(frames) == 1 + 6  # the one that stands for the clip, and all
    assert all(frame.shape == (99, 176, 3) for frame in frames)
    face, elsewhere = frames[0][45:70, 55:95], frames[0][:20, 110:]
    assert sharpness(face) > 15
    assert sharpness(elsewhere) < 3
    assert abs(elsewhere.mean() - 90) < 3


@pytest.mark.parametrize("make", [preprocessed, trained, scored])
def test_faces_are_blurred_in_the_pixels_of_the_page(make):
    clear = [attrs for attrs in Outline(make()).all("img") if "Face" in attrs["alt"] or "Frame" in attrs["alt"]]
    blurred = [attrs for attrs in Outline(make(blur_faces=True)).all("img") if attrs["alt"] in
               {each["alt"] for each in clear}]  # fmt: skip
    assert len(clear) == len(blurred) > 0
    for sharp, soft in zip(clear, blurred, strict=True):
        part = np.s_[45:70, 57:93] if make is scored else np.s_[:, :]
        assert sharpness(decoded(sharp)[part]) > 15
        assert sharpness(decoded(soft)[part]) < 6
        assert np.ptp(decoded(soft)[part][:, :, 0]) < 90


def test_kept_frames_are_blurred_before_anything_is_written():
    (clear,) = thumbnails_of([example(0)], box_margin=0.0, blur_faces=False)
    (soft,) = thumbnails_of([example(0)], box_margin=0.0, blur_faces=True)
    part = np.s_[30:70, 55:95]
    sharp_pixels, soft_pixels = (
        np.array(Image.open(io.BytesIO(each.jpeg)).convert("RGB")).astype(int)[part] for each in (clear, soft)
    )
    assert sharpness(sharp_pixels) > 15
    assert sharpness(soft_pixels) < 6


@pytest.mark.parametrize("make", [preprocessed, trained, scored])
def test_without_thumbnails_there_is_no_picture_of_a_person(make):
    page = make(no_thumbnails=True)
    assert not Outline(page).all("img")
    assert "data:image/jpeg" not in page
    assert "eft out by --no-thumbnails" in Outline(page).text


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium")


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(chromium, tmp_path):
    """Opens a page as a reader does; the test fails if anything is said on its console."""
    said, contexts = [], []

    def open_page(text, **options):
        file = tmp_path / "page.html"
        file.write_text(text)
        contexts.append(chromium.new_context(**{"viewport": {"width": 1200, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not said


def draw_all(page):
    """Open all of the page and scroll through it, as charts are drawn when they come into view."""
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    for chart in page.locator(".chart").all():
        chart.scroll_into_view_if_needed()
        page.wait_for_function("node => node.classList.contains('js-plotly-plot')", arg=chart.element_handle())


@pytest.mark.lengthy
@in_browser
@pytest.mark.parametrize("name", NAMES)
def test_a_page_on_a_phone_by_day_and_night(pages, name, show):
    page = show(pages[name], viewport={"width": 375, "height": 800}, color_scheme="light")
    draw_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    background = "getComputedStyle(document.body).backgroundColor"
    axis = "getComputedStyle(document.querySelector('.xtick text')).fill"
    by_day = page.evaluate(background), page.evaluate(axis)
    assert by_day == ("rgb(255, 255, 255)", "rgb(27, 31, 36)")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"() => {axis} === 'rgb(232, 234, 237)'")
    assert page.evaluate(background) == "rgb(20, 23, 26)"


@pytest.mark.lengthy
@in_browser
def test_the_timeline_tells_its_probabilities_under_the_mouse(pages, show):
    page = show(pages["score"])
    page.locator("article details.curves summary").first.click()
    chart = page.locator("article .chart").first
    chart.scroll_into_view_if_needed()
    plot = chart.locator(".nsewdrag").first
    plot.wait_for(state="attached")
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 - 40, box["y"] + 40)
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 40)
    hover = chart.locator(".hoverlayer .legend")
    hover.wait_for(state="attached")
    text = " ".join(hover.all_text_contents())
    assert "Happy : 0.6" in text
    assert all(emotion in text for emotion in EMOTIONS)


@pytest.mark.lengthy
@in_browser
def test_the_policy_stops_what_a_name_would_smuggle_in(pages, chromium, tmp_path):
    """Were an escape forgotten, the browser would still run, load and style nothing of it."""
    smuggled = (
        "<script>document.title = 'script'</script><img src=x onerror=\"document.title = 'handler'\">"
        "<p id=styled style='position: fixed'></p><style>h1 { display: none }</style>"
        "<base href='http://127.0.0.1:9/'><a href=\"javascript:document.title = 'link'\" id=link>link</a>"
    )
    file = tmp_path / "page.html"
    file.write_text(pages["train"].replace('<main id="main">', f'<main id="main">{smuggled}'))
    page = chromium.new_page()
    page.goto(file.as_uri())
    draw_all(page)
    page.locator("#link").click()
    assert page.title() == "Training"
    assert page.locator("h1").is_visible()
    assert page.evaluate("getComputedStyle(document.getElementById('styled')).position") == "static"
    assert page.evaluate("document.baseURI") == file.as_uri()
    page.close()


def shown_rows(listing):
    return [row.inner_text().split("\t")[0] for row in listing.locator("tbody tr").all() if row.is_visible()]


@pytest.mark.lengthy
@in_browser
def test_a_table_is_filtered_by_text_and_state_sorted_and_paged(pages, large_page, show):
    page = show(pages["preprocess"])
    clips = page.locator(".listing").last
    assert len(shown_rows(clips)) == 10
    clips.get_by_label("text").fill("HAPPY/000")
    assert shown_rows(clips) == [f"train/Happy/000{n}.avi" for n in (1, 2, 3, 4, 5, 6, 7, 9)]
    assert clips.get_by_role("status").inner_text() == "1 to 8 of 8 that match, of 10"
    clips.get_by_label("state").select_option("no_face")
    assert shown_rows(clips) == ["train/Happy/0009.avi"]
    clips.get_by_label("text").fill("<script>")
    assert shown_rows(clips) == []
    clips.get_by_label("state").select_option("done")
    assert shown_rows(clips) == [SCRIPT_NAME]
    clips.get_by_label("text").fill("")
    head = clips.locator("thead th").first
    assert head.get_attribute("aria-sort") == "none"
    for way, first in (("ascending", SCRIPT_NAME), ("descending", "train/Happy/0007.avi")):
        head.get_by_role("button").press("Enter")
        assert head.get_attribute("aria-sort") == way
        assert shown_rows(clips)[0] == first

    page = show(large_page)
    clips = page.locator(".listing").last
    assert clips.locator("tbody tr").count() == 100
    clips.get_by_role("button", name="next").click()
    assert clips.get_by_role("status").inner_text() == "101 to 200 of 13,201"
    assert clips.locator("tbody th").first.inner_text() == "train/Happy/0100.avi"
    clips.get_by_label("text").fill("happy/13200")
    assert clips.locator("tbody th").all_inner_texts() == ["train/Happy/13200.avi"]


def test_the_style_has_no_network_address(pages):
    assert not re.search(r"@import|url\(", pages["train"].split("</style>")[0])


@pytest.mark.lengthy
@in_browser
def test_charts_and_tables_are_kept_by_a_button(pages, show):
    page = show(pages["evaluate"])
    draw_all(page)
    kept = {}
    for kind in ("SVG", "PNG"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Accuracy of each emotion on test as {kind}").click()
        kept[kind] = Path(download.value.path()).read_bytes()
    assert b"<svg" in kept["SVG"]
    assert b"Anger" in kept["SVG"]
    assert Image.open(io.BytesIO(kept["PNG"])).size == (1000, 500)
    with page.expect_download() as download:
        page.get_by_role("button", name="Each emotion on test as CSV", exact=True).click()
    lines = Path(download.value.path()).read_text("utf-8-sig").splitlines()
    assert lines[1].startswith("Anger,42,71.4 %,")
    assert download.value.suggested_filename == "Each-emotion-on-test.csv"


@pytest.mark.lengthy
@in_browser
def test_a_kept_table_has_all_rows_and_no_formula(show):
    outcomes = [outcome(n, path=f"=HYPERLINK({n}),x") for n in range(150)]
    page = show(preprocess_page({}, outcomes, [], title="Large"))
    with page.expect_download() as download:
        page.get_by_role("button", name="One row a clip; all of them are in outcomes.jsonl as CSV").click()
    with open(download.value.path(), encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 151
    assert all(row[0].startswith("'=HYPERLINK") for row in rows[1:])


@pytest.mark.parametrize("num_pictured", [0, 39, 40, 41, 63])
def test_of_many_clips_at_most_so_many_are_shown_and_those_with_pictures_first(num_pictured):
    rows = [{"clip_id": f"{n:020}", "path": f"{n:03}.mp4", "emotion": "Happy", "probability": 0.9} for n in range(63)]
    labels = pa.Table.from_pylist(rows)
    pictured = {row["clip_id"] for row in rows[:num_pictured]}
    shown = report.shown_clips(labels, pictured)
    assert len(shown) == len({row["clip_id"] for row in shown}) == report.MAX_TIMELINES
    assert sum(row["clip_id"] in pictured for row in shown) == min(num_pictured, report.MAX_TIMELINES)


@pytest.mark.parametrize(
    ("emotions", "said"),
    [
        (["Happy"] * 3 + ["Sad"], "Most clips look Happy: 75 % of those it is decided on (95 %: "),
        (["Happy"] * 2 + ["Sad", "Fear", "Anger"], "Happy leads: 40 % of those it is decided on (95 %: "),
        (
            ["Happy", "Sad", "Fear"],
            "No emotion leads: Fear, Happy and Sad are 33.3 % of those it is decided on (95 %: ",
        ),
    ],
)
def test_the_labels_page_says_most_only_where_it_is_most(emotions, said):
    rows = [clip_row(f"{n:020}", f"{n}.mp4", emotion=emotion) for n, emotion in enumerate(emotions)]
    assert said in first_screen(score_page({"inputs": len(rows)}, [], [], [], rows, title="Labels"))
