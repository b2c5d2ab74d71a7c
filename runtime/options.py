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
from .schedule import GUIDANCE_SCHEDULES, MASK_SCHEDULES, TRAIN_STEPS

MODES = ("target", "draft", "csd")
VERIFICATIONS = ("block", "prefix")
ACCEPTANCES = ("paper", "relaxed")
# Head samplers of the chain; a solver is one for models that were exported for it.
CHAIN_HEADS = ("sequential", "speculative", "parallel", "auto")
SOLVER = "solver"
HEADS = (*CHAIN_HEADS, SOLVER)
# A period of local AR steps that follows the measured error.
AUTO_REFRESH = "auto"
# AR steps that are full at first: they know few tokens, and what follows hangs on theirs.
FULL_FIRST = 4
# Head steps of the chain of a model whose own number counts a solver's evaluations.
CHAIN_STEPS = 100


@dataclass(frozen=True, repr=False)
class GenerateOptions:
    """Options of one run; None means the model's own default.

    Attributes:
        mode: `target`, `draft` (that model alone) or `csd`.
        num_iter: AR steps, 1..L; default the model's own number, at most L.
        mask_schedule: sizes of the AR steps, see `csd.runtime.schedule.masked_counts`.
        head_steps: S, or `(first, last)` to anneal it over the AR steps.
        cfg: guidance scale; 1 is no guidance.
        cfg_schedule: `linear` in the share of known tokens, or `constant`.
        cfg_interval: `(low, high)`: guidance only where a share t of the AR steps is left after an
            AR step, `low < t <= high`. `(0, 1)` is the whole run.
        temperature: factor of the noise in the head.
        gamma: AR steps drafted before one verification.
        verify: `block` or `prefix`.
        acceptance: `paper` or `relaxed`.
        inner_temperature: T of the acceptance.
        prefill: share of AR steps that the target decodes first.
        head: head sampler: `sequential`, `speculative` (the same law in fewer evaluations),
            `parallel` (the sequential sample within `head_tolerance`), `solver` (of the chain's
            differential equation, few evaluations and no noise, for models exported for it) or
            `auto` (the solver where the model's own way is that; else speculative, and for the
            target's aligned chains in CSD what should be fastest).
        head_tolerance: of the parallel sampler, as a share of each head step's std.
        refresh: which calls of the backbone compute all of it. 1 is all of them, `(N, F)` every
            N-th after the first F AR steps, N the same with F = 4, and `auto` as many as keep the
            measured error near `refresh_tolerance`. The others are local (`docs/backbone.md`).
        refresh_tolerance: of `auto`: largest root mean square, over the tokens of an image, of
            what a local step displaces them by under the same noise; in units of the tokens as
            the model emits them, whose std is near 1.

    Raises:
        OptionError: a value is of another type or out of range. NumPy's numbers are taken and kept
            as Python's.
    """

    mode: str = "target"
    num_iter: int | None = None
    mask_schedule: str | None = None
    head_steps: int | tuple[int, int] | None = None
    cfg: float = 1.0
    cfg_schedule: str | None = None
    cfg_interval: tuple[float, float] | None = None
    temperature: float = 1.0
    gamma: int = 8
    verify: str = "block"
    acceptance: str = "paper"
    inner_temperature: float = 42.0
    prefill: float = 0.05
    head: str = "auto"
    head_tolerance: float = 0.03
    refresh: int | tuple[int, int] | str = 1
    refresh_tolerance: float = 0.05

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "mode": one_of("mode", self.mode, MODES),
            "verify": one_of("verify", self.verify, VERIFICATIONS),
            "acceptance": one_of("acceptance", self.acceptance, ACCEPTANCES),
            "head": one_of("head", self.head, HEADS),
            "gamma": whole_number_from("gamma", self.gamma, 1),
            "cfg": positive_number("cfg", self.cfg),
            "inner_temperature": positive_number("inner-temperature", self.inner_temperature),
            "temperature": positive_number("temperature", self.temperature),
            "head_tolerance": number_from_zero("head-tolerance", self.head_tolerance),
            "prefill": real_number("prefill", self.prefill),
            "refresh": _refresh(self.refresh),
            "refresh_tolerance": positive_number("refresh-tolerance", self.refresh_tolerance),
        }
        if self.mask_schedule is not None:
            given = self.mask_schedule
            checked["mask_schedule"] = one_of("mask-schedule", given, MASK_SCHEDULES)
        if self.cfg_schedule is not None:
            given = self.cfg_schedule
            checked["cfg_schedule"] = one_of("cfg-schedule", given, GUIDANCE_SCHEDULES)
        if self.cfg_interval is not None:
            checked["cfg_interval"] = _cfg_interval(self.cfg_interval)
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
    def solved(self) -> bool:
        """Whether the head's solver samples; of resolved options."""
        return self.head == SOLVER

    @property
    def roles(self) -> tuple[str, ...]:
        """The models that the mode uses."""
        return ("target", "draft") if self.mode == "csd" else (self.mode,)

    @property
    def has_local_steps(self) -> bool:
        """Whether AR steps may be local."""
        period = self.refresh[0] if isinstance(self.refresh, tuple) else self.refresh
        return period != 1

    def resolved(self, config: MARConfig, head_steps: int) -> GenerateOptions:
        """Return the options with the model's defaults filled in.

        Args:
            config: the target's configuration.
            head_steps: S that the bundle was exported with.

        Raises:
            OptionError: the options do not fit the model, or each other.
        """
        num_iter = min(config.num_iter, config.seq_len) if self.num_iter is None else self.num_iter
        if num_iter > config.seq_len:
            raise OptionError(
                f"num-iter is {shown(num_iter)}: give 1 to {config.seq_len}, the number of tokens "
                "of an image"
            )
        head = SOLVER if self.head == "auto" and config.solved else self.head
        if head == SOLVER:
            self._check_solver()
        steps = head_steps if config.solved == (head == SOLVER) else CHAIN_STEPS
        interval = config.cfg_t_min, config.cfg_t_max
        return dataclasses.replace(
            self,
            num_iter=num_iter,
            mask_schedule=self.mask_schedule or config.mask_strategy,
            head=head,
            head_steps=steps if self.head_steps is None else self.head_steps,
            cfg_schedule=self.cfg_schedule or config.cfg_schedule,
            cfg_interval=interval if self.cfg_interval is None else self.cfg_interval,
        )

    def _check_solver(self) -> None:
        chain = f"give --head speculative (with --head-steps {CHAIN_STEPS})"
        if self.mode == "csd":
            raise OptionError(
                f"mode csd accepts by densities, and the head's solver has none: {chain}, or "
                "--mode target"
            )
        if self.temperature != 1:
            raise OptionError(
                f"temperature is {self.temperature} and the head's solver draws no noise that it "
                f"could scale: leave it out, or {chain}"
            )

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


def parse_refresh(text: str) -> int | tuple[int, int] | str:
    """Read `N`, `N:F` or `auto`.

    Raises:
        OptionError: the text is none of these, or a number is 0.
    """
    if text == AUTO_REFRESH:
        return text
    parts = text.split(":")
    if len(parts) > 2 or not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise OptionError(f"refresh is {shown(text)}: {_REFRESH}")
    return _refresh(int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1])))


def format_refresh(refresh: int | tuple[int, int] | str) -> str:
    """As `parse_refresh` reads it: `2`, `2:8` or `auto`."""
    return ":".join(map(str, refresh)) if isinstance(refresh, tuple) else str(refresh)


def parse_interval(text: str) -> tuple[float, float]:
    """Read `A:B`.

    Raises:
        OptionError: the text is no pair of numbers.
    """
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise OptionError(f"cfg-interval is {text!r}: {_INTERVAL}") from error
    return low, high


_INTERVAL = "give two shares of the AR steps in ascending order, 0 to 1, as in 0.1:0.3"


def _cfg_interval(value: object) -> tuple[float, float]:
    if not isinstance(value, tuple | list):  # a list is what JSON makes of it
        raise wrong_type("cfg-interval", value, "a tuple of two shares, as (0.1, 0.3)")
    if len(value) != 2:
        raise OptionError(f"cfg-interval is {shown(value)}: {_INTERVAL}")
    low, high = (real_number("cfg-interval", share) for share in value)
    if not 0 <= low < high <= 1:
        raise OptionError(f"cfg-interval is {low}:{high}: {_INTERVAL}")
    return low, high


_REFRESH = f"give N, N:F for F full AR steps first, as 2:4, or {AUTO_REFRESH}"


def _refresh(value: object) -> int | tuple[int, int] | str:
    if isinstance(value, str):
        if value != AUTO_REFRESH:
            raise OptionError(f"refresh is {shown(value)}: {_REFRESH}")
        return value
    if not isinstance(value, tuple):
        return whole_number_from("refresh", value, 1)
    if len(value) != 2:
        raise OptionError(f"refresh is {shown(value)}: {_REFRESH}")
    period, first = (whole_number_from("refresh", number, 1) for number in value)
    return period, first


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
