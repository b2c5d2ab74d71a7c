"""Engines of a bundle: build what is wanted and missing or out of date.

Files are `engines/<backend>/<target>/<graph>.<precision>.<fingerprint>.engine`, with a digest
before the suffix where that name is taken: no file that a manifest may name is overwritten by
another content, so that a bundle stays valid whenever the process ends. New files come first,
under temporary names, then the manifest, and what it no longer names goes last.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...plugins.operators import GRAPH_PREFIX
from ...runtime.bundle.bundle import file_check
from ...runtime.bundle.folder import BundleFolder
from ...runtime.bundle.manifest import EngineSpec, GraphSpec, Manifest, file_sha256
from ...runtime.bundle.manifest_checks import ENGINE_PRECISIONS
from ...runtime.command.files import write_atomically
from ...runtime.device import current_platform
from ...runtime.errors import ExportError
from ..progress import OnStep, Progress, Report
from .builder import OPTIONS, EngineBuilder, Target, open_builder
from .condition import Fault, damage
from .fingerprint import fingerprint, first_difference, short_name
from .operator_plugins import plugins_for

FOLDER = "engines"
_OWN_NAME = re.compile(r"[a-z_.]+\.(fp16|bf16|fp32)\.[0-9a-f]{8}(\.[0-9a-f]{8})?\.engine")


@dataclass(frozen=True)
class EngineRequest:
    """What engines to build.

    Attributes:
        builders: libraries with their targets.
        precisions: `fp32` or variants.
    """

    builders: tuple[EngineBuilder, ...]
    precisions: tuple[str, ...]

    @classmethod
    def of(
        cls, backends: Sequence[str], sms: Sequence[int], precisions: Sequence[str]
    ) -> EngineRequest:
        """Open the libraries of some backends; compute capabilities are for TensorRT for RTX.

        Raises:
            ExportError: see `open_builder`.
        """
        builders = tuple(
            open_builder(name, sms if name == "tensorrt_rtx" or len(backends) == 1 else (),
                         precisions)
            for name in backends
        )  # fmt: skip
        return cls(builders, tuple(precisions))


@dataclass(frozen=True)
class Job:
    """An engine that is wanted.

    Attributes:
        builder: what builds it.
        target: for which devices.
        graph: its name.
        precision: that it computes in.
        spec: the graph in that precision.
        plugins: library of the plugins that it is built with, or None.
        asked: whether a failure to build it is one of the whole request.
    """

    builder: EngineBuilder
    target: Target
    graph: str
    precision: str
    spec: GraphSpec
    plugins: Path | None = None
    asked: bool = True

    @property
    def label(self) -> str:
        """What it is, for people."""
        return f"{self.graph} [{self.precision}] for {self.builder.backend} {self.target.name}"

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from the other engines of a bundle; see `key_of`."""
        capabilities = self.target.compute_capabilities
        return self.builder.backend, self.graph, self.precision, current_platform(), *capabilities

    def fingerprint(self) -> dict[str, str]:
        """What it would be built from."""
        own = {} if self.plugins is None else {"plugins": file_sha256(self.plugins)}
        return fingerprint(
            self.spec,
            precision=self.precision,
            target=(current_platform(), *self.target.compute_capabilities),
            library=f"{self.builder.backend} {self.builder.version}",
            options={**OPTIONS, **own},
        )


def graphs_of(manifest: Manifest, precision: str) -> dict[str, tuple[str, GraphSpec]]:
    """Return the graphs to build for a precision: by name, what they are computed in and the graph.

    Operators compute in float32 whatever the precision.

    Raises:
        ExportError: the bundle has no graphs of that precision.
    """
    operators = {n: g for n, g in manifest.graphs.items() if n.startswith(GRAPH_PREFIX)}
    networks = manifest.tables.get(precision)
    if not networks:
        raise ExportError(
            f"the bundle has no {precision} graphs, and --rebuild makes none: run "
            f"{export_command(manifest, precision)}, or give --precision "
            f"{' or '.join(manifest.precisions)}"
        )
    return {
        **{name: (precision, spec) for name, spec in networks.items()},
        **{name: ("fp32", spec) for name, spec in operators.items()},
    }


def default_precision(manifest: Manifest) -> str:
    """Return the fastest precision of engines that a bundle has graphs for."""
    return next((name for name in ENGINE_PRECISIONS if name in manifest.precisions), "fp32")


def export_command(manifest: Manifest, precision: str) -> str:
    """Return the command that exports a bundle again with the graphs of a precision."""
    source, zoo = manifest.sources.get("target"), manifest.zoo
    what = (
        f"--zoo {zoo or 'NAME'}" if source is None or zoo is not None
        else f"--target {source.path} --target-config CONFIG"
    )  # fmt: skip
    return f"csd-export {what} --precision {precision} --out BUNDLE --force"


def jobs_of(root: Path, manifest: Manifest, request: EngineRequest) -> list[Job]:
    """Return what a request asks for of a bundle.

    Raises:
        ExportError: a precision is not in the bundle, or plugins are named that are not there.
    """
    graphs: dict[tuple[str, str], GraphSpec] = {}
    for wanted in request.precisions:
        for name, (precision, spec) in graphs_of(manifest, wanted).items():
            graphs[name, precision] = spec
    check = file_check(BundleFolder.at(root), manifest)
    return [
        Job(builder, target, name, precision, spec, plugins_for(check, builder.backend, name))
        for builder in request.builders
        for target in builder.targets
        for (name, precision), spec in graphs.items()
    ]


def key_of(engine: EngineSpec) -> tuple[str, ...]:
    """Return what tells an engine from the others of its bundle."""
    return (
        engine.backend, engine.graph, engine.precision, engine.platform,
        *engine.compute_capabilities,
    )  # fmt: skip


def update_engines(
    root: Path,
    manifest: Manifest,
    jobs: Iterable[Job],
    report: Report,
    progress: Progress,
    fault: Fault = damage,
) -> tuple[EngineSpec, ...]:
    """Build the engines that are wanted and not there, and return all that are there then.

    The caller writes the manifest that names them, then calls `drop_unnamed`. Files that were
    written here are taken away again when something fails.

    Args:
        root: the bundle, or what is becoming one.
        manifest: with the engines that are there.
        jobs: what is wanted.
        report: called with a line for each engine.
        progress: shows how a build goes on.
        fault: finds what is wrong with an engine that is there.

    Raises:
        ExportError: an engine that was asked for cannot be built.
    """
    there = {key_of(engine): engine for engine in manifest.engines}
    engines: list[EngineSpec] = []
    written: list[Path] = []
    try:
        for job in jobs:
            old = there.get(job.key)
            reason = _why(root, old, job, fault)
            if old is not None and reason is None:
                engines.append(old)
                report(f"{job.label}: kept")
                continue
            try:
                with progress(job.label) as step:
                    made = _build(root, job, step, written)
            except ExportError as error:
                if job.asked:
                    raise
                report(f"{job.label}: dropped ({reason}): {error}")
                continue
            engines.append(made)
            report(
                f"{job.label}: {made.size / 1e6:.1f} MB in {made.build_seconds:.1f} s, "
                f"built: {reason}"
            )
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        _drop_empty_folders(root)
        raise
    return tuple(engines)


def drop_unnamed(root: Path, before: Manifest, manifest: Manifest) -> None:
    """Delete files of engines that a manifest does not name any more, and folders then empty.

    These are what the manifest before named, and what a process that was killed left: files in the
    folder of engines with names as `_build` gives them. What else lies there is the user's.
    """
    old = {root / engine.file for engine in before.engines}
    named = {root / engine.file for engine in manifest.engines}
    left = {path for path in _under(root) if _OWN_NAME.fullmatch(path.name) and path.is_file()}
    for path in (old | left) - named:
        path.unlink(missing_ok=True)
    _drop_empty_folders(root)


def _why(root: Path, old: EngineSpec | None, job: Job, fault: Fault) -> str | None:
    """Return why an engine must be built, or None."""
    if old is None:
        return "new"
    return first_difference(old.fingerprint, job.fingerprint()) or fault(root, old)


def _build(root: Path, job: Job, step: OnStep, written: list[Path]) -> EngineSpec:
    began = time.perf_counter()
    built = memoryview(
        job.builder.build(
            root / job.spec.onnx_file, job.spec, job.target, job.label, step, job.plugins
        )
    )
    seconds = time.perf_counter() - began
    digest = hashlib.sha256(built).hexdigest()
    parts = job.fingerprint()
    name = f"{job.graph}.{job.precision}.{short_name(parts)}.engine"
    path = root / FOLDER / job.builder.backend / job.target.name / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():  # the manifest that is there may name it, and it may be what it says
        path = path.with_name(f"{path.stem}.{digest[:8]}.engine")
    if not path.exists():
        written.append(path)
    with write_atomically(path) as stream:
        stream.write(built)
    return EngineSpec(
        graph=job.graph,
        backend=job.builder.backend,
        precision=job.precision,
        file=path.relative_to(root).as_posix(),
        sha256=digest,
        size=built.nbytes,
        library=job.builder.version,
        platform=current_platform(),
        compute_capabilities=job.target.compute_capabilities,
        build_seconds=round(seconds, 3),
        fingerprint=parts,
    )


def _under(root: Path) -> list[Path]:
    """Everything under the folder of engines, what lies deepest first."""
    return sorted((root / FOLDER).rglob("*"), key=lambda path: len(path.parts), reverse=True)


def _drop_empty_folders(root: Path) -> None:
    for path in [*_under(root), root / FOLDER]:
        if path.is_dir():
            with contextlib.suppress(OSError):
                path.rmdir()
