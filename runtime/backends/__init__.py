"""Backends: how the graphs of a bundle are run.

| name | runs | on |
| --- | --- | --- |
| `onnxruntime` | ONNX files | the CPU |
| `onnxruntime_cuda` | ONNX files | the first CUDA device |
| `tensorrt`, `tensorrt_rtx` | engines | the first CUDA device |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..arguments import instance_of, one_of, truth_value, whole_number, whole_number_from
from ..bundle.manifest import Manifest, needed_graphs
from ..bundle.manifest_checks import ENGINE_BACKENDS, ENGINE_PRECISIONS, PRECISIONS
from ..command.line.logs import logger
from ..command.text import shown
from ..device import find_device
from ..errors import BackendError, OptionError
from .base import (
    Backend,
    BindableGraph,
    Check,
    DeviceClock,
    DeviceTensor,
    Graph,
    GraphDemand,
    HeadRounds,
    Timed,
    unchecked,
)
from .engines import EngineChoice, Machine, check_engines_exist
from .onnx_library import check_cuda_provider
from .onnx_runtime import CUDA_PROVIDER, OnnxLoader, OnnxRuntimeBackend, graph_precision

BACKENDS = ("onnxruntime", "onnxruntime_cuda", "tensorrt", "tensorrt_rtx")
_LOG = logger(__name__)
# What `auto` tries, the best first.
AUTO_ORDER = ("tensorrt", "tensorrt_rtx", "onnxruntime_cuda", "onnxruntime")

MAX_THREADS = 256

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendOptions",
    "BindableGraph",
    "DeviceClock",
    "DeviceTensor",
    "Graph",
    "GraphDemand",
    "HeadRounds",
    "OnnxLoader",
    "OnnxRuntimeBackend",
    "Timed",
    "create_backend",
    "fallback",
    "obstacles",
]


@dataclass(frozen=True)
class BackendOptions:
    """How to run the graphs of a bundle.

    Attributes:
        backend: `auto` or one of `BACKENDS`.
        threads: CPU threads.
        precision: `fp16`, `bf16`, `fp32` or `int8`; None takes the fastest engines that there
            are, and of graphs for ONNX Runtime float32, if the bundle has them.
        memory_limit: MB of device memory for weights, tensors and scratch of engines, or None.
        cuda_graph: whether repeated calls of engines are recorded as CUDA graphs.

    Raises:
        OptionError: a value is of another type or out of range.
    """

    backend: str = "auto"
    threads: int = 2
    precision: str | None = None
    memory_limit: int | None = None
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        instance_of("backend", self.backend, str, f"auto or one of {', '.join(BACKENDS)}")
        threads = whole_number_from("threads", self.threads, 1, MAX_THREADS)
        object.__setattr__(self, "threads", threads)
        object.__setattr__(self, "cuda_graph", truth_value("cuda-graph", self.cuda_graph))
        if self.precision is not None:
            one_of("precision", self.precision, PRECISIONS)
        if self.memory_limit is not None:
            limit = whole_number("memory-limit", self.memory_limit)
            if limit < 1:
                raise OptionError(f"memory-limit is {shown(limit)}: give MB, 1 or more")
            object.__setattr__(self, "memory_limit", limit)


def create_backend(
    folder: Path,
    manifest: Manifest,
    options: BackendOptions,
    check: Check = unchecked,
    order: Sequence[str] = AUTO_ORDER,
) -> Backend:
    """Return the backend that was asked for; `auto` takes the best one that runs this bundle here.

    Args:
        folder: the bundle's directory.
        manifest: what is in it.
        options: which backend, and how.
        check: called with the names of files before they are loaded.
        order: what `auto` tries, the best first.

    Raises:
        BackendError: the name is unknown, or the backend cannot run the bundle here: one line
            with the command that mends it.
    """
    if options.backend != "auto":
        if options.backend not in BACKENDS:
            raise BackendError(
                f"backend is {options.backend!r}: give auto or one of {', '.join(BACKENDS)}"
            )
        _LOG.info("backend %s, as asked for", options.backend)
        return _create(options.backend, folder, manifest, options, check)
    errors: dict[str, BackendError] = {}
    for name in order:
        try:
            backend = _create(name, folder, manifest, options, check)
        except BackendError as error:
            _LOG.debug("backend %s cannot run this bundle here: %s", name, error)
            errors[name] = error
        else:
            _LOG.info("backend %s, the best of %s that runs here", name, ", ".join(order))
            return backend
    # Who has built engines wants to know why they do not run.
    built = {engine.backend for engine in manifest.engines}
    raise next(
        (errors[name] for name in ENGINE_BACKENDS if name in built and name in errors),
        errors[order[-1]],
    )


def fallback(
    failed: str, folder: Path, manifest: Manifest, options: BackendOptions, check: Check
) -> Backend | None:
    """Return what runs a bundle after a backend has failed at work, or None where nothing does.

    Only `auto` has others to go on with, those that it would have tried next: who asked for a
    backend by name wants to know that it fails.

    Args:
        failed: its name.
        folder: the bundle's directory.
        manifest: what is in it.
        options: which backend, and how.
        check: called with the names of files before they are loaded.
    """
    order = AUTO_ORDER[AUTO_ORDER.index(failed) + 1 :] if failed in AUTO_ORDER else ()
    if options.backend != "auto" or not order:
        return None
    try:
        return create_backend(folder, manifest, options, check, order)
    except BackendError:
        return None


def obstacles(folder: Path, manifest: Manifest, options: BackendOptions) -> dict[str, str | None]:
    """For each backend, why it cannot run a bundle here, or None where it can."""
    return {name: obstacle(name, folder, manifest, options) for name in BACKENDS}


def obstacle(name: str, folder: Path, manifest: Manifest, options: BackendOptions) -> str | None:
    """Why a backend of `BACKENDS` cannot run a bundle here, or None where it can."""
    try:
        _create(name, folder, manifest, options, unchecked).close()
    except BackendError as error:
        return str(error)
    return None


def _create(
    name: str, folder: Path, manifest: Manifest, options: BackendOptions, check: Check
) -> Backend:
    if name in ENGINE_BACKENDS:
        return _create_engine_backend(name, folder, manifest, options, check)
    if options.memory_limit is not None:
        raise BackendError(
            f"{name} has no --memory-limit: leave it out, or use engines (--backend tensorrt or "
            "tensorrt_rtx)"
        )
    precision = graph_precision(manifest, folder, options.precision)
    _LOG.info(
        "%s runs %s graphs (%s), of a bundle with %s, with %d threads",
        name, precision, "as nobody asked for others" if options.precision is None else "as asked "
        "for", ", ".join(manifest.precisions), options.threads,
    )  # fmt: skip
    device = None
    if name != "onnxruntime":
        if precision == "int8":
            raise BackendError(
                f"{name} has no operators of int8 graphs: give --backend onnxruntime, or "
                "--precision fp32 or fp16"
            )
        check_cuda_provider(CUDA_PROVIDER)  # first: it is quicker than asking the driver
        device = find_device()
    loader = OnnxLoader(options.threads, device)
    return OnnxRuntimeBackend(folder, manifest, loader, precision, check)


def _create_engine_backend(
    name: str, folder: Path, manifest: Manifest, options: BackendOptions, check: Check
) -> Backend:
    if options.precision not in (None, *ENGINE_PRECISIONS):
        raise BackendError(
            f"{name} has no engines of {options.precision}: give --backend onnxruntime, or "
            f"--precision {', '.join(ENGINE_PRECISIONS)}"
        )
    check_engines_exist(manifest, folder, name)  # before anything is imported
    from .tensorrt import TensorRtBackend
    from .tensorrt.binding import Binding

    device = find_device()
    binding = Binding(name)
    engines = EngineChoice(
        manifest, folder, Machine(name, binding.version, device), options.precision
    )
    engines.require(needed_graphs(manifest))
    limit = None if options.memory_limit is None else options.memory_limit << 20
    return TensorRtBackend(
        folder, manifest, binding, engines, memory_limit=limit, cuda_graph=options.cuda_graph,
        check=check,
    )  # fmt: skip
