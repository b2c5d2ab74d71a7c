from __future__ import annotations

import numpy as np
import pytest

from csd.runtime.options import GenerateOptions
from csd.tools.page.controls import Choice
from csd.tools.page.overlay import no_marks, tinted
from csd.tools.page.stage import stage
from csd.tools.page.trial import Run, Shown, watch

CHOICE = Choice(3, 1, GenerateOptions(mode="csd", gamma=4, num_iter=8, head_steps=4))


def test_the_setting_is_tinted_as_it_comes_and_clean_in_the_end(tiny_session):
    shown = [*watch(tiny_session, CHOICE, Run())]
    alone = tiny_session.generate([3], CHOICE.options, seed=1)
    target = tiny_session.generate([3], CHOICE.of_target.options, seed=1)
    end = shown[-1]
    np.testing.assert_array_equal(end.picture, alone.images[0])
    np.testing.assert_array_equal(end.beside, target.images[0])
    assert (end.made.options.mode, end.target.options.mode) == ("csd", "target")
    assert (end.verdicts != end.picture).any()
    # What was tinted last while it was decoded is what stays to be looked at.
    coming = [one for one in shown if one.made is None]
    np.testing.assert_array_equal(coming[-1].picture, end.verdicts)
    assert [one.doing for one in coming].count("csd: AR step 8 of 8") == 1
    assert len({one.picture.tobytes() for one in coming}) > 3
    text = stage(end)
    assert text.count("<img ") == 4
    assert "times as fast" in text
    assert "http" not in text


def test_nothing_is_tinted_where_nothing_is_drafted(tiny_session):
    *_, end = watch(tiny_session, CHOICE.of_target, Run())
    assert end.verdicts is None
    np.testing.assert_array_equal(end.picture, end.beside)
    assert "the same image" in stage(end)
    np.testing.assert_array_equal(tinted(end.picture, no_marks(16)), end.picture)


@pytest.mark.parametrize("steps", [0, 3])
def test_stop_cancels_before_and_in_the_middle(tiny_session, steps):
    run = Run()
    watched = watch(tiny_session, CHOICE, run)
    for _ in range(steps):
        next(watched)
    run.stop()
    (end,) = watched
    assert (end.doing, end.made) == ("stopped", None)
    assert len(tiny_session.generate([3], CHOICE.options).images) == 1  # the session is free


def test_an_error_stands_in_the_page_as_text():
    text = stage(Shown("x"), "gamma is <b>: give 1")
    assert '<p id="csd-status" role="status" class="csd-error">gamma is &lt;b&gt;: give 1<' in text
