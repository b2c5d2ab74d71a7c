"""What a backend offers: load a graph, run it on named arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Graph(Protocol):
    """A loaded network."""

    def run(self, feeds: Mapping[str, Array], rows: int = 0) -> dict[str, NDArray[np.float32]]:
        """Run on named input arrays and return the named outputs.

        `rows` is how many rows the weights multiply, where the caller knows: a hint for threads.
        """
        ...


class Backend(Protocol):
    """Loads graphs and reports what it is."""

    name: str

    def load(self, path: Path) -> Graph:
        """Load an ONNX file.

        Raises:
            BackendError: the file cannot be loaded.
        """
        ...

    def versions(self) -> dict[str, str]:
        """Library versions, for reports."""
        ...
