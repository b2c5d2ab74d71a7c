"""TensorRT and TensorRT-RTX: engines of a bundle on the first CUDA device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ....plugins.launch import LoadedKernels
from ....plugins.operators import OPERATOR_OF
from ...bundle.manifest import EngineSpec, Manifest
from ...command.line.logs import logger
from ...errors import BackendError
from ..base import Check, Dims, GraphDemand, unchecked
from ..engines import EngineChoice, graph_spec, renewal_command
from ..shapes import Limits, Range, check_calls
from . import plugins
from .binding import Binding
from .cuda import Cuda, EventClock
from .execution import Device
from .graph import EngineGraph
from .kernel_cache import KernelFile, cache_file
from .memory import Arena
from .plan import blocks, clipped, fit
from .rounds import DeviceRounds, load_kernels

_LOG = logger(__name__)

__all__ = ["TensorRtBackend"]


class TensorRtBackend:
    """Runs the engines of one bundle.

    Args:
        folder: the bundle's directory.
        manifest: what is in it.
        binding: the library.
        engines: says which engine runs a graph, and on which device.
        memory_limit: bytes of device memory for weights, tensors and scratch, or None.
        cuda_graph: whether repeated calls are recorded as CUDA graphs.
        check: called with the names of files before they are loaded.

    Raises:
        BackendError: the CUDA bindings are missing, or the device fails.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        binding: Binding,
        engines: EngineChoice,
        *,
        memory_limit: int | None = None,
        cuda_graph: bool = True,
        check: Check = unchecked,
    ) -> None:
        self.name = binding.backend
        self._folder, self._manifest, self._check = folder, manifest, check
        self._binding, self._engines = binding, engines
        self._info = device = engines.machine.device
        self._capture = cuda_graph
        if self.name == "tensorrt_rtx" and (path := cache_file(binding.version, device)):
            binding.kernel_file = KernelFile(path)
        cuda = Cuda(device.driver)
        stream = cuda.stream()
        self._device = Device(binding, cuda, stream, Arena(cuda, stream, memory_limit))
        self._clock = EventClock(cuda, stream)
        self._graphs: dict[str, EngineGraph] = {}
        self._ranges: dict[str, Mapping[str, Range]] = {}
        self._rounds: list[DeviceRounds] = []
        # Kernels of the rounds, and why there are none; None until they were looked for.
        self._kernels: tuple[LoadedKernels | None, str] | None = None
        self._plugins_loaded = False
        self._closed = False

    @property
    def clock(self) -> EventClock:
        """See `Timed.clock`."""
        return self._clock

    @property
    def engines(self) -> Mapping[str, EngineSpec]:
        """The engine of each graph."""
        return self._engines.chosen

    def open(
        self, graph: str, padding: Mapping[str, int] | None = None, *, lasting: bool = False
    ) -> EngineGraph:
        """See `Backend.open`."""
        if graph in self._graphs:
            return self._graphs[graph]
        folder, engine_spec = self._folder, self._engines.of(graph)
        spec = graph_spec(self._manifest, graph, engine_spec.precision)
        if graph in OPERATOR_OF:
            self._load_plugins()
        self._check.code(engine_spec.file)
        began = time.perf_counter()
        try:
            engine = self._binding.deserialize(folder, engine_spec, spec)
        except BackendError as error:
            named = self.name == "tensorrt" and graph in OPERATOR_OF
            if named and not self._has_plugin(graph):
                raise plugins.missing(graph, folder, self._info.architecture) from error
            raise
        seconds = time.perf_counter() - began
        _LOG.debug("graph %s opened in %.3f s: %s", graph, seconds, engine_spec.file)
        self._device.arena.weights += engine_spec.size
        self._ranges[graph] = engine.ranges
        self._graphs[graph] = EngineGraph(
            graph, spec, engine, self._device,
            Limits(graph, engine.ranges, renewal_command(folder, engine_spec)),
            padding or {},
            capture=self._capture, lasting=lasting,
        )  # fmt: skip
        return self._graphs[graph]

    def head_rounds(self, graph: str) -> DeviceRounds | None:
        """See `Backend.head_rounds`."""
        if self._kernels is None:
            self._kernels = load_kernels(self._folder, self._check)
        kernels, _ = self._kernels
        if kernels is None:
            return None
        self._rounds.append(DeviceRounds(self._graphs[graph], self._device, kernels))
        return self._rounds[-1]

    def _load_plugins(self) -> None:
        """Register the plugin creators before an engine that may need them is loaded."""
        if self._plugins_loaded or self.name != "tensorrt":
            return
        library = plugins.find_library(self._folder, self._check)
        if library is not None:
            plugins.register(self._binding, library)
        self._plugins_loaded = True

    def _has_plugin(self, graph: str) -> bool:
        return self._binding.has_plugin(OPERATOR_OF[graph], plugins.VERSION, plugins.NAMESPACE)

    def prepare(self, demand: Mapping[str, GraphDemand]) -> Mapping[str, Dims]:
        """See `Backend.prepare`."""
        self._device.stream.synchronize()  # a run that was interrupted may have left work there
        arena = self._device.arena

        def need(graph: str, dims: Mapping[str, int]) -> tuple[int, int]:
            return self._graphs[graph].needs(dims, demand[graph].on_device)

        def most(graph: str, dimension: str) -> int | None:
            limits = self._graphs[graph].limits.ranges.get(dimension)
            return None if limits is None else limits[1]

        wanted = {
            graph: replace(largest, least=max(largest.least, self._least(graph, largest.shrinks)))
            for graph, largest in clipped(demand, most).items()
        }
        check_calls(
            (
                (self._graphs[graph].limits, largest.sizes, largest.alike)
                for graph, largest in wanted.items()
            ),
            self._ranges,
        )
        block_of = {graph: self._graphs[graph].block for graph in wanted}
        sizes = fit(wanted, need, arena.available, arena.weights, block_of)
        for graph, dims in sizes.items():
            self._graphs[graph].plan(dims, demand[graph].on_device)
        if sizes:
            planned = blocks(sizes, need, block_of)
            _LOG.info(
                "device memory planned: %d bytes of weights, blocks %s, limit %s",
                arena.weights, planned, arena.available,
            )  # fmt: skip
            arena.renew(**planned)
        for own in self._rounds:
            if own.name in sizes:
                own.plan(sizes[own.name])
        return sizes

    def _least(self, graph: str, dimension: str) -> int:
        """Lower end of a graph's dimension."""
        return self._graphs[graph].limits.ranges.get(dimension, (1, 1))[0]

    @property
    def device_memory(self) -> int | None:
        """See `Backend.device_memory`; weights count with the bytes of the engines' files."""
        return self._device.arena.weights + self._device.arena.peak

    def versions(self) -> dict[str, str]:
        """See `Backend.versions`."""
        info = self._info
        precisions = sorted({engine.precision for engine in self._engines.chosen.values()})
        kernels = self._binding.kernel_file
        return {
            self.name: self._binding.version,
            "cuda": self._device.cuda.runtime_version(),
            "driver": info.driver,
            "device": info.name,
            "compute_capability": info.compute_capability,
            "precision": ", ".join(precisions),
            "head_rounds": self._where_rounds_run(),
            **({"kernel_cache": "reused" if kernels.reused else "new"} if kernels else {}),
        }

    def _where_rounds_run(self) -> str:
        if not self._rounds:
            return "host" if self._kernels is None else f"host ({self._kernels[1]})"
        left = [left for own in self._rounds if (left := own.left_to_the_host)]
        return f"device ({'; '.join(left)})" if left else "device"

    def recordings(self) -> dict[str, tuple[int, str | None]]:
        """CUDA graphs that each graph holds, and why it records no more, or None."""
        return {
            name: (len(graph.executor.recordings), graph.executor.recordings.refusal)
            for name, graph in self._graphs.items()
        }

    def close(self) -> None:
        """See `Backend.close`."""
        if self._closed:
            return
        self._closed = True
        self._device.stream.synchronize()  # contexts must outlive their calls
        for part in (*self._rounds, *self._graphs.values()):
            part.close()
        self._rounds.clear()
        self._graphs.clear()
        self._device.arena.clear()
        self._clock.close()
        self._device.stream.close()
        self._binding.close()
