"""The page of a comparison, opened from its file in a browser."""

from __future__ import annotations

import pytest

from csd.tools.eval.commands.compare import main

from ...browser import asked_for, complaints, opened, overflow, resize
from .conftest import make_run
from .test_features import archive, write_graph

# About as long as the name of a run with a ladder may be, with no place to break it.
LONG = ("a_name_that_is_much_longer_than_a_phone_is_wide_" * 2)[:70]
IMAGES = "return [...document.images].map(i => i.complete && i.naturalWidth)"
HEADINGS = "return [...document.querySelectorAll('h1,h2')].map(h => h.textContent)"
# Where a heading ends: text that is cut on the right is no overflow where it is hidden.
RIGHT = "return Math.max(...[...document.querySelectorAll('h1,h2,p,svg,li')]" \
        ".map(e => e.getBoundingClientRect().right))"  # fmt: skip


@pytest.fixture
def page(tiny_bundle, tmp_path):
    """The page of two runs, one of a long name, with images and a floor."""
    for name, *argv in ((LONG, "--ladder"), ("b", "--cfg=3")):
        make_run(tiny_bundle, tmp_path / "e.db", name, *argv, images=12)
    write_graph(tmp_path / "g.onnx", side=16)
    archive(tmp_path / "r.npz", side=8)
    given = [f"--db={tmp_path / 'e.db'}", f"--features={tmp_path / 'g.onnx'}", "--show=4",
             f"--real={tmp_path / 'r.npz'}", "--quiet", "--threads=1"]  # fmt: skip
    assert main([LONG, "b", *given, f"--html={tmp_path / 'r.html'}"]) == 0
    return tmp_path / "r.html"


@pytest.mark.slow
def test_a_page_is_whole_on_a_phone_and_on_a_desk(page, tmp_path):
    with opened(tmp_path / "profile") as driver:
        for width in (390, 1280):
            resize(driver, width)
            asked_for(driver)
            driver.get(page.as_uri())
            assert asked_for(driver) == [page.as_uri()]
            assert complaints(driver) == []
            assert overflow(driver) == 0
            assert driver.execute_script(RIGHT) <= width
            sizes = driver.execute_script(IMAGES)
            assert sizes == [8] * len(sizes)
            assert len(sizes) >= 4 * 2
            headings = driver.execute_script(HEADINGS)
            assert headings[0].startswith(f"{LONG} and ")
            assert {"g", "Speed, and pairs of one seed", "Images by number",
                    "Options and versions"} <= set(headings)  # fmt: skip
