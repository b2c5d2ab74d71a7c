"""Which engine of a bundle to run, decided from the manifest before anything is loaded.

An engine runs where its library version, platform and compute capability are this machine's. All
graphs of one model are taken in the same precision.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...plugins.operators import GRAPH_PREFIX
from ..bundle.manifest import EngineSpec, GraphSpec, Manifest
from ..bundle.manifest_checks import ENGINE_PRECISIONS
from ..command.line.logs import logger
from ..device import DeviceInfo, architecture
from ..errors import BackendError

_LOG = logger(__name__)
LIBRARIES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class Machine:
    """What must fit an engine: the backend's name, its library's version and the device."""

    backend: str
    library: str
    device: DeviceInfo

    def runs(self, engine: EngineSpec) -> bool:
        """Whether an engine can be run here."""
        return (
            engine.library == self.library
            and engine.platform == self.device.platform
            and self.device.compute_capability in engine.compute_capabilities
        )


def rebuild_command(folder: Path, backend: str, precision: str | None = None) -> str:
    """The command that builds a bundle's engines on this machine.

    Without a precision it builds the first of `ENGINE_PRECISIONS` that the bundle has graphs for.
    """
    command = f"csd-export --rebuild {folder} --backend {backend}"
    return command if precision is None else f"{command} --precision {precision}"


def renewal_command(folder: Path, engine: EngineSpec) -> str:
    """The command that builds an engine again, with the others of its precision and target."""
    operator = engine.graph.startswith(GRAPH_PREFIX)
    command = rebuild_command(folder, engine.backend, None if operator else engine.precision)
    one = engine.compute_capabilities[0] if len(engine.compute_capabilities) == 1 else None
    return command + _for_device(engine.backend, one)


def _for_device(backend: str, compute_capability: str | None) -> str:
    """The option that builds for one device, where the default is not the device at hand."""
    if backend != "tensorrt_rtx" or compute_capability is None:
        return ""
    return f" --sm {compute_capability.replace('.', '')}"


def graph_spec(manifest: Manifest, graph: str, precision: str) -> GraphSpec:
    """The graph in a precision; what has no variant, as an operator, computes in float32."""
    typed = manifest.tables.get(precision, {})
    return typed.get(graph) or manifest.every_graph[graph]


def check_engines_exist(manifest: Manifest, folder: Path, backend: str) -> None:
    """Check that a bundle has engines for a backend at all, whatever they were built for.

    Raises:
        BackendError: it has none, with the command that builds them.
    """
    if not any(engine.backend == backend for engine in manifest.engines):
        raise BackendError(
            f"bundle {folder} has no {LIBRARIES[backend]} engines: "
            f"{rebuild_command(folder, backend)}"
        )


def choose_engines(
    manifest: Manifest,
    folder: Path,
    graphs: Collection[str],
    machine: Machine,
    precision: str | None = None,
) -> dict[str, EngineSpec]:
    """Return the engine of each graph.

    Args:
        manifest: of the bundle.
        folder: of the bundle, for messages.
        graphs: names of the graphs that are wanted; all of them must have an engine.
        machine: what must fit.
        precision: of the models' graphs; None takes the fastest that a whole model has. Other
            graphs follow it where they can.

    Raises:
        BackendError: an engine is missing or does not fit, with the command that builds it.
    """
    check_engines_exist(manifest, folder, machine.backend)
    chosen: dict[str, EngineSpec] = {}
    for group in _groups(graphs, manifest):
        own = [e for e in manifest.engines if e.backend == machine.backend and e.graph in group]
        # Of two that fit, the one for fewer devices stays: it was built for this one.
        own.sort(key=lambda e: len(e.compute_capabilities), reverse=True)
        fitting = {(e.graph, e.precision): e for e in own if machine.runs(e)}
        _LOG.debug(
            "%d of %d engines of %s fit %s %s on %s", len(fitting), len(own), ", ".join(group),
            machine.backend, machine.library, machine.device.architecture,
        )  # fmt: skip
        strict = precision is not None and group[0].split(".")[0] in manifest.models
        first = () if precision is None else (precision,)
        order = tuple(dict.fromkeys((*first, *ENGINE_PRECISIONS)))
        for wanted in order[:1] if strict else order:
            if all((graph, wanted) in fitting for graph in group):
                chosen.update({graph: fitting[graph, wanted] for graph in group})
                files = [chosen[graph].file for graph in group]
                _LOG.info("engines in %s of %s: %s", wanted, group[0].split(".")[0], files)
                break
        else:
            raise BackendError(
                _misfit(group, own, fitting, machine, folder, precision if strict else None)
            )
    return chosen


class EngineChoice:
    """The engines that one session runs, each chosen when it is first asked for.

    Args:
        manifest: of the bundle.
        folder: of the bundle, for messages.
        machine: what must fit.
        precision: that was asked for, or None.
    """

    def __init__(
        self, manifest: Manifest, folder: Path, machine: Machine, precision: str | None = None
    ) -> None:
        self.machine = machine
        self._manifest, self._folder, self._precision = manifest, folder, precision
        self._chosen: dict[str, EngineSpec] = {}

    def require(self, graphs: Collection[str]) -> None:
        """Choose the engines of graphs that a session cannot do without.

        Raises:
            BackendError: as for `choose_engines`.
        """
        self._chosen |= choose_engines(
            self._manifest, self._folder, graphs, self.machine, self._precision
        )

    def of(self, graph: str) -> EngineSpec:
        """The engine of a graph; one that was not required follows the others of its model.

        Raises:
            BackendError: as for `choose_engines`.
        """
        if graph not in self._chosen:
            role = graph.split(".")[0]
            own = (e.precision for name, e in self._chosen.items() if name.split(".")[0] == role)
            self._chosen |= choose_engines(
                self._manifest, self._folder, [graph], self.machine, next(own, self._precision)
            )
        return self._chosen[graph]

    @property
    def chosen(self) -> Mapping[str, EngineSpec]:
        """The engines so far, by graph."""
        return self._chosen


def _groups(graphs: Collection[str], manifest: Manifest) -> list[tuple[str, ...]]:
    """Graphs that must share a precision: those of a model; every other graph is alone."""
    groups: dict[str, list[str]] = {}
    for graph in graphs:
        role = graph.split(".")[0]
        groups.setdefault(role if role in manifest.models else graph, []).append(graph)
    return [tuple(group) for group in groups.values()]


def _misfit(
    group: tuple[str, ...],
    engines: list[EngineSpec],
    fitting: Mapping[tuple[str, str], EngineSpec],
    machine: Machine,
    folder: Path,
    precision: str | None,
) -> str:
    """One line about the first graph that has no engine for this machine."""
    command = rebuild_command(folder, machine.backend, precision)
    library = LIBRARIES[machine.backend]
    for graph in group:
        if any(key[0] == graph for key in fitting):
            continue
        there = [engine for engine in engines if engine.graph == graph]
        if not there:
            return f"bundle {folder} has no {library} engine of {graph}: {command}"
        engine = _nearest(there, machine)
        device = machine.device
        several = len(engine.compute_capabilities) > 1
        if not (several and device.compute_capability in engine.compute_capabilities):
            command += _for_device(machine.backend, device.compute_capability)
        targets = ", ".join(map(architecture, engine.compute_capabilities))
        where = "" if engine.platform == device.platform else f" on {engine.platform}"
        here = "" if engine.platform == device.platform else f", {device.platform}"
        return (
            f"engine of {graph} built by {library} {engine.library} for {targets}{where}; this "
            f"machine has {machine.library} on {device.architecture}{here}: {command}"
        )
    common = [
        name for name in ENGINE_PRECISIONS if all((graph, name) in fitting for graph in group)
    ]
    role = group[0].split(".")[0]
    if precision is not None and common:
        return (
            f"bundle {folder} has no {precision} engines of {role} for this machine: give "
            f"--precision {common[0]}, or {command}"
        )
    return f"the engines of {role} that fit this machine are not of one precision: {command}"


def _nearest(engines: list[EngineSpec], machine: Machine) -> EngineSpec:
    """The engine that misses the fewest conditions."""
    device = machine.device
    return min(
        engines,
        key=lambda e: (
            (e.library != machine.library)
            + (e.platform != device.platform)
            + (device.compute_capability not in e.compute_capabilities)
        ),
    )
