"""A figure over the runs of a database, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...plot_files import drawn
from ..judge import Metric
from ..metrics.halves import Estimate


def plot_history(
    path: Path, metric: Metric, names: Sequence[str], estimates: Sequence[Estimate]
) -> None:
    """Draw values with their intervals, in the order of the runs.

    Raises:
        CsdError: as `check_plot`.
        OSError: as for `write_atomically`.
    """
    factor = 100 if metric.percent else 1
    values = [factor * e.value for e in estimates]
    ends = [[factor * end for end in e.interval()] for e in estimates]
    below = [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)]
    with drawn(path, dpi="figure", figsize=(max(5, 0.7 * len(names)), 4)) as panels:
        axes = panels[0][0]
        axes.errorbar(range(len(names)), values, yerr=[below, above], fmt="o-", capsize=3)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
        axes.set_ylabel(metric.title + (", %" if metric.percent else ""))
        axes.grid(alpha=0.3)
