"""What the decode loop did to a canvas between two steps of its generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..arrays import Bool, Int64

ChangeKind = Literal["decoded", "drafted", "verified", "restarted"]


@dataclass(frozen=True, eq=False)
class Change:
    """Tokens that were put on a canvas, or judged there.

    Attributes:
        kind: `decoded` by one model for good, `drafted`, or `verified`: a block of drafted AR
            steps, all of which the change is about; `restarted` has none, and all is unknown again.
        positions: of the tokens, `[B, P]`, in the order of their AR steps.
        known: AR steps, from the first on, whose tokens are on the canvas.
        settled: AR steps, from the first on, whose tokens no verification replaces any more.
        accepted: which drafted tokens the verification accepted, `[B * P]`; None without one.
        kept: which of its tokens were kept, `[B * P]`: the others were discarded because an earlier
            AR step had a rejection, and will be drafted again; None without a verification.
    """

    kind: ChangeKind
    positions: Int64
    known: int
    settled: int
    accepted: Bool | None = None
    kept: Bool | None = None

    @classmethod
    def decoded(cls, positions: Int64, step: int) -> Change:
        """An AR step that one model decoded."""
        return cls("decoded", positions, step + 1, step + 1)

    @classmethod
    def restarted(cls, images: int) -> Change:
        """A run of so many images that is begun again: nothing is on the canvas."""
        return cls("restarted", np.empty((images, 0), dtype=np.int64), 0, 0)

    @classmethod
    def drafted(cls, positions: Int64, step: int, block: int) -> Change:
        """An AR step of the block that begins at `block`, drafted."""
        return cls("drafted", positions, step + 1, block)

    @classmethod
    def verified(cls, positions: Int64, settled: int, accepted: Bool, kept: Bool) -> Change:
        """A drafted block whose AR steps before `settled` stay."""
        return cls("verified", positions, settled, settled, accepted, kept)
