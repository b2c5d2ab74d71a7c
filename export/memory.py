"""Memory between two parts of an export."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Generator


def release_memory() -> None:
    """Give memory that nothing uses any more back to the system, where its allocator keeps it."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library than GNU's
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def modules_aside() -> Generator[None]:
    """Let the collector pass over what is in memory at the start: modules, which stay anyway.

    PyTorch's and its exporter's make a pass of half a second, and an export releases memory at each
    part of it.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def leave_in_memory() -> None:
    """As `modules_aside`, of what came since: the modules that a first export imports.

    To be called where no part of a bundle is in memory, within `modules_aside`.
    """
    gc.freeze()
