"""Files that a figure is drawn to: what can be drawn is known before there is anything to draw."""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..runtime.command.files import write_atomically
from ..runtime.errors import OptionError
from ..runtime.libraries.imports import need

# Formats by the ending of the file.
FORMATS = {".png": "png", ".svg": "svg", ".pdf": "pdf"}


def plot_format(path: Path) -> str:
    """Return the format that a file's name asks for.

    Raises:
        OptionError: none that can be drawn.
    """
    if path.suffix.lower() not in FORMATS:
        raise OptionError(f"plot is {str(path)!r}: give a file that ends in {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def check_plot(path: Path) -> None:
    """Check, before there is anything to draw, that it can be drawn.

    Raises:
        CsdError: matplotlib is not installed, or the format is not known.
    """
    plot_format(path)
    need("--plot", "matplotlib", otherwise="leave --plot out")


@contextmanager
def drawn(
    path: Path, rows: int = 1, columns: int = 1, *, dpi: float | str = 110, **settings: Any
) -> Generator[Any]:
    """Make the panels of a figure, and save what was drawn on them.

    Args:
        path: where to; its ending is the format.
        rows, columns: of panels.
        dpi: dots an inch, or `figure` for matplotlib's own number.
        settings: of `pyplot.subplots`.

    Yields:
        The axes, `[rows][columns]`.

    Raises:
        CsdError: as `check_plot`.
        OSError: as `write_atomically`.
    """
    check_plot(path)
    importlib.import_module("matplotlib").use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(rows, columns, squeeze=False, layout="constrained", **settings)
    try:
        yield axes
        with write_atomically(path) as stream:
            figure.savefig(stream, format=plot_format(path), dpi=dpi)
    finally:
        pyplot.close(figure)
