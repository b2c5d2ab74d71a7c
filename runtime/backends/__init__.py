"""Backends: how the graphs of a bundle are run."""

from __future__ import annotations

from ..errors import BackendError
from .base import Backend, Graph
from .onnx_runtime import OnnxRuntimeBackend

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt_rtx")

__all__ = ["BACKENDS", "Backend", "Graph", "create_backend"]


def create_backend(name: str, threads: int) -> Backend:
    """Return the backend of that name; `auto` takes the best one that can run here.

    Raises:
        BackendError: the name is unknown, or the backend cannot be used.
    """
    if name in ("auto", "onnxruntime"):
        return OnnxRuntimeBackend(threads)
    if name in BACKENDS:
        raise BackendError(
            f"this version of csd has no {name} engines yet: use --backend onnxruntime"
        )
    raise BackendError(f"backend is {name!r}: give auto or one of {', '.join(BACKENDS)}")
