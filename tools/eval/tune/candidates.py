"""Which settings are looked at: what can make decoding faster, in every combination."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ....runtime.options import GenerateOptions, format_refresh

# Shares of the baseline's steps, and the end of head steps that are annealed.
AR_SHARES = (1.0, 0.75, 0.5, 0.375, 0.25)
HEAD_SHARES = (1.0, 0.5, 0.25)
ANNEALED_TO = 0.1
GAMMAS = (4, 8, 16, 32)
# Periods of local AR steps. They save what fewer AR steps save, and are tried in place of them.
PERIODS = (2, 3, 4)
TARGET_HEADS = ("auto", "parallel")


@dataclass(frozen=True)
class Candidate:
    """A setting.

    Attributes:
        name: of its run, less what all of one search have in common.
        options: with all defaults filled in.
        precision: of engines or graphs, or None for what the backend takes by itself.
    """

    name: str
    options: GenerateOptions
    precision: str | None = None


def candidates(
    baseline: GenerateOptions,
    *,
    modes: Sequence[str],
    precisions: Sequence[str | None],
    max_gamma: int,
    head: bool = True,
    local: bool = False,
) -> list[Candidate]:
    """List settings that differ from the baseline in what can make them faster.

    Args:
        baseline: of the target, with all defaults filled in; guidance, temperature and all else
            that is no matter of speed stay.
        modes: of `csd.runtime.options.MODES`.
        precisions: to try; None is what the backend takes by itself.
        max_gamma: of the bundle.
        head: whether heads and head steps may differ: not where a solver samples.
        local: whether AR steps may be local: where the bundle has their graphs.

    Returns:
        Each once; the baseline itself is none of them.
    """
    found: dict[tuple[GenerateOptions, str | None], Candidate] = {}
    for mode, precision in itertools.product(modes, precisions):
        for options in _of_mode(baseline, mode, max_gamma):
            for (num_iter, refresh), (head_steps, kind) in itertools.product(
                _ar_steps(options, local), _heads(options, head)
            ):
                made = dataclasses.replace(
                    options, num_iter=num_iter, refresh=refresh, head_steps=head_steps, head=kind
                )
                if made != baseline or precision is not None:
                    found.setdefault(
                        (made, precision), Candidate(name_of(made, precision), made, precision)
                    )
    return [*found.values()]


def name_of(options: GenerateOptions, precision: str | None) -> str:
    """A setting in a few letters, as `csd-g8-ar32-h50to5` or `target-ar64r3-h100`."""
    steps = options.head_steps
    head = "to".join(map(str, steps)) if isinstance(steps, tuple) else str(steps)
    parts = [options.mode]
    if options.mode == "csd":
        parts.append(f"g{options.gamma}")
    period = f"r{format_refresh(options.refresh)}" if options.has_local_steps else ""
    parts += [f"ar{options.num_iter}{period}", f"h{head}"]
    if options.head != "auto":
        parts.append(options.head)
    return "-".join([*parts, *([precision] if precision else [])])


def _of_mode(baseline: GenerateOptions, mode: str, max_gamma: int) -> Iterator[GenerateOptions]:
    if mode != "csd":
        yield dataclasses.replace(baseline, mode=mode)
        return
    for gamma in [g for g in GAMMAS if g <= max_gamma] or [max_gamma]:
        yield dataclasses.replace(baseline, mode=mode, gamma=gamma)


def _ar_steps(options: GenerateOptions, local: bool) -> list[tuple[int, int]]:
    """AR steps, and which of them are full: fewer of them, or as many with local ones."""
    every = options.num_iter
    assert every is not None
    fewer = dict.fromkeys(max(1, round(every * share)) for share in AR_SHARES)
    periods = [period for period in PERIODS if local and period < every]
    return [*((number, 1) for number in fewer), *((every, period) for period in periods)]


def _heads(options: GenerateOptions, free: bool) -> list[tuple[int | tuple[int, int], str]]:
    """Head steps, and the sampler of each."""
    steps = options.head_steps
    assert steps is not None
    if not free or not isinstance(steps, int):
        return [(steps, options.head)]
    fewer = dict.fromkeys(max(1, round(steps * share)) for share in HEAD_SHARES)
    found: list[tuple[int | tuple[int, int], str]] = [(n, options.head) for n in fewer]
    last = max(1, round(steps * ANNEALED_TO))
    if last < steps:
        found.append(((steps, last), options.head))
    if options.mode == "target":
        found += [(steps, head) for head in TARGET_HEADS if head != options.head]
    return found
