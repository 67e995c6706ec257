"""The study of films makes films that play, and asks for moments of them."""

import json

import av
import pytest

from benchmarks.films import FILMS, FilmsConfig, films, make_film


@pytest.mark.lengthy
def test_each_film_is_asked_for_and_told(tmp_path):
    found = films(FilmsConfig(study="films", output=str(tmp_path), minutes=1, width=64, s3=False))
    assert [path.name for path in tmp_path.iterdir()] == ["films.json"]
    assert [(row["film"], row["place"]) for row in found["films"]] == [(name, "disk") for name in FILMS]
    assert min(row[step]["cpu_seconds"] for row in found["films"] for step in ("opened", "sought")) > 0
    assert json.loads((tmp_path / "films.json").read_text())["films"] == found["films"]


def test_a_film_goes_on_after_its_first_minute(tmp_path):
    make_film(tmp_path / "film.mpg", minutes=2, width=64)
    with av.open(str(tmp_path / "film.mpg")) as container:
        times = sorted(packet.pts * packet.time_base for packet in container.demux(video=0) if packet.pts is not None)
    assert len(times) == 2 * 60 * 25
    assert float(times[-1] - times[0]) == pytest.approx(120 - 1 / 25, abs=0.01)
