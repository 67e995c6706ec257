"""Pages: what they say, that names from outside cannot act in them, and that a real browser shows them."""

import io
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipeline.records import EMOTIONS, Box, Example, Outcome, State
from pipeline.report import evaluation_page, preprocess_page, score_page, training_page

HOSTILE = "</script><script>console.error('ran')</script>\u202e<img src=x onerror=console.error(1)>&\udcff.avi"
VOID = {"meta", "img", "br"}


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


def picture(colour):
    buffer = io.BytesIO()
    Image.fromarray(np.full((224, 224, 3), colour, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def outcome(number, state=State.DONE, **fields):
    fields = {"clip_id": f"{number:020x}", "path": f"train/Happy/{number:04d}.avi", "num_frames": 8, **fields}
    return Outcome(**{"reason": None if state is State.DONE else "decode_error", **fields, "state": state})


def example(number):
    fields = {"frame_index": 3, "pts_seconds": 0.12, "face_index": 0, "face_score": 1.0, "label": "Happy"}
    sizes = {"box": Box(10, 10, 110 + number, 110), "frame_width": 712, "frame_height": 400}
    images = {"face_jpeg": picture(200), "context_jpeg": picture(90)}
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


def all_pages():
    outcomes = [
        *(outcome(number, num_examples=8) for number in range(8)),
        outcome(8, State.QUARANTINED, path=HOSTILE, stage="decode", detail=HOSTILE),
        outcome(9, State.NO_FACE, reason="no_face"),
    ]
    summary = {"inputs": 10, "done": 8, "audit": "audit holds"}
    epochs = [
        {"epoch": n, "train_loss": 2 / n, "validation_loss": 2.1 / n, "validation_top1_accuracy": n / 4}
        | {"validation_macro_f1": n / 5, "lr": 0.01, **{f"validation_accuracy_{e}": n / 6 for e in EMOTIONS}}
        for n in (1, 2, 3)
    ]
    split = {"num_examples": 294, **metrics(), "clip_level": {"num_clips": 42, **metrics()}}
    evaluation = {"data": HOSTILE, "model": {"name": "cahfw"}, "splits": {"validation": split, "test": split}}
    probabilities = {emotion: 0.4 if emotion == "Sad" else 0.1 for emotion in EMOTIONS}
    predictions = [
        {"clip_id": outcomes[n].clip_id, "pts_seconds": t / 5, "probabilities": probabilities}
        for n in (0, 8)
        for t in range(6)
    ]
    labels = [
        {"clip_id": outcomes[n].clip_id, "path": outcomes[n].path, "emotion": "Sad" if n != 9 else None}
        | {"probabilities": probabilities if n != 9 else None, "num_faces": 6, "num_frames": 6}
        for n in (0, 8, 9)
    ]
    return {
        "preprocess": preprocess_page(summary, outcomes, [example(n) for n in range(6)], title=HOSTILE),
        "train": training_page({"model": "cahfw", "best": {"top1": 0.75}}, epochs, title="Training"),
        "evaluate": evaluation_page(evaluation, title="Evaluation"),
        "score": score_page(
            summary, outcomes, predictions, labels, title="Labels", thumbnails={outcomes[0].clip_id: picture(120)}
        ),
    }


@pytest.fixture(scope="module")
def pages():
    return all_pages()


NAMES = ("preprocess", "train", "evaluate", "score")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_one_whole_file_that_asks_nobody(pages, name):
    outline = Outline(pages[name])
    assert len(pages[name].encode()) < 6_000_000
    sources = [attrs[key] for _, attrs in outline.elements for key in ("src", "href") if key in attrs]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert any("default-src 'none'" in attrs.get("content", "") for attrs in outline.all("meta"))


@pytest.mark.parametrize("name", NAMES)
def test_a_page_can_be_read_by_keyboard_and_screen_reader(pages, name):
    outline = Outline(pages[name])
    tags = [tag for tag, _ in outline.elements]
    assert tags.count("h1") == tags.count("main") == 1
    assert outline.all("html")[0]["lang"] == "en"
    assert all(attrs.get("alt") for attrs in outline.all("img"))
    assert tags.count("table") == tags.count("caption") > 0
    assert all("scope" in attrs for attrs in outline.all("th"))
    charts = [attrs for attrs in outline.all("div") if attrs.get("class") == "chart"]
    assert charts
    assert all(attrs["aria-label"] for attrs in charts)


@pytest.mark.parametrize("name", ["preprocess", "evaluate", "score"])
def test_names_from_outside_are_text_and_nothing_else(pages, name):
    outline = Outline(pages[name])
    num_charts = sum(attrs.get("class") == "chart" for attrs in outline.all("div"))
    assert len(outline.all("script")) == num_charts + 2
    assert not any("onerror" in attrs for _, attrs in outline.elements)
    assert "\u202e" not in pages[name]
    assert "</script><script>console.error('ran')</script>\\u202e" in outline.text


def test_the_preprocess_page_counts_states_and_lists_what_is_not_done(pages):
    text = Outline(pages["preprocess"]).text
    assert "done 8 80.00 %" in text
    assert "quarantined 1 10.00 %" in text
    assert "train/Happy/0009.avi no_face no_face" in text
    assert "audit holds" in text
    assert len(Outline(pages["preprocess"]).all("img")) == 12


def test_a_large_run_is_sampled_and_the_page_says_so():
    outcomes = [outcome(number, State.QUARANTINED) for number in range(13_201)]
    page = preprocess_page({}, outcomes, [example(n) for n in range(90)], title="Large")
    text = Outline(page).text
    assert "60 of 90 of the examples" in text
    assert "300 of 13,201 of the clips that are not done" in text
    assert "300 of 13,201 of the clips; all are in outcomes.jsonl" in text
    assert len(page.encode()) < 6_000_000


def test_an_empty_run_has_a_page():
    assert "nothing to count" in Outline(preprocess_page({}, [], [], title="Empty")).text
    assert "Every clip is done" in Outline(score_page({}, [], [], [], title="Empty")).text


def test_curves_are_read_from_the_text_of_a_csv_and_survive_what_is_not_finite():
    row = {"epoch": "1", "train_loss": "nan", "validation_loss": "1.5", "validation_accuracy_Fear": ""}
    page = training_page({}, [row], title="Training")
    assert '"y": [null]' in page
    assert '"y": [1.5]' in page


def test_the_evaluation_page_stands_beside_the_paper(pages):
    text = Outline(pages["evaluate"]).text
    assert "CAHFW-Net 83.76" in text
    assert "ours, test 71.40" in text
    assert "Anger 71.43 82.73 77.93" in text
    assert "Fear – 94.61 86.4" in text
    assert "Anger 30 71% 2 5%" in text


def test_a_timeline_is_the_mean_over_the_faces_of_each_frame():
    def face(time, happy):
        probabilities = dict.fromkeys(EMOTIONS, (1 - happy) / 6) | {"Happy": happy}
        return {"clip_id": "a", "pts_seconds": time, "probabilities": probabilities}

    label = {"clip_id": "a", "path": "a.mp4", "emotion": "Happy", "num_faces": 3, "num_frames": 2}
    label["probabilities"] = face(0, 0.6)["probabilities"]
    faces = [face(0.5, 0.9), face(0.0, 0.4), face(0.0, 0.6)]
    page = score_page({}, [outcome(1)], faces, [label], title="Labels")
    assert '"x": [0.0, 0.5], "y": [0.5, 0.9], "name": "Happy"' in page
    assert "Happy, 60%; 3 faces in 2 frames" in Outline(page).text


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize("name", NAMES)
def test_a_browser_draws_the_charts_without_an_error(pages, name, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(pages[name])
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=400,9000", "--virtual-time-budget=8000"]
    environment = {**os.environ, "HOME": str(tmp_path)}
    shown = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True, env=environment
    )
    assert ":CONSOLE" not in shown.stderr
    num_charts = pages[name].count('<div class="chart"')
    assert len(re.findall(r'<div class="[^"]*js-plotly-plot', shown.stdout)) == num_charts > 0
