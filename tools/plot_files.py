"""Files that a figure is drawn to: what can be drawn is known before there is anything to draw."""

from __future__ import annotations

from pathlib import Path

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
