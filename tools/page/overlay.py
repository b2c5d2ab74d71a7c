"""Which tokens of an image the target accepted or resampled, as colours over it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ...runtime.arrays import Bool, Int64

Image = NDArray[np.uint8]
Marks = NDArray[np.uint8]

# What a mark says; a token without a verdict has none of the two.
UNMARKED, ACCEPTED, RESAMPLED = 0, 1, 2
# By mark. Told apart by those who see no red or no green too.
COLOURS = np.array([(0, 0, 0), (37, 99, 235), (245, 158, 11)], dtype=np.float64)
# Of the colour in what is shown, beside the image itself.
SHARE = 0.45


def no_marks(tokens: int) -> Marks:
    """Marks `[L]` of an image of which nothing is known."""
    return np.full(tokens, UNMARKED, dtype=np.uint8)


def marked(marks: Marks, positions: Int64, accepted: Bool, resampled: Bool) -> Marks:
    """Return the marks after an event of a stream, as new ones.

    Args:
        marks: before it, `[L]`.
        positions: that it is about, `[P]`; those without a verdict lose their mark.
        accepted: which of them were accepted, `[P]`.
        resampled: which of them were resampled, `[P]`.
    """
    after = marks.copy()
    after[positions] = UNMARKED
    after[positions[accepted]] = ACCEPTED
    after[positions[resampled]] = RESAMPLED
    return after


def tinted(image: Image, marks: Marks) -> Image:
    """An image `[H, W, 3]` with the patches of marked tokens in their colours.

    Args:
        image: square, its side a multiple of that of the tokens' square.
        marks: `[L]`, row by row.
    """
    side = math.isqrt(len(marks))
    scale = image.shape[0] // side
    patches = marks.reshape(side, side).repeat(scale, axis=0).repeat(scale, axis=1)
    share = np.where(patches == UNMARKED, 0.0, SHARE)[..., None]
    return np.rint(image * (1 - share) + COLOURS[patches] * share).astype(np.uint8)


def css_colour(mark: int) -> str:
    """The colour of a mark, as a legend has it."""
    return "#" + "".join(f"{int(value):02x}" for value in COLOURS[mark])
