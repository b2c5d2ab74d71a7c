"""Figures of measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..plot_files import drawn
from .report import by_clock


def plot_bench(report: dict[str, Any], path: Path) -> None:
    """Draw seconds an image, and class accuracy against them where it was measured.

    Raises:
        CsdError: as `check_plot`.
        OSError: as `write_atomically`.
    """
    rows = report["results"]
    with_accuracy = [row for row in rows if row["accuracy"] is not None]
    with drawn(
        path,
        columns=2 if with_accuracy else 1,
        figsize=(12 if with_accuracy else 6.5, 0.4 * len(rows) + 1.6),
    ) as axes:
        bars, names = axes[0][0], [row["name"] for row in rows]
        seconds = [by_clock(row, "seconds_per_image", report["clock"]) for row in rows]
        bars.barh(names, seconds, color="tab:blue")
        for index, row in enumerate(rows):
            ratio = row["speed_up_over_eager"]
            label = f"{seconds[index]:.2f} s" + ("" if ratio is None else f", {ratio:.1f}x")
            bars.text(seconds[index], index, " " + label, va="center")
        bars.invert_yaxis()
        bars.margins(x=0.25)
        bars.set_xlabel(f"seconds an image ({report['clock']}), batch {report['batch']}")
        if with_accuracy:
            points = axes[0][1]
            for row in with_accuracy:
                point = by_clock(row, "seconds_per_image", report["clock"]), row["accuracy"]
                points.plot(*point, "o", color="tab:blue")
                points.annotate(
                    row["name"], point,
                    xytext=(4, 4), textcoords="offset points", fontsize=8,
                )  # fmt: skip
            points.set_xlabel("seconds an image")
            points.set_ylabel(f"class accuracy of {with_accuracy[0]['accuracy_images']} images")
            points.margins(0.2)
