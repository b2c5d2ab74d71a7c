"""What a bench measures: decoding modes, heads, thread counts, and the PyTorch baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from ...runtime.options import GenerateOptions, format_refresh

# The one that ratios are of.
EAGER = "eager"
# PyTorch's modes: the table of eager.py, which cannot be imported without it.
BASELINES = (EAGER, "eager-bf16", "compile")
MODES = (*BASELINES, "target", "draft", "csd")


@dataclass(frozen=True)
class Case:
    """One thing to measure: options, run by a PyTorch baseline or, without one, by the runtime.

    Attributes:
        name: of its row.
        options: of the run.
        baseline: of `BASELINES`, or None.
        threads: CPU threads.
    """

    name: str
    options: GenerateOptions
    baseline: str | None = None
    threads: int = 2


@dataclass(frozen=True)
class Sweep:
    """What is varied.

    Attributes:
        modes: of `MODES`.
        heads: head samplers of all modes but the PyTorch ones.
        gammas: for `csd`.
        temperatures: inner temperatures for `csd` at the first gamma, beside the options' own.
        fewer_steps: AR steps at which the target is measured too, where they are fewer: that is
            what a faster mode has to beat.
        threads: thread counts, of the runtime's cases and of the baselines.
        baseline_threads: thread counts of the baselines, unless the same.
        refreshes: which AR steps are full, of all modes but the PyTorch ones.
        intervals: parts of the AR steps that are guided, each with every one of `refreshes`, beside
            the options' own.
    """

    modes: Sequence[str]
    heads: Sequence[str] = ("auto",)
    gammas: Sequence[int] = (8,)
    temperatures: Sequence[float] = ()
    fewer_steps: Sequence[int] = (64, 32, 16, 8)
    threads: Sequence[int] = (2,)
    baseline_threads: Sequence[int] | None = None
    refreshes: Sequence[int | tuple[int, int] | str] = (1,)
    intervals: Sequence[tuple[float, float]] = ()

    @property
    def baselines(self) -> list[str]:
        """The modes that PyTorch runs."""
        return [name for name in BASELINES if name in self.modes]


def make_cases(sweep: Sweep, options: GenerateOptions, num_iter: int) -> list[Case]:
    """List what to measure, with `options` for everything else and `num_iter` AR steps."""
    base = dataclasses.replace(options, mode="target", num_iter=num_iter)
    of_baselines = sweep.threads if sweep.baseline_threads is None else sweep.baseline_threads
    cases = [
        Case(name, base, name, threads) for name in sweep.baselines for threads in of_baselines
    ]
    guidances = [("", base.cfg_interval)]
    guidances += [(f", guided {low:g}:{high:g}", (low, high)) for low, high in sweep.intervals]
    for head, (guided, part), refresh in product(sweep.heads, guidances, sweep.refreshes):
        alone = dataclasses.replace(base, head=head, refresh=refresh, cfg_interval=part)
        for name, changed in _runtime_cases(sweep, alone, guided):
            cases += [Case(name, changed, threads=threads) for threads in sweep.threads]
    if len({case.threads for case in cases}) > 1:
        cases = [
            dataclasses.replace(case, name=f"{case.name}, {threads_in_words(case.threads)}")
            for case in cases
        ]
    return cases


def threads_in_words(threads: int) -> str:
    """`1 thread`, `2 threads`."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _runtime_cases(
    sweep: Sweep, alone: GenerateOptions, guided: str
) -> list[tuple[str, GenerateOptions]]:
    """Names, that end in `guided`, and options of a head sampler, `alone` being the target's."""
    assert alone.num_iter is not None
    suffix = "" if alone.head == "sequential" else f", head {alone.head}"
    if alone.has_local_steps:
        suffix += f", refresh {format_refresh(alone.refresh)}"
    suffix += guided
    cases: list[tuple[str, GenerateOptions]] = []
    if "target" in sweep.modes:
        cases.append((f"target{suffix}", alone))
        cases += [
            (f"target{suffix}, {n} AR steps", dataclasses.replace(alone, num_iter=n))
            for n in sweep.fewer_steps
            if n < alone.num_iter and not alone.has_local_steps and not guided
        ]
    if "draft" in sweep.modes:
        cases.append((f"draft{suffix}", dataclasses.replace(alone, mode="draft")))
    if "csd" in sweep.modes:
        own = alone.inner_temperature
        settings = [(gamma, own) for gamma in sweep.gammas]
        settings += [(sweep.gammas[0], value) for value in sweep.temperatures if value != own]
        cases += [
            (
                f"csd{suffix}, gamma {gamma}, T {value:g}",
                dataclasses.replace(alone, mode="csd", gamma=gamma, inner_temperature=value),
            )
            for gamma, value in settings
        ]
    return cases
