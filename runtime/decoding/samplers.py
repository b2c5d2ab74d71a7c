"""Which head sampler a call takes: decided here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

from ..command.line.logs import logger
from ..head import (
    AffineDraft,
    HeadCalibration,
    HeadSampler,
    HeadSchedule,
    ParallelSampler,
    SequentialSampler,
    SolverSampler,
    SolverSchedule,
    SpeculativeSampler,
)
from ..options import SOLVER, GenerateOptions
from ..schedule import diffusion_tables

_LOG = logger(__name__)
# Below this number of head steps `auto` samples sequentially: most drafts are rejected there.
FEW_HEAD_STEPS = 16
# What the speculative sampler takes: calls over S, and rows a token over S.
ROUNDS, DRAFTED_ROWS = 1 / 8, 1.2
# What the parallel sampler takes from a draft's trajectory: sweeps, and rows a token over S.
SWEEPS, SWEPT_ROWS = 7, 2.5
# What the host does for a drafted or swept row, in units of a call of a head with so many weights;
# of a larger one it is a smaller share.
HOST_ROW, HOST_WEIGHTS = 0.07, 220_000


@dataclass(frozen=True)
class CallCosts:
    """What a head's work costs, in units of a call with no rows.

    Attributes:
        row: of a row of the network for every token that is sampled together.
        host: of what the host does for a drafted or swept row of every token.
    """

    row: float
    host: float = 0.0

    def sequential(self, steps: int) -> float:
        """Of S calls with a row of every token."""
        return steps * (1 + self.row)

    def speculative(self, steps: int) -> float:
        """Of the rounds of the speculative sampler."""
        return steps * (ROUNDS + DRAFTED_ROWS * (self.row + self.host))

    def parallel(self, steps: int) -> float:
        """Of the parallel sampler's sweeps, which start from a draft's trajectory."""
        return SWEEPS + SWEPT_ROWS * steps * (self.row + self.host)


def sampler_kind(head: str, steps: int, costs: CallCosts, *, aligned: bool) -> str:
    """Return the head sampler for an option `head`.

    Args:
        head: one of `csd.runtime.options.HEADS`; `auto` has been resolved where it is the solver.
        steps: S.
        costs: of a call.
        aligned: whether a chain follows another one's noise and trajectory.
    """
    if head == SOLVER:
        return SOLVER
    if head != "auto":
        return "parallel" if aligned and head == "speculative" else head
    if steps < FEW_HEAD_STEPS:
        return "sequential"
    kind, cost = (
        ("parallel", costs.parallel(steps)) if aligned
        else ("speculative", costs.speculative(steps))
    )  # fmt: skip
    # Rows may cost more than the calls that are saved.
    return kind if cost < costs.sequential(steps) else "sequential"


class HeadSamplers:
    """The samplers of one model's head, made when they are first asked for.

    Args:
        beta_schedule: of the model.
        channels: C.
        calibration: of the head.
        weights: of the head's network, about; None is a head that the host does nothing for.
    """

    def __init__(
        self,
        beta_schedule: str,
        channels: int,
        calibration: HeadCalibration,
        weights: int | None = None,
    ) -> None:
        self._beta_schedule, self._channels = beta_schedule, channels
        self._calibration = calibration
        self._host_row = 0.0 if weights is None else HOST_ROW * min(1.0, HOST_WEIGHTS / weights)
        self._schedules: dict[int, HeadSchedule] = {}
        self._samplers: dict[tuple[str, int, float], HeadSampler] = {}

    def schedule(self, steps: int) -> HeadSchedule:
        """Head schedule with S = `steps`."""
        if steps not in self._schedules:
            self._schedules[steps] = HeadSchedule(diffusion_tables(self._beta_schedule, steps))
        return self._schedules[steps]

    def choose(
        self,
        options: GenerateOptions,
        steps: int,
        together: int,
        images: int,
        *,
        aligned: bool,
        guided: bool,
    ) -> tuple[str, HeadSampler]:
        """Return the sampler of a call, and which kind it is.

        Args:
            options: head sampler and tolerance.
            steps: S.
            together: tokens of one image that are sampled together.
            images: that are decoded at once. `auto` depends on it; an explicit head does not, so
                neither do its images, nor the windows of the speculative sampler.
            aligned: whether the chains follow others' noise and trajectories.
            guided: whether a row is evaluated twice.
        """
        # What one more transition of every token costs, in units of a call.
        row = self._calibration.row_cost * together * (2 if guided else 1)
        costs = CallCosts(row * images, self._host_row * together * images)
        kind = sampler_kind(options.head, steps, costs, aligned=aligned)
        setting = row if kind == "speculative" else options.head_tolerance
        key = kind, steps, setting
        if key not in self._samplers:
            _LOG.info(
                "head %s takes the %s sampler for %d head steps of %d tokens of %d images%s (costs "
                "in calls: sequential %.1f, speculative %.1f%s)", options.head, kind, steps,
                together, images, ", aligned" if aligned else "", costs.sequential(steps),
                costs.speculative(steps), f", parallel {costs.parallel(steps):.1f}" if aligned
                else "",
            )  # fmt: skip
            self._samplers[key] = self._make(kind, steps, setting)
        return kind, self._samplers[key]

    def _make(self, kind: str, steps: int, setting: float) -> HeadSampler:
        """Return a sampler; `setting` is a tolerance, or what a transition costs."""
        if kind == SOLVER:
            return SolverSampler(SolverSchedule.named(self._beta_schedule, steps))
        schedule, draft = self.schedule(steps), self._calibration.draft
        fitted = draft if draft is not None and draft.steps == steps else None
        if kind == "sequential":
            return SequentialSampler(schedule)
        if kind == "parallel":
            return ParallelSampler(schedule, setting, draft=fitted)
        drafting = fitted or AffineDraft.frozen(steps, self._channels)
        return SpeculativeSampler(schedule, drafting.windows(setting), fitted)
