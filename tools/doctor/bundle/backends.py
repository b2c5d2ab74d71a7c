"""Which backends run a bundle on this machine, what they take, and a short run of the best."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ....runtime.backends import AUTO_ORDER, BACKENDS, BackendOptions, obstacle
from ....runtime.backends.engines import EngineChoice, Machine
from ....runtime.backends.onnx_runtime import graph_precision
from ....runtime.bundle.manifest import Manifest, needed_graphs
from ....runtime.bundle.manifest_checks import ENGINE_BACKENDS
from ....runtime.command.memory_errors import more_memory
from ....runtime.device import find_device
from ....runtime.errors import BackendError
from ..check import NOTE, OK, PROBLEM, Check, split_message
from ..child import run_child
from .estimate import TOLERANCE, Memory, of_engines, of_graphs

AREA = "running it"
_TRIAL = f"{__package__}.trial"
_SECONDS = 600.0


def backend_checks(
    path: Path,
    manifest: Manifest,
    sizes: Mapping[str, int],
    *,
    threads: int,
    available: int | None,
    ending: Mapping[str, tuple[str, str]],
) -> tuple[list[Check], str | None]:
    """Say of each backend whether it runs a bundle here.

    Args:
        path: of the bundle.
        manifest: of it.
        sizes: bytes of its files by name.
        threads: of a session.
        available: bytes of memory that this process can still have, or None.
        ending: modules whose import ends Python, with reason and remedy: none is imported here.

    Returns:
        The checks, and the best backend that runs it, or None.
    """
    reasons = {name: _obstacle(name, path, manifest, threads, ending) for name in BACKENDS}
    best = next((name for name in AUTO_ORDER if reasons[name] is None), None)
    checks: list[Check] = []
    for name in BACKENDS:
        why = reasons[name]
        if why is None:
            memory = _memory(name, path, manifest, sizes, threads)
            checks.append(_runs(name, memory, available))
            continue
        state = PROBLEM if best is None and name == _wanted(manifest) else NOTE
        checks.append(Check(AREA, name, state, "does not run it here", *why))
    return checks, best


def trial_check(path: Path, backend: str, threads: int) -> Check:
    """Generate one image of few AR steps in another process."""
    arguments = {"bundle": str(path), "backend": backend, "threads": threads}
    ended = run_child(_TRIAL, arguments, _SECONDS)
    found = next((value for value in ended.values if isinstance(value, dict)), {})
    name = "a short run"
    if "error" in found:
        return Check(AREA, name, PROBLEM, f"failed on {backend}", *split_message(found["error"]))
    if "seconds" not in found:
        return Check(
            AREA, name, PROBLEM, f"failed on {backend}", ended.how or "it printed nothing",
            "try another --backend of csd-generate, or install the libraries again",
        )  # fmt: skip
    return Check(
        AREA, name, OK,
        f"one image of {found['ar_steps']} AR steps on {backend}: opened in "
        f"{found['open_seconds']:.1f} s, made in {found['seconds']:.2f} s, peak "
        f"{found['peak_bytes'] / 1e6:.0f} MB",
    )  # fmt: skip


def _obstacle(
    name: str, path: Path, manifest: Manifest, threads: int, ending: Mapping[str, tuple[str, str]]
) -> tuple[str, str] | None:
    """Why a backend does not run a bundle here, and what mends it; None where it does."""
    needed = (name, "cuda.bindings") if name in ENGINE_BACKENDS else ("onnxruntime",)
    if (culprit := next((module for module in needed if module in ending), None)) is not None:
        return ending[culprit]
    why = obstacle(name, path, manifest, BackendOptions(name, threads))
    return None if why is None else split_message(why)


def _wanted(manifest: Manifest) -> str:
    """The backend that a user of this bundle would look for first."""
    built = {engine.backend for engine in manifest.engines}
    return next((name for name in ENGINE_BACKENDS if name in built), "onnxruntime")


def _memory(
    name: str, path: Path, manifest: Manifest, sizes: Mapping[str, int], threads: int
) -> Memory:
    if name not in ENGINE_BACKENDS:
        precision = graph_precision(manifest, path, None)
        return of_graphs(manifest, sizes, precision, threads, device=name != "onnxruntime")
    from ....runtime.backends.tensorrt.binding import Binding

    machine = Machine(name, Binding(name).version, find_device())
    choice = EngineChoice(manifest, path, machine)
    choice.require(needed_graphs(manifest))
    return of_engines(manifest, [*choice.chosen.values()])


def _runs(name: str, memory: Memory, available: int | None) -> Check:
    finding = (
        f"runs it: {memory.weights / 1e6:.0f} MB of weights, about {memory.host / 1e6:.0f} MB of "
        f"memory for one image"
    )
    if memory.device is None:
        finding += f" (estimated from the files, within {TOLERANCE:.0%} where it was compared)"
    else:
        finding += f" and {memory.device / 1e6:.0f} MB of the device (a guess: none was measured)"
    limits = [(memory.host, available, "memory")]
    if memory.device is not None:
        limits.append((memory.device, _device_memory(), "the device's memory"))
    for needed, there, what in limits:
        if there is not None and needed > there:
            return Check(
                AREA, name, PROBLEM, finding,
                f"{there / 1e6:.0f} MB of {what} are available",
                more_memory() if what == "memory" else "use --backend onnxruntime",
            )  # fmt: skip
    return Check(AREA, name, OK, finding)


def _device_memory() -> int | None:
    try:
        return find_device().memory
    except BackendError:
        return None
