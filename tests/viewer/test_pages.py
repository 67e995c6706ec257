"""The pages as a person uses them, in Chromium."""

import threading

import numpy as np
import pytest
from made_labels import MadeClip, box_at, make_labels
from viewing import until, viewing

from pipeline.labels.source import Labels

# Of the frame that is on the screen: its time, the box of the bright square in it, and that of the outline of person 1
# (#6a3d9a) in what is drawn over it; both in pixels of the video.
SEEN = """() => {
  const video = document.getElementById("video"), over = document.getElementById("boxes");
  const around = (data, width, fits) => {
    let [left, top, right, bottom] = [1e9, 1e9, -1, -1];
    for (let place = 0; place < data.length; place += 4) {
      if (!fits(data[place], data[place + 1], data[place + 2], data[place + 3])) continue;
      const x = (place / 4) % width, y = Math.floor(place / 4 / width);
      left = Math.min(left, x); right = Math.max(right, x); top = Math.min(top, y); bottom = Math.max(bottom, y);
    }
    return right < 0 ? null : [left, top, right + 1, bottom + 1];
  };
  const [width, height] = [video.videoWidth, video.videoHeight];
  const canvas = new OffscreenCanvas(width, height), pen = canvas.getContext("2d");
  pen.drawImage(video, 0, 0);
  const isWhite = (r, g, b) => r > 170 && g > 170 && b > 170;
  const square = around(pen.getImageData(0, 0, width, height / 2).data, width, isWhite);
  const data = over.getContext("2d").getImageData(0, 0, over.width, over.height).data;
  const near = (value, wanted) => Math.abs(value - wanted) < 6;
  const outline = around(data, over.width, (r, g, b, a) => a > 250 && near(r, 106) && near(g, 61) && near(b, 154));
  const [across, down] = [width / over.width, height / over.height];
  return { square, outline: outline && outline.map((value, side) => value * (side % 2 ? down : across)) };
}"""
# A busy browser leaves frames out: then once more, at half the speed.
PLAYED = f"""() => new Promise(resolve => {{
  const video = document.getElementById("video"), seen = [], look = {SEEN};
  const end = () => {{
    if (seen.length >= 8 || video.playbackRate < .1) {{ video.pause(); resolve(seen); return; }}
    video.playbackRate /= 2;
    video.currentTime = 0;
    video.play();
  }};
  const next = (_, facts) => {{
    if (!video.seeking) seen.push({{ time: facts.mediaTime, ...look() }});
    video.requestVideoFrameCallback(next);
    if (facts.mediaTime > 1.7 && !video.seeking && !video.ended) end();
  }};
  video.addEventListener("ended", end);
  video.requestVideoFrameCallback(next);
  document.getElementById("play").click();
}})"""


def open_clip(browse, viewer, path, tail="", **options):
    page = browse(f"{viewer.link}&clip={viewer.ids()[path]}{tail}", **options)
    until(lambda: page.evaluate("document.getElementById('video')?.readyState ?? 0") >= 2)
    until(lambda: page.evaluate(SEEN)["outline"])
    return page


def shown_at(path, seconds):
    """The square of person 1, this long after the start; the first frame of an AVI lasts two."""
    return box_at(0, max(0, round(seconds * 25) - (path == "show/one.avi")))


@pytest.mark.lengthy
@pytest.mark.parametrize("path", ["show/one.avi", "show/two.mp4", "show/four.ts", "other/three.mkv"])
def test_while_it_plays_each_box_lies_on_the_face_of_its_frame(viewer, browse, path):
    page = open_clip(browse, viewer, path)
    # Past its middle person 1 of this clip is Sad, whose colour is that of the outline.
    seen = [each for each in page.evaluate(PLAYED) if path != "show/two.mp4" or each["time"] < 0.85]
    assert len(seen) >= 4
    for each in seen:
        assert abs(each["outline"][0] - shown_at(path, each["time"]).x_min) <= 4, each
        # A browser that has no time may show the next frame before this test has read this one, and none before it.
        assert each["square"][0] >= each["outline"][0] - 5, each
    assert any(np.allclose(each["square"], each["outline"], atol=5) for each in seen)
    assert np.ptp([each["outline"][0] for each in seen]) > 30  # It moved.


@pytest.mark.lengthy
@pytest.mark.parametrize(("path", "seconds"), [("show/one.avi", 1.6), ("show/four.ts", 1.6), ("show/two.mp4", 0.4)])
def test_a_link_leads_to_a_moment(viewer, browse, path, seconds):
    facts = viewer.get(f"/api/clips/{viewer.ids()[path]}/video").json()
    page = open_clip(browse, viewer, path, f"&t={facts['start'] + seconds}")
    expected = shown_at(path, seconds)

    def lies_there():
        seen = page.evaluate(SEEN)
        return seen["outline"] and abs(seen["outline"][0] - expected.x_min) <= 4 and seen["square"]

    square = until(lies_there)
    assert abs(square[0] - expected.x_min) <= 4
    assert "token" not in page.url


# A busy browser tells late of the frame before a seek, and then leaves out the word of the frame that was sought.
LATE = """() => {
  const own = HTMLVideoElement.prototype.requestVideoFrameCallback;
  HTMLVideoElement.prototype.requestVideoFrameCallback = function (told) {
    return own.call(this, (now, facts) => {
      told(now, Math.abs(facts.mediaTime - .4) < .01 ? { ...facts, mediaTime: 0 } : facts);
    });
  };
}"""


@pytest.mark.lengthy
def test_boxes_follow_where_the_browser_leaves_out_the_word_of_a_frame(viewer, browse):
    page = browse(viewer.link)
    page.evaluate(LATE)
    page.locator("#results a", has_text="show/two.mp4").click()
    until(lambda: page.evaluate("document.getElementById('video')?.readyState ?? 0") >= 2)
    until(lambda: page.evaluate(SEEN)["outline"])
    page.evaluate("""() => {
      const bar = document.getElementById("seek");
      bar.value = .4;
      bar.dispatchEvent(new Event("input"));
    }""")
    expected = shown_at("show/two.mp4", 0.4)
    until(lambda: abs((page.evaluate(SEEN)["outline"] or [0])[0] - expected.x_min) <= 4)


@pytest.mark.lengthy
def test_a_click_on_a_strip_seeks_and_a_key_steps_to_a_sampled_frame(viewer, browse):
    page = open_clip(browse, viewer, "show/one.avi")
    strip = page.locator(".strips canvas").first
    width = strip.bounding_box()["width"]
    strip.click(position={"x": width * 0.6, "y": 5})
    until(lambda: 2.2 < page.evaluate("document.getElementById('video').currentTime") < 2.6)
    until(lambda: "interpolated" in page.content() and page.locator("#moment-note").inner_text() != "")
    page.keyboard.press(".")
    until(lambda: page.locator("#moment-note").inner_text().startswith("sampled frame"))
    assert page.locator(".seven").inner_text().count("%") == 7
    page.keyboard.press("ArrowDown")
    assert page.locator("#person").input_value() == "1"


# Of the first strip, as shares of its width: where it is dark from top to bottom, and where its top has a colour.
STRIP = """([red, green, blue]) => {
  const strip = document.querySelector(".strips canvas"), { width, height } = strip;
  const { data } = strip.getContext("2d").getImageData(0, 0, width, height), dark = [], said = [];
  for (let x = 0; x < width; x += 1) {
    const at = y => [...data.slice(4 * (y * width + x), 4 * (y * width + x) + 4)];
    const isDark = y => at(y)[3] > 99 && Math.max(...at(y).slice(0, 3)) < 99;
    if (Array.from({ length: height }, (_, y) => y).every(isDark)) dark.push(x / width);
    if (at(1).join() === [red, green, blue, 255].join()) said.push(x / width);
  }
  return { dark, said };
}"""


@pytest.mark.lengthy
def test_strips_show_the_cuts_and_what_people_said(tmp_path, browse):
    make_labels(tmp_path / "videos", tmp_path / "labels", [MadeClip("a.avi", cut=60, num_frames=100)])
    with viewing(tmp_path / "labels") as found:
        (clip,) = found.ids().values()
        cut = found.get(f"/api/clips/{clip}").json()["cuts"][0]
        fear = found.get("/api/collection").json()["colours"][2]
        colour = [int(fear[place : place + 2], 16) for place in (1, 3, 5)]
        page = open_clip(browse, found, "a.avi")
        seen = page.evaluate(STRIP, colour)
        assert seen["said"] == []
        assert min(seen["dark"]) < 0.01  # The mark of the moment.
        assert max(seen["dark"]) == pytest.approx(cut / 4, abs=0.01)
        page.locator("#annotator").fill("Ada")
        for edge, value in (("from", "1"), ("to", "2")):
            page.locator(f"#{edge}").fill(value)
        page.locator("#says button", has_text="Fear").click()
        until(lambda: page.evaluate(STRIP, colour)["said"])
        said = page.evaluate(STRIP, colour)["said"]
        assert (min(said), max(said)) == pytest.approx((0.25, 0.5), abs=0.01)
        page.locator("#corrections button").click()
        until(lambda: not page.evaluate(STRIP, colour)["said"])
        page.goto("about:blank")


@pytest.mark.lengthy
def test_two_models_are_told_apart_on_both_pages(tmp_path, browse):
    videos, labels = tmp_path / "videos", tmp_path / "labels"
    make_labels(videos, labels, [MadeClip("a.mp4", codec="libx264"), MadeClip("b.mp4", codec="libx264", num_frames=40)])
    others = [MadeClip("a.mp4", codec="libx264", emotions=(("Fear", "Fear"),)), MadeClip("b.mp4", num_frames=40)]
    make_labels(videos, labels, others, sha256="fedcba987654" + "0" * 52, draw=False)
    with viewing(labels) as found:
        page = browse(found.link)
        until(lambda: page.locator("#results tbody tr").count() == 2)
        page.locator("#more summary").click()
        page.locator("#filters [name=differ]").select_option("1")
        until(lambda: page.locator("#results tbody tr").count() == 1)
        assert page.locator("#results tbody td .chip").all_inner_texts() == ["Happy", "Fear"]
        page.locator("#results tbody a").click()
        until(lambda: page.locator(".strips canvas").count() == 2)
        models = page.locator(".strips .model").all_inner_texts()
        assert models == ["Model 0123456789ab", "Model fedcba987654"]
        told = [each.get_attribute("aria-label") for each in page.locator(".strips canvas").all()]
        assert "Happy" in told[0]
        assert told[1] == "Person 1 over time: Fear 100 %"
        page.goto("about:blank")


@pytest.mark.lengthy
def test_a_clip_opens_at_its_first_face(tmp_path, browse):
    make_labels(tmp_path / "videos", tmp_path / "labels", [MadeClip("a.mp4", codec="libx264", first=30)])
    with viewing(tmp_path / "labels") as found:
        page = open_clip(browse, found, "a.mp4")
        until(lambda: page.locator("#moment-note").inner_text().startswith("sampled frame at 0:01.20"))
        until(lambda: abs(page.evaluate(SEEN)["outline"][0] - box_at(0, 30).x_min) <= 4)
        page.goto("about:blank")


@pytest.mark.lengthy
def test_a_correction_by_keys_survives_a_reload_and_is_taken_back(own_viewer, browse):
    page = open_clip(browse, own_viewer, "show/one.avi", "&t=1.0")
    page.locator("#annotator").fill("Ada Lovelace")
    page.keyboard.press("Escape")
    page.keyboard.press("[")
    page.keyboard.press("3")
    until(lambda: "Fear: person 1" in page.locator("#corrections").inner_text())
    page.reload()
    until(lambda: "Fear: person 1" in page.locator("#corrections").inner_text())
    assert "Ada Lovelace" in page.locator("#corrections").inner_text()
    assert page.locator("#annotator").input_value() == "Ada Lovelace"
    page.keyboard.press("x")
    until(lambda: page.locator("#corrections li").count() == 2)
    page.keyboard.press("u")
    until(lambda: page.locator("#corrections li").count() == 1)
    (said,) = own_viewer.get(f"/api/clips/{own_viewer.ids()['show/one.avi']}/corrections").json()
    assert (said["label"], said["track_index"], said["end_pts_seconds"]) == ("Fear", 0, None)
    assert said["start_pts_seconds"] == pytest.approx(1.0, abs=0.05)


@pytest.mark.lengthy
def test_two_annotators_see_each_other_and_lose_nothing(own_viewer, browse):
    pages = [open_clip(browse, own_viewer, "show/two.mp4") for _ in range(2)]
    for page, name, button in zip(pages, ("Ada", "Ben"), ("Sad", "Cannot tell"), strict=True):
        page.locator("#annotator").fill(name)
        page.locator("#says button", has_text=button).click()
        until(lambda page=page, name=name: name in page.locator("#corrections").inner_text())
    text = pages[1].locator("#corrections").inner_text()
    assert "Ada" in text
    assert "Ben" in text
    assert pages[1].locator("#corrections button").count() == 1  # Each takes back only what is his own.


@pytest.mark.lengthy
def test_the_collection_filters_counts_and_comes_back(viewer, browse):
    page = browse(viewer.link)
    until(lambda: page.locator("#results tbody tr").count() == 6)
    page.locator("#counts button", has_text="Anger").click()
    until(lambda: page.locator("#results tbody tr").count() == 1)
    assert "1 to 1 of 1 that fit, of 6 clips" in page.locator("#found").inner_text()
    page.locator("#results a").click()
    until(lambda: page.locator("h1").inner_text() == "show/one.avi")
    page.go_back()
    until(lambda: page.locator("#results tbody tr").count() == 1)
    page.locator("#filters [type=reset]").click()
    until(lambda: page.locator("#results tbody tr").count() == 6)
    page.locator("#filters [name=sort]").select_option("-entropy")
    until(lambda: page.locator("#results tbody tr a").first.inner_text() == "show/two.mp4")


@pytest.mark.lengthy
def test_the_wall_has_a_picture_of_each_clip_that_has_one(viewer, browse):
    page = browse(f"{viewer.link}&view=wall")
    until(lambda: page.locator(".wall li").count() == 6)
    until(lambda: page.evaluate("[...document.querySelectorAll('.wall img')].every(each => each.naturalWidth > 0)"))
    assert page.locator(".wall img").count() == 5


@pytest.mark.lengthy
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen_by_day_and_night(viewer, browse, width, scheme):
    options = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme}
    page = open_clip(browse, viewer, "show/one.avi", **options)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#back").click()
    until(lambda: page.locator("#results tbody tr").count() == 6)
    page.locator("#more summary").click()
    page.locator("#drift summary").click()
    until(lambda: page.locator(".drift tbody tr").count() == 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 26)"
    )


@pytest.mark.lengthy
def test_every_control_has_a_name(viewer, browse):
    page = open_clip(browse, viewer, "show/one.avi")
    nameless = """() => [...document.querySelectorAll("button, input, select, canvas, a")].filter(each =>
      each.getClientRects().length && !(each.ariaLabel || each.innerText?.trim() || each.title || each.labels?.length)
    ).map(each => each.outerHTML)"""
    assert page.evaluate(nameless) == []
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()


@pytest.mark.lengthy
def test_the_keys_go_to_the_page_that_is_shown(own_viewer, browse):
    page = browse(own_viewer.link)
    until(lambda: page.locator("#results tbody a").count() == 2)
    page.locator("#results tbody a").first.focus()
    page.keyboard.press("Enter")
    until(lambda: page.locator(".strips canvas").count() == 2)
    until(lambda: page.evaluate("document.activeElement.id") == "main")
    page.locator("#seek").focus()
    until(lambda: page.locator("#moment-note").inner_text().startswith("sampled"))
    page.keyboard.press("ArrowRight")  # 2 s on, as everywhere on the page.
    until(lambda: page.locator("#time").inner_text().startswith("0:02."))
    page.locator("#annotator").fill("Ada")
    page.keyboard.press("Escape")
    page.keyboard.press("9")
    until(lambda: "There is no emotion 9" in page.locator("#said").inner_text())
    page.keyboard.press("2")
    until(lambda: page.locator("#corrections button").count() == 1)
    assert page.locator("#corrections button").get_attribute("aria-label").startswith("Undo Disgust: person 1")
    page.keyboard.press("Escape")
    until(lambda: page.locator("#results tbody a").count() == 2)
    until(lambda: page.evaluate("document.activeElement.id") == "main")


@pytest.mark.lengthy
def test_what_is_still_read_is_told(tmp_path, browse, monkeypatch):
    for name in ("WORTH_BEGINNING", "FIRST_UNITS"):
        monkeypatch.setattr(f"pipeline.labels.index.{name}", 1)
    begun, go_on = threading.Event(), threading.Event()
    finish = Labels.finish

    def wait_and_finish(labels):
        begun.set()
        go_on.wait(timeout=60)
        finish(labels)

    for place in range(2):
        clips = [MadeClip(f"{each}.mp4", num_frames=20 + each) for each in range(place + 1)]
        make_labels(tmp_path / "videos", tmp_path / "labels", clips)
    monkeypatch.setattr(Labels, "finish", wait_and_finish)
    with viewing(tmp_path / "labels") as found:
        page = browse(found.link)
        until(lambda: page.locator("#results tbody tr").count() == 1)
        assert begun.wait(timeout=20)
        until(lambda: "some of them" in page.locator("#reading").inner_text())
        go_on.set()
        until(lambda: page.locator("#results tbody tr").count() == 2)
        assert page.locator("#reading").is_hidden()


@pytest.mark.lengthy
def test_a_path_is_text_whatever_it_says(tmp_path, browse):
    """Neither does it lead a reader by what prints nothing, such as what turns the direction of letters."""
    name = "<img src=x onerror=alert(1)>&amp;{}4pm.mp4"
    made = [MadeClip(name.format("\u202e\u009b2J\x1b]8;;x\x07"), codec="libx264")]
    name = name.format(r"\u202e\u009b2J\u001b]8;;x\u0007")
    make_labels(tmp_path / "videos", tmp_path / "labels", made)
    with viewing(tmp_path / "labels") as found:
        page = browse(found.link)
        until(lambda: page.locator("#results tbody a").count() == 1)
        assert page.locator("#results tbody a").inner_text() == name
        page.locator("#results tbody a").click()
        until(lambda: page.locator("h1").inner_text() == name)
        assert page.title() == f"{name} – Labels"
        page.goto("about:blank")


@pytest.mark.lengthy
def test_a_video_that_is_gone_leaves_its_strips(tmp_path, browse):
    make_labels(tmp_path / "videos", tmp_path / "labels", [MadeClip("a.mp4", codec="libx264")])
    (tmp_path / "videos" / "a.mp4").unlink()
    with viewing(tmp_path / "labels") as found:
        clip = found.get("/api/clips").json()["rows"][0]["clip_id"]
        assert "--input" in found.get(f"/api/clips/{clip}/video").json()["error"]
        page = browse(f"{found.link}&clip={clip}", quiet=False)
        until(lambda: "--input" in page.locator("#note").inner_text())
        until(lambda: page.locator(".strips canvas").count() == 1)
        page.goto("about:blank")
