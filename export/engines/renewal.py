"""Engines of a bundle that a rebuild was not asked for: kept, built again, or dropped.

What a rebuild changes, as the range of a dimension, may make others out of date too: those of other
precisions, targets and libraries. Where this machine can build them, it does. What it cannot build,
or fails to, is dropped, because the manifest no longer describes it; a command is named that makes
again what another machine can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...runtime.backends.engines import LIBRARIES, renewal_command
from ...runtime.bundle.bundle import file_check
from ...runtime.bundle.folder import BundleFolder
from ...runtime.bundle.manifest import EngineSpec, GraphSpec, Manifest
from ...runtime.bundle.verification import FileCheck
from ...runtime.device import architecture, current_platform
from ...runtime.errors import ExportError
from ..progress import Report
from .builder import EngineBuilder, open_builder
from .condition import Fault
from .fingerprint import fingerprint, first_difference
from .operator_plugins import plugins_for
from .update import EngineRequest, Job, key_of

# Parts of a fingerprint that only the builder of an engine knows.
_OF_THE_BUILDER = ("target", "library", "options")


@dataclass(frozen=True)
class Renewal:
    """What becomes of the engines that were not asked for.

    Attributes:
        kept: they are as they should be.
        jobs: those that are built again.
        dropped: those that cannot be built here, each with why it cannot stay.
    """

    kept: tuple[EngineSpec, ...]
    jobs: tuple[Job, ...]
    dropped: tuple[tuple[EngineSpec, str], ...]

    def tell(self, root: Path, report: Report) -> None:
        """Say what is dropped, and which commands make it again on which machine."""
        for engine, reason in self.dropped:
            report(f"{engine.file}: dropped: {reason}")
        remedies = (_remedy(root, engine) for engine, reason in self.dropped if reason != _GONE)
        for remedy in dict.fromkeys(remedies):
            report(remedy)


_GONE = "its graph is gone"


def renewal(
    root: Path, manifest: Manifest, request: EngineRequest, wanted: Iterable[Job], fault: Fault
) -> Renewal:
    """Decide what becomes of the engines that were not asked for.

    Args:
        root: the bundle.
        manifest: with the graphs as they will be, and the engines that are there.
        request: whose libraries are open.
        wanted: what was asked for.
        fault: finds what is wrong with an engine that is there.
    """
    asked = {job.key for job in wanted}
    builder_of, check = _opener(request), file_check(BundleFolder.at(root), manifest)
    kept: list[EngineSpec] = []
    jobs: list[Job] = []
    dropped: list[tuple[EngineSpec, str]] = []
    for engine in manifest.engines:
        if key_of(engine) in asked:
            continue
        graphs = _graphs(manifest, engine.precision)
        reason = _stale(graphs, engine) or fault(root, engine)
        if reason is None:
            kept.append(engine)
        elif engine.graph in graphs and (
            job := _job(check, builder_of, engine, graphs[engine.graph])
        ):
            jobs.append(job)
        else:
            dropped.append((engine, reason))
    return Renewal(tuple(kept), tuple(jobs), tuple(dropped))


def _graphs(manifest: Manifest, precision: str) -> Mapping[str, GraphSpec]:
    return manifest.tables.get(precision, {})


def _stale(graphs: Mapping[str, GraphSpec], engine: EngineSpec) -> str | None:
    """Return why an engine cannot stay as it is, or None.

    One of another version of the library stays: a machine that has that version runs it.
    """
    if engine.graph not in graphs:
        return _GONE
    new = fingerprint(
        graphs[engine.graph], precision=engine.precision, target=(), library="", options={}
    )
    same = {**new, **{part: engine.fingerprint.get(part, "") for part in _OF_THE_BUILDER}}
    return first_difference(engine.fingerprint, same)


def _opener(request: EngineRequest) -> Callable[[str], EngineBuilder | None]:
    """Return what finds the builder of a backend, those included that were not asked for."""
    there = {builder.backend: builder for builder in request.builders}

    @cache
    def builder_of(backend: str) -> EngineBuilder | None:
        try:
            return there.get(backend) or open_builder(backend, (), ())
        except ExportError:
            return None  # it is not installed, or builds on a device and none is here

    return builder_of


def _job(
    check: FileCheck,
    builder_of: Callable[[str], EngineBuilder | None],
    engine: EngineSpec,
    spec: GraphSpec,
) -> Job | None:
    """Return what builds an engine again, or None where this machine cannot."""
    if engine.platform != current_platform() or (builder := builder_of(engine.backend)) is None:
        return None
    target = builder.target_of(engine.compute_capabilities)
    if target is None:
        return None
    plugins = plugins_for(check, engine.backend, engine.graph)
    return Job(builder, target, engine.graph, engine.precision, spec, plugins, asked=False)


def _remedy(root: Path, engine: EngineSpec) -> str:
    devices = ", ".join(map(architecture, engine.compute_capabilities))
    device = f" of {devices}" if engine.backend == "tensorrt" else ""
    return (
        f"to build what was dropped, with {LIBRARIES[engine.backend]} on a {engine.platform} "
        f"machine{device}: {renewal_command(root, engine)}"
    )
