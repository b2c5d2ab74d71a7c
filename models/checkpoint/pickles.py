"""Files of `torch.save`: plain data, tensors, `argparse.Namespace` and NumPy's scalars, no code.

A pickle names functions and what to call them with. PyTorch's restricted unpickler calls those of
its own list only, which make tensors and plain data. Training scripts keep their arguments and
figures beside the weights, so two more are taken: `Namespace`, which holds attributes and does
nothing, and NumPy's scalars, which become numbers and texts of Python here without NumPy's own
functions being called.
"""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...runtime.command.memory_errors import is_memory_error, out_of_memory
from ...runtime.command.text import plain, shown
from .content import unreadable

_PROTOCOL = 2  # of torch.save, and the one that its restricted unpickler knows
_GLOBAL = re.compile(r"(?:GLOBAL|global) ([\w.]+)")
_SCALARS = re.compile(r"[biufcSU]\d{1,6}")  # numbers and texts


class _NumpyType:
    """What `numpy.dtype` makes in a pickle: the type of a scalar, a number or a text."""

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or not _SCALARS.fullmatch(code):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"NumPy type {shown(code)} is no number or text")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder("<" if state[1] == "|" else state[1])


def _numpy_scalar(kind: _NumpyType, raw: bytes) -> Any:
    if len(raw) != kind.dtype.itemsize:
        raise ValueError(f"a NumPy scalar has {len(raw)} bytes, not {kind.dtype.itemsize}")
    return np.ndarray((), kind.dtype, raw).item()


_ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    (bytes, "builtins.bytes"),  # plain data that PyTorch's list leaves out
    (frozenset, "builtins.frozenset"),
    (_NumpyType, "numpy.dtype"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
]


def read_pickle(path: Path, *, mapped: bool) -> object:
    """Return what `torch.save` wrote; tensors lie on the CPU.

    Args:
        path: the file.
        mapped: tensors are the file's own pages, which are read when they are used. Files from
            before PyTorch 1.6 cannot be mapped and are read whole.

    Raises:
        WeightsError: it is damaged, or holds something else than plain data, tensors, `Namespace`
            and NumPy's scalars.
        BackendError: there is too little memory.
        OSError: it cannot be opened.
    """
    before = torch.serialization.get_safe_globals()  # what the caller allowed stays allowed
    allowed = [each for each in _ALLOWED if each not in before]
    with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
        warnings.simplefilter("ignore")  # of pickles that are something else
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except OSError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            if is_memory_error(error):
                raise out_of_memory(
                    f"reading {path}", error, "give a file of the weights alone"
                ) from error
            strangers = _strangers(path, error)
            if strangers:
                raise unreadable(
                    path, f"holds {strangers}: code, which is not run; of pickles plain data, "
                    "tensors, argparse.Namespace and NumPy scalars are read",
                    "save the weights alone where you trust it (torch.save of its state_dict)",
                ) from error  # fmt: skip
            protocol = _protocol(path)
            if protocol > _PROTOCOL:
                raise unreadable(
                    path, f"was saved with pickle protocol {protocol}, and {_PROTOCOL} is read",
                    "save it again with torch.save as it is, without pickle_protocol",
                ) from error  # fmt: skip
            raise unreadable(path, f"is damaged or truncated ({_reason(error)})") from error


def _strangers(path: Path, error: Exception) -> str:
    """Names of what a pickle would call and may not, `a, b and 3 more`; empty where it is damaged.

    The names are those that stand in the file; what it makes of them on the way is in the error.
    """
    text = str(error)
    if "GLOBAL" not in text and "unrecognized function" not in text:
        return ""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a file from before PyTorch 1.6; a damaged one
        names = []
    names = names or _GLOBAL.findall(text)[:1]
    first = ", ".join(plain(name, 80) for name in names[:3])
    return f"{first} and {len(names) - 3} more" if len(names) > 3 else first


def _protocol(path: Path) -> int:
    """Protocol of a file's pickle; 0 where it does not tell."""
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as stream:
                start = stream.read(2)
        else:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith("data.pkl")]
                with archive.open(names[0]) as stream:
                    start = stream.read(2)
    except (OSError, ValueError, IndexError, zipfile.BadZipFile, NotImplementedError):
        return 0
    return start[1] if start[:1] == b"\x80" and len(start) == 2 else 0


def _reason(error: Exception) -> str:
    """What a library says, without its advice to load with code."""
    said = plain(str(error), 1000)
    said = said.partition("WeightsUnpickler error: ")[2] or said
    for advice in (" Check the documentation", ". Please ", " Exception raised from"):
        said = said.partition(advice)[0]
    return said.strip()[:120] or type(error).__name__
