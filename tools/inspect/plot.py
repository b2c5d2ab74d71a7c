"""The survival of drafted transitions over the head steps, as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..plot_files import drawn


def plot_survival(calibration: Mapping[str, Any], path: Path) -> None:
    """Draw a panel for each model, with a line for each number of drafted transitions.

    Args:
        calibration: of a bundle's description; `survival` must not be empty.
        path: `.png`, `.svg` or `.pdf`.

    Raises:
        CsdError: as `check_plot`.
        OSError: as `write_atomically`.
    """
    survival = calibration["survival"]
    with drawn(path, columns=len(survival), figsize=(5.5 * len(survival), 4), sharey=True) as axes:
        for panel, (role, rows) in zip(axes[0], survival.items(), strict=True):
            for count, values in rows.items():
                panel.plot(range(len(values)), values, label=count)
            panel.invert_xaxis()  # a chain goes from the noise down
            panel.set_xlabel("head step that the draft starts from")
            panel.set_title(role)
        axes[0][0].set_ylabel("chance that all are accepted")
        axes[0][0].set_ylim(0, 1)
        axes[0][-1].legend(title="transitions", fontsize=8)
