"""What a user may ask of a generation run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .arguments import (
    number_from_zero,
    one_of,
    positive_number,
    real_number,
    whole_number_from,
    wrong_type,
)
from .command.text import shown
from .config import MARConfig
from .errors import OptionError
from .schedule import GUIDANCE_SCHEDULES, TRAIN_STEPS

MODES = ("target", "draft", "csd")
VERIFICATIONS = ("block", "prefix")
ACCEPTANCES = ("paper", "relaxed")
HEADS = ("sequential", "speculative", "parallel", "auto")
MAX_NUM_ITER = 64


@dataclass(frozen=True, repr=False)
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
        OptionError: a value is of another type or out of range. NumPy's numbers are taken and kept
            as Python's.
    """

    mode: str = "target"
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
    head: str = "auto"
    head_tolerance: float = 0.03

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "mode": one_of("mode", self.mode, MODES),
            "cfg_schedule": one_of("cfg-schedule", self.cfg_schedule, GUIDANCE_SCHEDULES),
            "verify": one_of("verify", self.verify, VERIFICATIONS),
            "acceptance": one_of("acceptance", self.acceptance, ACCEPTANCES),
            "head": one_of("head", self.head, HEADS),
            "gamma": whole_number_from("gamma", self.gamma, 1),
            "cfg": positive_number("cfg", self.cfg),
            "inner_temperature": positive_number("inner-temperature", self.inner_temperature),
            "temperature": positive_number("temperature", self.temperature),
            "head_tolerance": number_from_zero("head-tolerance", self.head_tolerance),
            "prefill": real_number("prefill", self.prefill),
        }
        if self.num_iter is not None:
            checked["num_iter"] = whole_number_from("num-iter", self.num_iter, 1)
        if self.head_steps is not None:
            checked["head_steps"] = _head_steps(self.head_steps)
        if not 0 <= checked["prefill"] <= 1:
            raise OptionError(f"prefill is {checked['prefill']}: give a share from 0 to 1")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        """What differs from the defaults."""
        changed = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"GenerateOptions({', '.join(changed)})"

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
                f"num-iter is {shown(num_iter)}: give 1 to {config.seq_len}, the number of tokens "
                "of an image"
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


def _head_steps(value: object) -> int | tuple[int, int]:
    if not isinstance(value, tuple):
        try:
            return whole_number_from("head-steps", value, 1, TRAIN_STEPS)
        except OptionError as error:
            if isinstance(value, list):
                raise wrong_type("head-steps", value, "a tuple to anneal, as in (50, 5)") from error
            raise
    if len(value) != 2:
        raise OptionError(f"head-steps is {shown(value)}: give one number, or two to anneal")
    first, last = (whole_number_from("head-steps", steps, 1, TRAIN_STEPS) for steps in value)
    return first, last
