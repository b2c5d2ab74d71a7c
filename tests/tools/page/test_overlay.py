from __future__ import annotations

import numpy as np

from csd.tools.page.overlay import (
    ACCEPTED,
    COLOURS,
    RESAMPLED,
    UNMARKED,
    css_colour,
    marked,
    no_marks,
    tinted,
)


def test_verdicts_become_marks_and_drafts_lose_them():
    before = no_marks(6)
    judged = marked(before, np.array([4, 0, 2]), *np.array([[1, 0, 0], [0, 1, 0]], dtype=bool))
    assert judged.tolist() == [RESAMPLED, 0, UNMARKED, 0, ACCEPTED, 0]
    nothing = np.zeros(1, dtype=bool)
    assert marked(judged, np.array([4]), nothing, nothing).tolist() == [RESAMPLED, 0, 0, 0, 0, 0]
    assert not before.any()


def test_a_token_tints_its_patch_alone():
    image = np.full((4, 4, 3), 120, dtype=np.uint8)
    shown = tinted(image, np.array([UNMARKED, ACCEPTED, RESAMPLED, UNMARKED], dtype=np.uint8))
    np.testing.assert_array_equal(shown[:2, :2], image[:2, :2])
    np.testing.assert_array_equal(shown[2:, 2:], image[2:, 2:])
    accepted, resampled = shown[:2, 2:], shown[2:, :2]
    for patch, mark in ((accepted, ACCEPTED), (resampled, RESAMPLED)):
        assert len(np.unique(patch.reshape(-1, 3), axis=0)) == 1
        toward = np.sign(patch[0, 0].astype(int) - 120)
        np.testing.assert_array_equal(toward, np.sign(COLOURS[mark] - 120))
    assert css_colour(ACCEPTED) == "#2563eb"
