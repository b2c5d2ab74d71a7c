"""A machine with a GPU, as far as the runtime can see, of the stand-ins."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field

from csd.runtime.device import DeviceInfo, current_platform

from .cuda_bindings import FakeCuda
from .tensorrt.common import VERSIONS
from .tensorrt.runtime import FakeTensorRT

ORIN = DeviceInfo("Orin", "8.7", current_platform(), "12.6", 8 << 30)


@dataclass
class Machine:
    cuda: FakeCuda
    libraries: dict[str, FakeTensorRT]
    launched: list[str] = field(default_factory=list)
    hangs: list[int] = field(default_factory=list)


def be_machine(monkeypatch, *backends, old=False, device=ORIN):
    """Put the vendor's packages of some backends in the place of those that are installed."""
    cuda = FakeCuda()
    libraries = {name: FakeTensorRT(name, cuda, old=old) for name in backends}
    for name in VERSIONS:
        module = libraries[name].module if name in libraries else None
        monkeypatch.setitem(sys.modules, name, module)
    package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
    package.bindings, bindings.runtime = bindings, cuda.module
    package.__path__, bindings.__path__ = [], []
    for name, module in (
        ("cuda", package), ("cuda.bindings", bindings), ("cuda.bindings.runtime", cuda.module)
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("csd.runtime.backends.find_device", lambda: device)
    return Machine(cuda, libraries)
