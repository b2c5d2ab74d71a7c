"""Mirrors of the C structures that Python fills: one place beside the headers that declare them.

| structure | declared in | filled by |
| --- | --- | --- |
| `DensityPointers`, `StepPointers` | `kernels/host.h` | `csd.plugins.host`, the head samplers |
| `RowsStruct`, `ChainsStruct`, `SpeculationStruct`, `IterationStruct` | `kernels/head.h` | the head samplers (`csd.runtime.head.native`) |
| `RoundsStruct` | `kernels/rounds.cuh` | `csd.plugins.rounds` |
"""  # noqa: E501

from __future__ import annotations

import ctypes
from typing import Any


def _pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_void_p) for name in names]


def _integers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_int64) for name in names]


class DensityPointers(ctypes.Structure):
    """`CsdDensity`: arrays of a density."""

    _fields_ = _pointers("mean", "std", "sum_log_std")


class StepPointers(ctypes.Structure):
    """`CsdSteps`: columns of a head schedule."""

    _fields_ = _pointers("recip", "recipm1", "coef_x0", "coef_x", "log_std_base", "log_std_slope")


class RowsStruct(ctypes.Structure):
    """`CsdRows`: the rows of a round."""

    _fields_ = _pointers("x", "step", "token", "start")


class ChainsStruct(ctypes.Structure):
    """`CsdChains`: chains on their way."""

    _fields_ = [
        *_integers("tokens", "channels", "steps"),
        ("temperature", ctypes.c_float),
        ("table", StepPointers),
        *_pointers("normals", "index", "rounds", "states", "sum_log_std", "std"),
    ]


class SpeculationStruct(ctypes.Structure):
    """`CsdSpeculation`: chains with drafted windows."""

    _fields_ = [
        ("chains", ChainsStruct),
        ("rows", RowsStruct),
        *_pointers("weight", "bias", "share", "windows", "log_uniforms", "generators"),
        *_pointers("x0hat", "v", "noise", "mean", "log_std", "next"),
    ]


class IterationStruct(ctypes.Structure):
    """`CsdIteration`: chains that are swept."""

    _fields_ = [
        ("chains", ChainsStruct),
        ("rows", RowsStruct),
        *_integers("window"),
        ("tolerance", ctypes.c_float),
        *_pointers("slope", "before", "mean"),
    ]


class RoundsStruct(ctypes.Structure):
    """`CsdRounds`: device memory of the rounds."""

    _fields_ = [
        *_pointers(
            "tables", "weight", "bias", "share", "windows", "normals", "log_uniforms", "streams",
            "scale", "index", "drawn", "x0hat", "v", "features", "states", "noise", "sum_log_std",
            "std", "rounds", "rows_of", "status", "x", "step", "token", "mean", "log_std", "next",
            "eps", "network_v", "progress",
        ),
        *[(name, ctypes.c_int32) for name in ("tokens", "channels", "steps")],
        ("temperature", ctypes.c_float),
    ]  # fmt: skip
