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
# the shipped head at 32 rows took 0.37 ms with one thread, 0.44 ms with two that spin and 0.64 ms
# with two that sleep.
ONE_THREAD_BYTES = 8 << 20
# Rows times bytes of weights from which on such a graph gains from spinning threads: at 128 rows
# the shipped head broke even, at 800 it took 5.9 ms in place of 8.5.
THREADED_WORK = 150_000_000


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            "the onnxruntime backend is not installed: pip install 'csd[cpu]' (or 'csd[gpu]')"
        ) from error
    return onnxruntime


class OnnxGraph:
    """One graph, in an inference session for its usual work and perhaps one for much of it.

    Args:
        session: for most calls.
        wide: for calls whose rows times `weight_bytes` reach `THREADED_WORK`, or None.
        weight_bytes: size of the graph's weights.
    """

    def __init__(self, session: Any, wide: Any = None, weight_bytes: int = 0) -> None:
        self._session, self._wide = session, wide
        self._wide_rows = THREADED_WORK / max(1, weight_bytes)
        self._outputs: list[str] = [output.name for output in session.get_outputs()]

    def run(self, feeds: Mapping[str, Array], rows: int = 0) -> dict[str, NDArray[np.float32]]:
        """See `Graph.run`."""
        session = self._wide if self._wide and rows >= self._wide_rows else self._session
        values = session.run(self._outputs, dict(feeds))
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

    def _session(self, path: Path, threads: int, *, spin: bool) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Several sessions take turns: a pool that spins after its turn slows the next one down.
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return self._ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def load(self, path: Path) -> OnnxGraph:
        """See `Backend.load`."""
        try:
            files = [path, *path.parent.glob(f"{path.name}.data")]
            weight_bytes = sum(file.stat().st_size for file in files)
            if weight_bytes >= ONE_THREAD_BYTES:
                return OnnxGraph(self._session(path, self._threads, spin=False))
            narrow = self._session(path, 1, spin=False)
            wide = self._session(path, self._threads, spin=True) if self._threads > 1 else None
            return OnnxGraph(narrow, wide, weight_bytes)
        except Exception as error:  # onnxruntime raises its own untyped exceptions
            reason = str(error).splitlines()[0][:200]
            raise BackendError(
                f"onnxruntime cannot load {path} ({reason}): export the bundle again"
            ) from error

    def versions(self) -> dict[str, str]:
        """See `Backend.versions`."""
        return {"onnxruntime": self._ort.__version__}
