"""Whether an engine that is there is fit to be kept.

| what is found | where |
| --- | --- |
| its file is missing, or is not the one that was written | anywhere |
| its library cannot load it | on a device that it is for, with the library version that built it |

Without such a device the library version that the manifest records decides alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from ...plugins.operators import OPERATOR_OF
from ...runtime.backends.engines import Machine
from ...runtime.backends.tensorrt.binding import Binding
from ...runtime.device import find_device
from ...runtime.errors import BackendError
from ...runtime.manifest import EngineSpec, file_sha256

# Returns why an engine of a bundle cannot be kept, or None.
Fault = Callable[[Path, EngineSpec], str | None]


def damage(root: Path, engine: EngineSpec) -> str | None:
    """Return what happened to an engine's file, or None."""
    path = root / engine.file
    if not path.is_file():
        return "its file is missing"
    return None if file_sha256(path) == engine.sha256 else "its file was altered"


def fault_here() -> Fault:
    """Return what finds damage, and engines that their library cannot load on this machine."""
    try:
        device = find_device()
    except BackendError:
        return damage

    @cache
    def binding_of(backend: str) -> Binding | None:
        try:
            binding = Binding(backend)
            binding.start()
        except BackendError:
            return None  # nothing can be tried
        return binding

    def fault(root: Path, engine: EngineSpec) -> str | None:
        if found := damage(root, engine):
            return found
        # Such an engine may need a plugin that is not here, and be fit where it is.
        if engine.backend == "tensorrt" and engine.graph in OPERATOR_OF:
            return None
        binding = binding_of(engine.backend)
        if binding is None or not Machine(engine.backend, binding.version, device).runs(engine):
            return None
        binding.forget_messages()
        if binding.load((root / engine.file).read_bytes()) is not None:
            return None
        return f"the library cannot load it ({binding.message()})"

    return fault
