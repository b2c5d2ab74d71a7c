"""A stand-in for `cuda.core` on a machine whose only device is an Orin."""

from __future__ import annotations

import sys
import types
from collections import namedtuple

Capability = namedtuple("Capability", ["major", "minor"])


class Device:
    def __init__(self, device_id=None):
        if device_id:
            raise RuntimeError("invalid device ordinal")

    @property
    def compute_capability(self):
        return Capability(8, 7)

    def set_current(self, ctx=None):
        CURRENT.append(self)


class Kernel:
    def __init__(self, code, name):
        self.code, self.name = code, name


class ObjectCode:
    def __init__(self, module):
        self.image = module

    @classmethod
    def from_cubin(cls, module, *, name="", symbol_mapping=None):
        return cls(module)

    def get_kernel(self, name):
        return Kernel(self.image, name)


class LaunchConfig:
    def __init__(self, grid=None, cluster=None, block=None, shmem_size=None):
        self.grid, self.block = grid, block


# Devices that were made current.
CURRENT: list[Device] = []


def install_cuda_core(monkeypatch, package, launch):
    """Put the stand-in into the package `cuda`; `launch(stream, config, kernel, *args)` is its."""
    CURRENT.clear()
    core = types.ModuleType("cuda.core")
    core.Device, core.ObjectCode, core.LaunchConfig = Device, _fresh(ObjectCode), LaunchConfig
    core.launch = launch
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setitem(sys.modules, "cuda.core", core)
    monkeypatch.setattr(package, "core", core, raising=False)
    return core


def _fresh(kind):
    """A subclass that a test may change."""
    return type(kind.__name__, (kind,), {})
