"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError
from .base import Array

# Handing work to a second thread costs more than it saves on matrices of a few hundred columns:
# the shipped head at 33 rows took 0.30 ms with one thread and 0.58 ms with two.
ONE_THREAD_BYTES = 8 << 20


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            "the onnxruntime backend is not installed: pip install 'csd[cpu]' (or 'csd[gpu]')"
        ) from error
    return onnxruntime


class OnnxGraph:
    """One inference session."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._outputs: list[str] = [output.name for output in session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, NDArray[np.float32]]:
        """See `Graph.run`."""
        values = self._session.run(self._outputs, dict(feeds))
        return dict(zip(self._outputs, values, strict=True))


class OnnxRuntimeBackend:
    """Runs ONNX files on the CPU.

    Args:
        threads: threads of one operator, in graphs of `ONE_THREAD_BYTES` and more.

    Raises:
        BackendError: onnxruntime is not installed.
    """

    name = "onnxruntime"

    def __init__(self, threads: int) -> None:
        self._ort = _import()
        self._threads = threads

    def _options(self, threads: int) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Several sessions take turns: a pool that spins after its turn slows the next one down.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options

    def load(self, path: Path) -> OnnxGraph:
        """See `Backend.load`."""
        try:
            weights = [path, *path.parent.glob(f"{path.name}.data")]
            small = sum(file.stat().st_size for file in weights) < ONE_THREAD_BYTES
            session = self._ort.InferenceSession(
                str(path),
                self._options(1 if small else self._threads),
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:  # onnxruntime raises its own untyped exceptions
            reason = str(error).splitlines()[0][:200]
            raise BackendError(
                f"onnxruntime cannot load {path} ({reason}): export the bundle again"
            ) from error
        return OnnxGraph(session)

    def versions(self) -> dict[str, str]:
        """See `Backend.versions`."""
        return {"onnxruntime": self._ort.__version__}
