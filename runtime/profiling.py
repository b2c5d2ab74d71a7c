"""Ranges that NVIDIA's profilers show, where the `nvtx` package is installed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _annotate() -> Any:
    try:
        import nvtx  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return nvtx.annotate


def profiler_range(name: str) -> AbstractContextManager[Any]:
    """Name what happens inside, for a profiler's timeline."""
    annotate = _annotate()
    return nullcontext() if annotate is None else annotate(message=name, domain="csd")
