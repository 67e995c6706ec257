"""Viewers and a browser."""

from __future__ import annotations

import shutil

import pytest
from made_labels import make_labels
from playwright.sync_api import sync_playwright
from viewing import CLIPS, viewing

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Folders of videos and labels, to be read only."""
    folder = tmp_path_factory.mktemp("drawn")
    make_labels(folder / "videos", folder / "labels", CLIPS)
    return folder


@pytest.fixture(scope="session")
def viewer(drawn):
    """A viewer of labels that nobody corrects."""
    with viewing(drawn / "labels") as found:
        yield found


@pytest.fixture
def own_viewer(tmp_path):
    """A viewer of one test's own."""
    make_labels(tmp_path / "videos", tmp_path / "labels", CLIPS[:2])
    with viewing(tmp_path / "labels") as found:
        yield found


@pytest.fixture(scope="session")
def chromium():
    if BROWSER is None:
        pytest.skip("needs chromium")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium):
    """Opens an address as a person does; the test fails if anything is said on the page's console."""
    said, contexts = [], []

    def open_page(link, *, quiet=True, **options):
        contexts.append(chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        page = contexts[-1].new_page()
        # What the tests themselves do to canvases is no fault of the page.
        if quiet:
            page.on("console", lambda each: "willReadFrequently" in each.text or said.append(each.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(link)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not said
