"""A lack of memory, whoever reports it, as one line: what was asked for, and what takes less."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Generator
from contextlib import contextmanager

from ..errors import BackendError
from .text import first_line

# How the system, the loader, NumPy, PyTorch, ONNX Runtime's allocator and its threads say it.
_SAID = (
    "cannot allocate memory",
    "can't allocate memory",
    "unable to allocate",
    "bad_alloc",
    "bad allocation",
    "failed to allocate memory",
    "failed to map segment",
    "bfc_arena",
    "posixthread",
    "pthread_create",
    "out of memory",
)
# Less than importing NumPy 2 was seen to map on Linux with one core (84 MiB), and with more (124
# MiB with two; each thread of OpenBLAS takes 40).
_NUMPY_MAPS = 80 << 20, 118 << 20
_REFUSED = re.compile(r"requested buffer of size (\d+)")


def is_memory_error(error: BaseException) -> bool:
    """Whether a failure is a lack of memory."""
    return isinstance(error, MemoryError) or speaks_of_memory(str(error))


def speaks_of_memory(text: str) -> bool:
    """Whether what an error says is a lack of memory."""
    said = text.lower()
    return any(words in said for words in _SAID)


class OutOfMemoryError(BackendError):
    """There was too little memory.

    Args:
        cause: what was not possible, and how much was asked for.
        remedy: what takes less; without one only more memory is named.
    """

    def __init__(self, cause: str, remedy: str = "") -> None:
        self.cause, self.remedy = cause, remedy
        ways = f"{remedy}, or {more_memory()}" if remedy else more_memory()
        super().__init__(f"not enough memory: {cause}: {ways}")


def out_of_memory(what: str, error: BaseException, remedy: str = "") -> OutOfMemoryError:
    """The error about a lack of memory.

    Args:
        what: was not possible.
        error: what was raised, which may name the size that was asked for.
        remedy: what takes less, if anything does.
    """
    size = _REFUSED.search(str(error))
    if size is not None:
        asked = f"{max(1, int(size.group(1)) >> 10):,} KiB were refused"
    elif isinstance(error, MemoryError) and str(error):
        asked = first_line(error)  # NumPy names size and shape
    else:
        asked = "a request was refused"
    return OutOfMemoryError(f"{what} ({asked})", remedy)


def check_room_for_numpy() -> None:
    """Check, within a limit of address space, that there is room for what importing NumPy maps.

    Its OpenBLAS does not report that there is none: it ends the process, or interrupts it.

    Raises:
        OutOfMemoryError: there is too little.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return
    import mmap

    size = _NUMPY_MAPS[min(os.cpu_count() or 1, len(_NUMPY_MAPS)) - 1]
    try:
        mmap.mmap(-1, size, prot=mmap.PROT_READ).close()
    except OSError as error:
        raise OutOfMemoryError(f"importing NumPy ({size >> 20} MiB were refused)") from error


def more_memory() -> str:
    """What gives this process more; of a shell's limit other programs take nothing."""
    for limit, option in ((resource.RLIMIT_AS, "v"), (resource.RLIMIT_DATA, "d")):
        size = resource.getrlimit(limit)[0]
        if size != resource.RLIM_INFINITY:
            return f"raise the limit of {size >> 20} MiB (ulimit -{option}) in the shell"
    return "close other programs"


@contextmanager
def memory_explained(what: str, remedy: str) -> Generator[None]:
    """Turn `MemoryError` inside into the error of `out_of_memory`, and add what takes less to that.

    Raises:
        OutOfMemoryError: there was too little memory.
    """
    try:
        yield
    except OutOfMemoryError as error:
        if error.remedy:
            raise
        raise OutOfMemoryError(error.cause, remedy) from error
    except MemoryError as error:
        raise out_of_memory(what, error, remedy) from error
