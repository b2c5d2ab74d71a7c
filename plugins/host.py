"""The operators in compiled code on the CPU: `plugins/kernels/host.cpp` behind ctypes.

The library is built with the package where a C++ compiler is found, and is not needed: without it
the runtime computes the same in NumPy, more slowly. `CSD_HOST_LIBRARY` is `0` or `off` for none,
`1` or `on` for the built one, which must then be there, or the path of another. Functions take and
return what their namesakes in `csd.plugins.reference` do.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .reference import AcceptanceKind, Bool, Density, Float64, log_sigma
from .structs import DensityPointers, StepPointers

ABI_VERSION = 2
ENVIRONMENT = "CSD_HOST_LIBRARY"
_OFF = ("0", "off", "no", "false")
_ON = ("1", "on", "yes", "true")
MAX_TRIES = 1 << 20

_REBUILD = "run python -m csd.plugins.build --host-only"


_COUNTS = (
    "csd_continue_residual",
    "csd_verify_window",
    "csd_speculation_gather",
    "csd_speculation_settle",
    "csd_iteration_gather",
    "csd_iteration_settle",
)
_PROCEDURES = ("csd_accept", "csd_resample", "csd_transition")


class HostLibraryError(RuntimeError):
    """The library that was asked for cannot be used."""


def find_library() -> Path | None:
    """Return the library that `library()` loads, or None.

    Raises:
        HostLibraryError: it was asked for and is not built.
    """
    asked = os.environ.get(ENVIRONMENT, "").strip()
    if asked.lower() in _OFF:
        return None
    built = _built_library()
    if asked.lower() in _ON and built is None:
        raise HostLibraryError(
            f"{ENVIRONMENT} is {asked} and the host library is not built: {_REBUILD}, or unset it"
        )
    return built if not asked or asked.lower() in _ON else Path(asked).absolute()


@functools.cache
def _built_library() -> Path | None:
    found = (path for path in sorted(Path(__file__).parent.glob("_host*")) if _is_library(path))
    return next(found, None)


def _is_library(path: Path) -> bool:
    return path.suffix in (".so", ".dylib")


def library() -> ctypes.CDLL | None:
    """Load the library once; None where it was not built or is switched off.

    Raises:
        HostLibraryError: it is not built though asked for, cannot be loaded, or belongs to another
            version of csd.
    """
    path = find_library()
    return None if path is None else _load(path)


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.csd_abi_version.restype = ctypes.c_int64
        version = int(loaded.csd_abi_version())
    except (OSError, AttributeError) as error:
        raise HostLibraryError(
            f"cannot load the host library {path} ({error}): {_REBUILD}, or unset {ENVIRONMENT}"
        ) from error
    if version != ABI_VERSION:
        raise HostLibraryError(
            f"the host library {path} has interface {version}, this csd needs {ABI_VERSION}: "
            f"{_REBUILD}"
        )
    for name in _COUNTS:
        getattr(loaded, name).restype = ctypes.c_int64
    for name in _PROCEDURES:
        getattr(loaded, name).restype = None
    return loaded


def _required() -> ctypes.CDLL:
    loaded = library()
    if loaded is None:
        raise HostLibraryError(f"the host library is not built: {_REBUILD}")
    return loaded


def pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    """Address of a dense array, which must outlive its use."""
    if not array.flags.c_contiguous:
        raise ValueError("compiled code takes dense arrays only")
    # Not `array.ctypes.data`, which takes ten times as long.
    return ctypes.c_void_p(array.__array_interface__["data"][0])


_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def generator_pointer(rng: np.random.Generator) -> ctypes.c_void_p:
    """NumPy's `bitgen_t` of a generator, which must outlive its use."""
    return ctypes.c_void_p(_capsule_pointer(rng.bit_generator.capsule, b"BitGenerator"))


def _dense(array: ArrayLike, dtype: Any = np.float64) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype=dtype)


class _Densities:
    """A density's arrays and the structure that points to them."""

    def __init__(self, density: Density, shape: tuple[int, ...]) -> None:
        self.arrays = [
            _dense(np.broadcast_to(a, shape))
            for a in (density.mean, density.std, density.sum_log_std)
        ]
        self.pointers = DensityPointers(*(pointer(a) for a in self.arrays))

    def by_reference(self) -> Any:
        return ctypes.byref(self.pointers)


def _sign(kind: AcceptanceKind) -> ctypes.c_double:
    return ctypes.c_double(1.0 if kind == "paper" else -1.0)


def accept(
    x: ArrayLike,
    p: Density,
    q: Density,
    u: ArrayLike,
    *,
    kind: AcceptanceKind = "paper",
    inner_temperature: float = 1.0,
) -> tuple[Bool, Float64]:
    """As `reference.accept`."""
    x, u = _dense(x), _dense(u)
    count, channels = x.shape
    accepted, ratio = np.empty(count, dtype=np.bool_), np.empty(count)
    target, draft = _Densities(p, x.shape), _Densities(q, x.shape)
    _required().csd_accept(
        ctypes.c_int64(count), ctypes.c_int64(channels), pointer(x), target.by_reference(),
        draft.by_reference(), pointer(u), _sign(kind), ctypes.c_double(inner_temperature),
        pointer(accepted), pointer(ratio),
    )  # fmt: skip
    return accepted, ratio


def resample(
    p: Density,
    q: Density,
    normals: ArrayLike,
    uniforms: ArrayLike,
    *,
    kind: AcceptanceKind = "paper",
) -> tuple[Float64, Bool]:
    """As `reference.resample`."""
    normals, uniforms = _dense(normals), _dense(uniforms)
    tries, count, channels = normals.shape
    x, done = np.empty((count, channels)), np.empty(count, dtype=np.bool_)
    target, draft = _Densities(p, x.shape), _Densities(q, x.shape)
    _required().csd_resample(
        ctypes.c_int64(tries), ctypes.c_int64(count), ctypes.c_int64(channels),
        target.by_reference(), draft.by_reference(), pointer(normals), pointer(uniforms),
        _sign(kind), pointer(x), pointer(done),
    )  # fmt: skip
    return x, done


def continue_residual(
    p: Density,
    q: Density,
    rng: np.random.Generator,
    *,
    kind: AcceptanceKind = "paper",
    max_tries: int = MAX_TRIES,
) -> Float64 | None:
    """As `reference.continue_residual`, with the same use of `rng`."""
    arrays = [_dense(a) for a in (p.mean, p.std, q.mean, q.std)]
    x = np.empty_like(arrays[0])
    sampled = _required().csd_continue_residual(
        ctypes.c_int64(len(x)), *(pointer(a) for a in arrays),
        ctypes.c_double(float(log_sigma(p, q, kind))), generator_pointer(rng),
        ctypes.c_int64(max_tries), pointer(x),
    )  # fmt: skip
    return x if sampled else None


def transition(
    x: ArrayLike, eps: ArrayLike, v: ArrayLike, step: ArrayLike, tables: list[NDArray[np.float32]]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """One reverse transition of R rows, in float32.

    Args:
        x: states `[R, C]`.
        eps: predicted noise `[R, C]`, guidance applied.
        v: predicted variance share `[R, C]`.
        step: head step of each row, `[R]` in 0..S-1.
        tables: `recip, recipm1, coef_x0, coef_x, log_std_base, log_std_slope`, `[S]` each.

    Returns:
        `(mean, log_std, x0hat)`, each `[R, C]`.

    Raises:
        ValueError: a head step is not in the tables.
    """
    rows = [_dense(a, np.float32) for a in (x, eps, v)]
    step, columns = _dense(step, np.int64), [_dense(a, np.float32) for a in tables]
    count, channels = rows[0].shape
    if count and not 0 <= step.min() <= step.max() < len(columns[0]):
        raise ValueError(f"head steps are not in 0..{len(columns[0]) - 1}")
    mean, log_std, x0hat = (np.empty_like(rows[0]) for _ in range(3))
    _required().csd_transition(
        ctypes.c_int64(count), ctypes.c_int64(channels),
        ctypes.byref(StepPointers(*(pointer(a) for a in columns))), pointer(step),
        *(pointer(a) for a in (*rows, mean, log_std, x0hat)),
    )  # fmt: skip
    return mean, log_std, x0hat


def verify_window(
    proposed: ArrayLike,
    mean_p: ArrayLike,
    std_p: ArrayLike,
    mean_q: ArrayLike,
    std_q: ArrayLike,
    uniforms: ArrayLike,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], Float64]:
    """As `reference.verify_window`, with the same use of `rng`."""
    proposed = _dense(proposed)
    count, window, channels = proposed.shape
    arrays = [_dense(np.broadcast_to(a, proposed.shape)) for a in (mean_p, std_p, mean_q, std_q)]
    uniforms = _dense(uniforms)
    accepted, states = np.empty(count, dtype=np.int64), np.empty_like(proposed)
    status = _required().csd_verify_window(
        ctypes.c_int64(count), ctypes.c_int64(window), ctypes.c_int64(channels), pointer(proposed),
        *(pointer(a) for a in arrays), pointer(uniforms), generator_pointer(rng),
        pointer(accepted), pointer(states),
    )  # fmt: skip
    if status:
        raise ArithmeticError(
            "a transition density is not finite" if status == 1
            else "the residual of a rejected transition was not hit"
        )  # fmt: skip
    return accepted, states
