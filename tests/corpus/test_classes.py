"""Classes other than CAER's seven: what folders and manifests call them, and what is none."""

import re
from pathlib import Path

import pytest

from pipeline.corpus.read import read_corpus
from pipeline.corpus.types import CorpusError
from pipeline.records.vocabulary import EMOTIONS, FOUND, UsageError, class_named, classes_found

EIGHT = (*EMOTIONS, "Contempt")
COMPOUND = ("Happily Surprised", "Happily Disgusted", "Sadly Fearful")


def files(folder: Path, *names: str) -> str:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number)
    return str(folder)


def labels(url: str, **options) -> dict[str, str | None]:
    return {clip.path: clip.label for clip in read_corpus(url, **options).clips}


@pytest.mark.parametrize(
    ("said", "classes", "meant"),
    [
        ("happiness", EMOTIONS, "Happy"),
        ("Anger ", EMOTIONS, "Anger"),
        (" SURPRISED", EMOTIONS, "Surprise"),
        ("contempt", EIGHT, "Contempt"),
        ("Happy", ("anger", "happiness"), "happiness"),
        ("joy", ("joy", "happiness"), "joy"),
        ("happy", ("joy", "happiness"), None),
        ("Contempt", EMOTIONS, None),
        ("", EMOTIONS, None),
        ("happily surprised", COMPOUND, "Happily Surprised"),
    ],
)
def test_a_name_means_one_class_or_none(said, classes, meant):
    assert class_named(said, classes) == meant


def test_classes_that_are_found_are_the_seven_first():
    assert classes_found(["contempt", "sadness", "Angry", "boredom", "anger ", "Boredom"]) == (
        "Anger",
        "Sad",
        "Boredom",
        "contempt",
    )


@pytest.mark.parametrize("classes", [EIGHT, FOUND])
def test_folders_name_classes_of_ones_own(tmp_path, classes):
    url = files(tmp_path, "Contempt/a.mp4", "happiness/b.mp4", "anger /c.mp4", "d.mp4")
    assert labels(url, classes=classes) == {
        "Contempt/a.mp4": "Contempt",
        "happiness/b.mp4": "Happy",
        "anger /c.mp4": "Anger",
        "d.mp4": None,
    }


@pytest.mark.parametrize("root", ["", "set/"])
def test_caers_layout_has_classes_of_ones_own(tmp_path, root):
    names = [f"{root}{split}/{name}/1.avi" for split in ("train", "val", "test") for name in COMPOUND]
    url = files(tmp_path, *names)
    for classes in (COMPOUND, FOUND):
        corpus = read_corpus(url, classes=classes)
        assert corpus.layout == "caer"
        assert {clip.label for clip in corpus.clips} == set(COMPOUND)
        assert {clip.split for clip in corpus.clips} == {"train", "validation", "test"}


def test_a_manifest_names_classes_of_ones_own(tmp_path):
    files(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "m.csv").write_text("url,label\na.mp4,contempt\nb.mp4, happiness \nc.mp4,\n")
    found = {"a.mp4": "Contempt", "b.mp4": "Happy", "c.mp4": None}
    assert labels(str(tmp_path / "m.csv"), classes=EIGHT) == found
    assert labels(str(tmp_path / "m.csv"), classes=FOUND) == {**found, "a.mp4": "contempt"}
    # Whoever does not need labels is not stopped by one.
    assert labels(str(tmp_path / "m.csv"), classes=None) == {**found, "a.mp4": None}


def test_every_label_that_is_no_class_is_listed_with_the_cure(tmp_path):
    files(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    (tmp_path / "m.csv").write_text("url,label\na.mp4,Sad\nb.mp4,Contempt\nc.mp4,Very bored\nd.mp4,Contempt\n")
    with pytest.raises(CorpusError) as error:
        read_corpus(str(tmp_path / "m.csv"))
    assert re.search(r"line 3: label 'Contempt' is unknown, and so is 'Very bored'; use one of Anger", str(error.value))
    assert "--classes" in str(error.value)


def test_a_folder_of_caer_that_is_no_class_is_listed_with_the_cure(tmp_path):
    url = files(tmp_path, "train/Sad/1.avi", "train/Contempt/2.avi", "test/boredom/3.avi")
    with pytest.raises(CorpusError, match=r"no class: 'Contempt', 'boredom'; the classes are .*--classes"):
        read_corpus(url)


def test_folders_beside_named_classes_are_an_error(tmp_path):
    url = files(tmp_path, "Contempt/a.mp4", "Sad/b.mp4", "other/c.mp4")
    with pytest.raises(CorpusError, match=r"its folders 'other' are no class; the classes are .*Contempt"):
        read_corpus(url, classes=EIGHT)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.mp4",), "names no class"),
        (("Sad/a.mp4",), "give 2 to 64 names"),
        (("Sad/a.mp4", "<b>/b.mp4"), "has '<b>'; a class has up to 40 letters"),
        (("Sad/a.mp4", "valence/b.mp4"), "has 'valence'"),
        (("one/a.mp4", "ONE/b.mp4"), "give 2 to 64 names"),
    ],
)
def test_what_is_found_must_be_classes(tmp_path, names, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        read_corpus(files(tmp_path, *names), classes=FOUND)
