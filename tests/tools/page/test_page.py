"""The page in a browser, on the shipped pair."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from csd.tools.png import decode_png

from ...browser import asked_for, complaints, opened, overflow, resize
from ...helpers import leftovers
from .visit import Visitor, served


def pixels(source: str) -> np.ndarray:
    return decode_png(base64.b64decode(source.removeprefix("data:image/png;base64,")))


def is_tinted(source: str) -> bool:
    """Whether a picture has a colour: images of the shipped pair are grey."""
    image = pixels(source)
    return bool((image != image[..., :1]).any())


@pytest.mark.slow
def test_a_visit_from_the_first_image_to_ctrl_c(zoo_bundle, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    with opened(tmp_path / "profile") as driver, served(zoo_bundle, home) as page:
        visitor = Visitor(driver, page.url)
        visitor.fill("class", "bag")
        visitor.pick_mode("csd")
        visitor.generate()
        visitor.wait("done")
        first, figures = visitor.picture(), visitor.figures
        assert pixels(first).std() > 20
        assert not is_tinted(first)
        assert len(visitor.seen()) > 1  # token by token
        assert is_tinted(visitor.picture("verdicts"))
        assert pixels(visitor.picture("difference")).any()
        for word in ("seconds", "acceptance", "%", "times as fast", "PSNR"):
            assert word in figures
        visitor.finish()

        # The target's image is the same whatever is beside it, and another one of another seed.
        target = visitor.picture("target")
        visitor.pick_mode("target")
        visitor.generate()
        visitor.wait("done")
        assert visitor.picture() == visitor.picture("target") == target != first
        assert "the same image" in visitor.figures
        visitor.finish()
        visitor.fill("seed", 1)
        visitor.fill("head", "sequential")
        visitor.generate()
        visitor.wait("done")
        assert visitor.picture() != target
        visitor.finish()

        visitor.seen()
        visitor.generate()
        visitor.wait("AR step")
        visitor.stop()
        visitor.wait("stopped")
        visitor.finish()
        assert visitor.figures == ""
        assert len(visitor.seen()) < 49

        visitor.pick_mode("csd")
        visitor.fill("gamma", 99)
        visitor.generate()
        assert visitor.wait("gamma is 99").startswith("gamma is 99: this bundle takes 1 to 32")
        visitor.finish()

        resize(driver, 390)
        assert overflow(driver) == 0
        assert [url for url in asked_for(driver) if not url.startswith(page.url)] == []
        assert complaints(driver) == []
        policy = driver.execute_script(
            "return fetch('https://fonts.googleapis.com/css').then(() => 'asked', () => 'refused')"
        )
        assert policy == "refused"
        assert "Content Security Policy" in complaints(driver)[0]
    assert page.process.returncode == 130
    assert page.stderr.splitlines() == [
        "csd-demo: error: interrupted; nothing was left half-written"
    ]
    assert leftovers(home) == []
