"""Memory between two parts of an export."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys


def release_memory() -> None:
    """Give memory that nothing uses any more back to the system, where its allocator keeps it."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library than GNU's
            ctypes.CDLL(None).malloc_trim(0)
