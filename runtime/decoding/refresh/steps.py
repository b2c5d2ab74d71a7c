"""Full and local steps of one model over one canvas: what is kept, and for how long it holds."""

from __future__ import annotations

from dataclasses import dataclass

from ... import arrays
from ...arrays import Float32
from ...stats import Stats
from ..evaluator import Conditions
from ..plan import Canvas, Plan
from ..rows import backbone_rows, local_rows
from .backbone import CachedBackbone, Kept
from .period import Period


@dataclass(frozen=True, eq=False)
class Predicted:
    """Conditions of some AR steps.

    Attributes:
        conditions: of their tokens.
        stale: at a full step that measures, what a local one gives for the same tokens; None
            elsewhere, and where nothing was kept.
    """

    conditions: Conditions
    stale: Conditions | None = None


class CachedSteps:
    """One model's full and local steps over one canvas.

    What was kept holds as long as the tokens that it knows are on the canvas, and for calls of as
    many branches; where it does not hold the step is full, whatever the period.

    Args:
        backbone: of the model.
        period: when steps are full.
    """

    def __init__(self, backbone: CachedBackbone, period: Period) -> None:
        self.period = period
        self._backbone = backbone
        self._kept: Kept | None = None
        self._local = 0

    def predict(self, canvas: Canvas, plan: Plan, block: range, stats: Stats) -> Predicted:
        """Return the conditions of some AR steps, given what is known before the first.

        Args:
            canvas: with the tokens of all AR steps before.
            plan: what every AR step does.
            block: the AR steps.
            stats: where time and rows are counted.
        """
        kept, guided = self._kept, plan.guided(block)
        if kept is not None and kept.guided != guided:
            kept = None
        full = kept is None or self.period.full(block.start, self._local)
        role, branches = self._backbone.role, 1 + guided
        visible = canvas.known(plan.schedule, block.start)
        of_full = branches * backbone_rows(self._backbone.config, *visible.shape).total
        if kept is not None and not full:
            self._local += 1
            with stats.timed(f"{role} backbone"):
                conditions, rows = self._from(kept, canvas, plan, block)
            stats.count_local(role, branches * rows, of_full)
            return Predicted(conditions)
        stale = None
        if kept is not None and self.period.measures(
            block.start
        ):  # before what was kept is overwritten
            with stats.timed("refresh check"):
                stale, rows = self._from(kept, canvas, plan, block)
            stats.count_check(role, branches * rows)
        self._local = 0
        with stats.timed(f"{role} backbone"):
            conditions, self._kept = self._backbone.full(
                arrays.gather(canvas.tokens, visible), visible,
                canvas.positions(plan.schedule, block), canvas.labels, _scale(canvas, plan, block),
                step=block.start, guided=guided, where=f"AR step {block.start}",
            )  # fmt: skip
        stats.count_full(role, of_full)
        return Predicted(conditions, stale)

    def _from(self, kept: Kept, canvas: Canvas, plan: Plan, block: range) -> tuple[Conditions, int]:
        """Conditions by a local step, and its rows of one branch."""
        new = canvas.between(plan.schedule, kept.step, block.start)
        query = canvas.positions(plan.schedule, block)
        conditions = self._backbone.local(
            arrays.gather(canvas.tokens, new), new, query, kept, _scale(canvas, plan, block),
            where=f"AR step {block.start}",
        )  # fmt: skip
        counts = len(new), new.shape[1], query.shape[1]
        return conditions, local_rows(self._backbone.config, *counts).total

    def replaced_from(self, step: int) -> None:
        """Say that tokens of an AR step and of those after it are not what they were."""
        if self._kept is not None and self._kept.step > step:
            self._kept = None


def _scale(canvas: Canvas, plan: Plan, block: range) -> Float32:
    """Guidance scale of each token of some AR steps."""
    return canvas.rows(plan.per_token(plan.guidance, block))
