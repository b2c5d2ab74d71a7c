"""The picture of the measurement: distance against seconds, a panel for each setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...plot_files import drawn
from .rows import is_whole

# Whether all steps are full and guided, colour, and title.
_KINDS = (True, "tab:gray", "all full"), (False, "tab:red", "local, or guided in a part")


def plot_rows(values: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the Frechet distance of every row against its seconds, with intervals.

    Args:
        values: what `figures_of` returned, of all rows.
        path: where to.

    Raises:
        OSError: it cannot be written.
    """
    groups = list(dict.fromkeys(tuple(value["group"]) for value in values))
    columns = len({group[1] for group in groups})
    lines = -(-len(groups) // columns)
    with drawn(path, lines, columns, figsize=(6 * columns, 4 * lines)) as axes:
        for axis, (steps, scale) in zip(axes.flat, groups, strict=False):
            for whole, color, label in _KINDS:
                points = sorted(
                    (v["seconds_per_image"], v["frechet"], v["frechet_half_interval"], v["name"])
                    for v in values
                    if tuple(v["group"]) == (steps, scale) and is_whole(v) == whole
                )
                if not points:
                    continue
                seconds, distances, intervals, names = zip(*points, strict=True)
                axis.errorbar(
                    seconds, distances, yerr=intervals, fmt="o-" if whole else "o", color=color,
                    label=label, capsize=2,
                )  # fmt: skip
                for x, y, name in zip(seconds, distances, names, strict=True):
                    axis.annotate(
                        name.removeprefix(f"{steps} AR steps, ").removesuffix(" AR steps"), (x, y),
                        xytext=(2, 4), textcoords="offset points", fontsize=7, rotation=60,
                    )  # fmt: skip
            axis.set_title(f"{steps} AR steps, guidance {scale:g}")
            axis.set_xlabel("seconds an image")
            axis.set_ylabel("Frechet distance")
            axis.margins(0.15)
            axis.legend()
