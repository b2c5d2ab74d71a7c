"""Which head sampler a call takes: decided here and nowhere else."""

from __future__ import annotations

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

# Below this number of head steps `auto` samples sequentially: most drafts are rejected there.
FEW_HEAD_STEPS = 16
# What the parallel sampler takes from a draft's trajectory: sweeps, and rows a token over S.
SWEEPS, SWEPT_ROWS = 7, 2.5


def sampler_kind(head: str, steps: int, cost: float, *, aligned: bool) -> str:
    """Return the head sampler for an option `head`.

    Args:
        head: one of `csd.runtime.options.HEADS`; `auto` has been resolved where it is the solver.
        steps: S.
        cost: of a row of every token, in units of a call.
        aligned: whether a chain follows another one's noise and trajectory.
    """
    if head == SOLVER:
        return SOLVER
    if head == "auto" and steps < FEW_HEAD_STEPS:
        return "sequential"
    if not aligned:
        return "speculative" if head == "auto" else head
    if head == "auto" and SWEEPS + cost * SWEPT_ROWS * steps > steps + cost * steps:
        return "sequential"  # rows cost more than the calls that are saved
    return "sequential" if head == "sequential" else "parallel"


class HeadSamplers:
    """The samplers of one model's head, made when they are first asked for.

    Args:
        beta_schedule: of the model.
        channels: C.
        calibration: of the head.
    """

    def __init__(self, beta_schedule: str, channels: int, calibration: HeadCalibration) -> None:
        self._beta_schedule, self._channels = beta_schedule, channels
        self._calibration = calibration
        self._schedules: dict[int, HeadSchedule] = {}
        self._samplers: dict[tuple[str, int, float], HeadSampler] = {}

    def schedule(self, steps: int) -> HeadSchedule:
        """Head schedule with S = `steps`."""
        if steps not in self._schedules:
            self._schedules[steps] = HeadSchedule(diffusion_tables(self._beta_schedule, steps))
        return self._schedules[steps]

    def choose(
        self, options: GenerateOptions, steps: int, together: int, *, aligned: bool, guided: bool
    ) -> HeadSampler:
        """Return the sampler of a call.

        Args:
            options: head sampler and tolerance.
            steps: S.
            together: tokens of one image that are sampled together. The choice depends on this
                number and not on the batch, so that an image does not either.
            aligned: whether the chains follow others' noise and trajectories.
            guided: whether a row is evaluated twice.
        """
        # What one more transition of every token costs, in units of a call.
        cost = self._calibration.row_cost * together * (2 if guided else 1)
        kind = sampler_kind(options.head, steps, cost, aligned=aligned)
        setting = cost if kind == "speculative" else options.head_tolerance
        key = kind, steps, setting
        if key not in self._samplers:
            self._samplers[key] = self._make(kind, steps, setting)
        return self._samplers[key]

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
