"""What a stream yields: which tokens of a run were just decided, and the image so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..arrays import Bool, Float32, Int64
from ..decoding.change import Change, ChangeKind
from ..decoding.plan import Canvas, Plan
from ..stats import Progress

# Makes uint8 images `[B, H, W, 3]` of tokens `[B, L, C]`.
Render = Callable[[Float32], NDArray[np.uint8]]


@dataclass(frozen=True, eq=False, repr=False)
class StreamEvent:
    """A step of a run, as it was when it was yielded: later steps do not change it.

    In mode `csd` drafted tokens are shown twice: in a `drafted` event after each AR step of the
    draft, and in a `verified` event, which says of each whether it was accepted, resampled or
    dropped.

    Attributes:
        kind: `decoded` (tokens of one model that stay), `drafted` (tokens of the draft that are
            not verified yet), `verified` (a drafted block that the target has judged) or
            `restarted` (the backend failed, and all images are begun again on another one: what
            events said before counts no more).
        indices: the images that it is about, as rows of the call's labels and of the result: more
            images than are decoded at once come part after part. B is their number.
        positions: of the tokens that were drafted or decided, `[B, P]` int64 in 0..L-1.
        progress: AR steps done and in total, over all images of the call; drafted ones are not
            done before they are verified.
    """

    kind: ChangeKind
    indices: range
    positions: Int64
    progress: Progress
    _change: Change = field(repr=False)
    _canvas: Canvas = field(repr=False)
    _plan: Plan = field(repr=False)
    _render: Render = field(repr=False)

    @classmethod
    def of(
        cls,
        change: Change,
        canvas: Canvas,
        plan: Plan,
        *,
        indices: range,
        progress: Progress,
        render: Render,
    ) -> StreamEvent:
        """Return the event of a change to a canvas; tokens are copied, as the canvas goes on."""
        frozen = Canvas(canvas.tokens.copy(), canvas.orders, canvas.labels, canvas.images)
        return cls(change.kind, indices, change.positions, progress, change, frozen, plan, render)

    def __repr__(self) -> str:
        progress = self.progress
        return (
            f"<StreamEvent: {self.kind} {self.positions.shape[1]} tokens of images "
            f"{self.indices.start} to {self.indices.stop - 1}, {progress.done} of "
            f"{progress.total} AR steps>"
        )

    @property
    def accepted(self) -> Bool:
        """Which of `positions` were accepted by this verification, `[B, P]`; else none."""
        return self._judged(accepted=True, kept=True)

    @property
    def resampled(self) -> Bool:
        """Which of `positions` this verification replaced by a residual sample, `[B, P]`."""
        return self._judged(accepted=False, kept=True)

    @property
    def dropped(self) -> Bool:
        """Which of `positions` this verification discarded, `[B, P]`.

        Only prefix verification does: what was drafted after an AR step with a rejection is
        unknown again, and is drafted anew.
        """
        if self._change.kept is None:
            return np.zeros(self.positions.shape, dtype=np.bool_)
        return ~self._change.kept.reshape(self.positions.shape)

    def _judged(self, *, accepted: bool, kept: bool) -> Bool:
        change = self._change
        if change.accepted is None or change.kept is None:
            return np.zeros(self.positions.shape, dtype=np.bool_)
        found = (change.accepted == accepted) & (change.kept == kept)
        return found.reshape(self.positions.shape)

    @property
    def known(self) -> Bool:
        """Which positions have a token, drafted ones included, `[B, L]`."""
        return self._before(self._change.known)

    @property
    def pending(self) -> Bool:
        """Which positions have a drafted token that is not verified yet, `[B, L]`."""
        return self.known & ~self._before(self._change.settled)

    def _before(self, step: int) -> Bool:
        """Positions that AR steps before `step` decide."""
        orders = self._canvas.orders
        mask = np.zeros(orders.shape, dtype=np.bool_)
        if step:  # the first AR steps decide what comes last in the order
            first, _ = self._plan.schedule.bounds[step - 1]
            np.put_along_axis(mask, orders[:, first:], values=True, axis=1)
        return mask

    @property
    def tokens(self) -> Float32:
        """The tokens so far, float32 `[B, L, C]`; zeros where there is none yet."""
        return np.where(self.known[..., None], self._canvas.tokens, np.float32(0))

    def images(self) -> NDArray[np.uint8]:
        """Decode what there is; nothing is decoded unless this is called.

        Tokens that are not known yet are zeros in the latent (for a pixel model: mid-grey), near
        the mean of what models are trained on. An autoencoder mixes neighbours: a patch
        changes a little when those around it arrive.

        Returns:
            uint8 `[B, H, W, 3]`; H = W = 0 where the bundle has no decoder for its latents. The
            last event of an image gives what the result holds of it, but for the rounding of a
            decoder that was given other images beside it.

        Raises:
            OptionError: the session is closed.
            BackendError: the decoder failed.
            NumericsError: the decoder returned a value that is not finite.
        """
        return self._render(self.tokens)
