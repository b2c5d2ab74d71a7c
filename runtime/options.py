"""What a user may ask of a generation run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from .config import MARConfig
from .errors import OptionError
from .schedule import GUIDANCE_SCHEDULES, TRAIN_STEPS

MODES = ("target", "draft", "csd")
VERIFICATIONS = ("block", "prefix")
ACCEPTANCES = ("paper", "relaxed")
HEADS = ("sequential", "speculative", "parallel", "auto")
MAX_NUM_ITER = 64


@dataclass(frozen=True)
class GenerateOptions:
    """Options of one run; None means the model's own default.

    Attributes:
        mode: `target`, `draft` (that model alone) or `csd`.
        num_iter: AR steps, 1..L; default the smaller of 64 and L.
        head_steps: S, or `(first, last)` to anneal it over the AR steps.
        cfg: guidance scale; 1 is no guidance.
        cfg_schedule: `linear` in the share of known tokens, or `constant`.
        temperature: factor of the noise in the head.
        gamma: AR steps drafted before one verification.
        verify: `block` or `prefix`.
        acceptance: `paper` or `relaxed`.
        inner_temperature: T of the acceptance.
        prefill: share of AR steps that the target decodes first.
        head: head sampler: `sequential`, `speculative` (the same law in fewer evaluations),
            `parallel` (the sequential sample within `head_tolerance`) or `auto` (speculative, and
            for the target's aligned chains in CSD what should be fastest).
        head_tolerance: of the parallel sampler, as a share of each head step's std.

    Raises:
        OptionError: a value is out of range.
    """

    mode: str = "csd"
    num_iter: int | None = None
    head_steps: int | tuple[int, int] | None = None
    cfg: float = 1.0
    cfg_schedule: str = "linear"
    temperature: float = 1.0
    gamma: int = 8
    verify: str = "block"
    acceptance: str = "paper"
    inner_temperature: float = 42.0
    prefill: float = 0.05
    head: str = "sequential"
    head_tolerance: float = 0.03

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, MODES)
        _one_of("cfg-schedule", self.cfg_schedule, GUIDANCE_SCHEDULES)
        _one_of("verify", self.verify, VERIFICATIONS)
        _one_of("acceptance", self.acceptance, ACCEPTANCES)
        _one_of("head", self.head, HEADS)
        if self.num_iter is not None and self.num_iter < 1:
            raise OptionError(f"num-iter is {self.num_iter}: give at least 1")
        if self.gamma < 1:
            raise OptionError(f"gamma is {self.gamma}: give at least 1")
        if isinstance(self.head_steps, tuple) and len(self.head_steps) != 2:
            raise OptionError(f"head-steps is {self.head_steps}: give one number, or two to anneal")
        for steps in self._given_head_steps():
            if not 1 <= steps <= TRAIN_STEPS:
                raise OptionError(f"head-steps is {steps}: give 1 to {TRAIN_STEPS}")
        for name, value in (("cfg", self.cfg), ("inner-temperature", self.inner_temperature)):
            if not (math.isfinite(value) and value > 0):
                raise OptionError(f"{name} is {value}: give a number above 0")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise OptionError(f"temperature is {self.temperature}: give a number above 0")
        if not (math.isfinite(self.head_tolerance) and self.head_tolerance >= 0):
            raise OptionError(f"head-tolerance is {self.head_tolerance}: give 0 or more")
        if not 0 <= self.prefill <= 1:
            raise OptionError(f"prefill is {self.prefill}: give a share from 0 to 1")

    def _given_head_steps(self) -> tuple[int, ...]:
        if self.head_steps is None:
            return ()
        return (self.head_steps,) if isinstance(self.head_steps, int) else self.head_steps

    @property
    def guided(self) -> bool:
        """Whether the unconditional branch is needed."""
        return self.cfg != 1.0

    def resolved(self, config: MARConfig, head_steps: int) -> GenerateOptions:
        """Return the options with the model's defaults filled in.

        Args:
            config: the target's configuration.
            head_steps: S that the bundle was exported with.

        Raises:
            OptionError: the options do not fit the model.
        """
        num_iter = min(MAX_NUM_ITER, config.seq_len) if self.num_iter is None else self.num_iter
        if num_iter > config.seq_len:
            raise OptionError(
                f"num-iter is {num_iter}: give 1 to {config.seq_len}, the number of tokens of an "
                "image"
            )
        given = head_steps if self.head_steps is None else self.head_steps
        return dataclasses.replace(self, num_iter=num_iter, head_steps=given)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        return dataclasses.asdict(self)


def parse_head_steps(text: str) -> int | tuple[int, int]:
    """Read `N` or `N:M`.

    Raises:
        OptionError: the text is neither.
    """
    parts = text.split(":")
    if len(parts) > 2 or not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise OptionError(f"head-steps is {text!r}: give N, or N:M to anneal, as in 50:5")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"{name} is {value!r}: give one of {', '.join(allowed)}")
