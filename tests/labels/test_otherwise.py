"""Labels looked at with another threshold are those that scoring with it would have given, and nothing is scored."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from made_labels import CLIPS, MadeClip, make_labels

from pipeline.labels.config import ExportConfig
from pipeline.labels.export import export
from pipeline.labels.otherwise import Otherwise, sql_otherwise
from pipeline.labels.source import open_labels
from pipeline.viewer.config import ViewConfig

pytestmark = pytest.mark.lengthy

# One is decided at first and not in the end; one's second person is in two of eight sampled frames.
MORE = [MadeClip("a.mp4", sureness=0.7), MadeClip("it's.mp4", emotions=(("Fear", "Fear"), ("Sad", "Happy")))]


@pytest.fixture(scope="module")
def videos_and_labels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("otherwise")
    make_labels(folder / "videos", folder / "plain", [*CLIPS, *MORE])
    return folder


def exported(labels: Path, output: Path, format_: str = "csv", **how: float | int) -> dict[str, bytes]:
    assert export(ExportConfig(labels=str(labels), format=format_, output=str(output), **how)) == 0
    files = (path for path in output.rglob("*") if path.is_file() and path.name != "export.json")
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


@pytest.mark.parametrize("below", [0.7, 1.0])
@pytest.mark.parametrize("format_", ["csv", "webvtt"])
def test_another_threshold_gives_what_scoring_with_it_gives(videos_and_labels, tmp_path, below, format_):
    labels = videos_and_labels / f"below-{below}"
    if not labels.exists():
        make_labels(videos_and_labels / "videos", labels, [*CLIPS, *MORE], draw=False, abstain_below=below)
    seen = exported(videos_and_labels / "plain", tmp_path / "seen", format_, abstain_below=below)
    assert seen == exported(labels, tmp_path / "scored", format_)
    assert exported(labels, tmp_path / "back", format_, abstain_below=0.0) == exported(
        videos_and_labels / "plain", tmp_path / "plain", format_
    )


def test_a_clip_is_found_by_the_emotion_that_it_has_then(videos_and_labels):
    labels = open_labels(str(videos_and_labels / "plain"), abstain_below=0.75)
    rows = {row["path"]: (row["emotion"], row["reason"]) for row in labels.database.rows("select * from clips")}
    assert rows["a.mp4"] == (None, "abstained")
    assert rows["other/nobody.mp4"][0] is None
    assert rows["other/nobody.mp4"][1] != "abstained"
    plain = open_labels(str(videos_and_labels / "plain"))
    same = open_labels(str(videos_and_labels / "plain"), abstain_below=0.0)
    found = [list(each.database.rows("select * from clips order by path")) for each in (plain, same)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("probabilities", "reason", "found"),
    [
        ((0.6, 0.4), None, ("it's", None)),
        ((0.6, 0.4), "abstained", ("it's", None)),
        ((0.45, 0.55), None, (None, "abstained")),
        ((0.1, 0.9), "replaced", ("b", "replaced")),
        ((0.1, 0.9), "stray", (None, "stray")),
        (None, "undecodable", (None, "undecodable")),
        ((0.6, 0.6), None, ("it's", None)),
    ],
)
def test_what_another_reason_says_of_a_clip_stays(probabilities, reason, found):
    classes = ("it's", "b")
    values = None if probabilities is None else dict(zip(classes, probabilities, strict=True))
    kind = pa.struct([(name, pa.float64()) for name in classes])
    highest = None if probabilities is None else max(probabilities)
    rows = pa.table(
        {
            "probabilities": pa.array([values], kind),
            "probability": pa.array([highest], pa.float64()),
            "reason": [reason],
            "emotion": ["b"],
        }
    )
    sql = sql_otherwise(Otherwise(abstain_below=0.6), classes)
    (row,) = duckdb.sql(f"select emotion, reason from (select * replace ({sql}) from rows)").fetchall()
    assert rows.num_rows == 1
    assert row == found


def test_a_person_of_too_few_faces_is_nobody(videos_and_labels):
    plain, longer = (open_labels(str(videos_and_labels / "plain"), min_track_faces=num) for num in (10, 11))
    for clip in plain.database.rows("select * from clips where num_faces > 0"):
        assert plain.persons(clip).equals(open_labels(str(videos_and_labels / "plain")).persons(clip))
        assert plain.faces(clip)["stray"].to_pylist() == [False] * clip["num_faces"]
        assert not longer.persons(clip).num_rows
        faces = longer.faces(clip)
        assert faces["stray"].to_pylist() == [True] * clip["num_faces"]
        assert faces["person"].to_pylist() == [None] * clip["num_faces"]
        assert longer.seen(clip)["num_tracks"] == 0
        assert longer.seen(clip)["emotion"] == clip["emotion"]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"abstain_below": 1.5}, "--abstain-below is 1.5; give a probability, 0 to 1"),
        ({"abstain_below": float("nan")}, "--abstain-below is nan"),
        ({"min_track_faces": 0}, "--min-track-faces is 0; give 1 or more"),
    ],
)
def test_what_is_no_threshold_is_one_line(how, told):
    with pytest.raises(ValueError, match=told):
        ViewConfig(labels="labels", **how)
    with pytest.raises(ValueError, match=told):
        ExportConfig(labels="labels", format="csv", output="out", **how)
