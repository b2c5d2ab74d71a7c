"""Engines of a bundle: build what is missing or out of date, keep the rest.

Files are `engines/<backend>/<target>/<graph>.<precision>.<fingerprint>.engine`: a name belongs to
one content, so that a bundle stays valid whenever the process ends. New files come first, under
temporary names, then the manifest, and what it no longer names goes last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from ..runtime.device import current_platform
from ..runtime.engines import OPERATOR_PREFIX, PRECISIONS
from ..runtime.errors import ExportError
from ..runtime.files import write_atomically
from ..runtime.manifest import EngineSpec, GraphSpec, Manifest, file_sha256
from .fingerprint import fingerprint, first_difference, short_name
from .tensorrt_builder import (
    OPTIONS,
    EngineBuilder,
    OnStep,
    Target,
    open_builder,
)

FOLDER = "engines"

Report = Callable[[str], None]
# Shows the progress of one engine while its context is open.
Progress = Callable[[str], AbstractContextManager[OnStep]]


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
class _Job:
    """An engine that is wanted."""

    builder: EngineBuilder
    target: Target
    graph: str
    precision: str
    spec: GraphSpec

    @property
    def label(self) -> str:
        return f"{self.graph} [{self.precision}] for {self.builder.backend} {self.target.name}"

    @property
    def key(self) -> tuple[str, ...]:
        capabilities = self.target.compute_capabilities
        return self.builder.backend, self.graph, self.precision, current_platform(), *capabilities

    def fingerprint(self) -> dict[str, str]:
        return fingerprint(
            self.spec,
            precision=self.precision,
            target=(current_platform(), *self.target.compute_capabilities),
            library=f"{self.builder.backend} {self.builder.version}",
            options=OPTIONS,
        )


def graphs_of(manifest: Manifest, precision: str) -> dict[str, tuple[str, GraphSpec]]:
    """Return the graphs to build for a precision: by name, what they are computed in and the graph.

    Operators compute in float32 whatever the precision.

    Raises:
        ExportError: the bundle has no graphs of that precision.
    """
    operators = {n: g for n, g in manifest.graphs.items() if n.startswith(OPERATOR_PREFIX)}
    networks = manifest.graphs if precision == "fp32" else manifest.variants.get(precision)
    if networks is None:
        raise ExportError(
            f"the bundle has no {precision} graphs, and --rebuild makes none: run "
            f"{export_command(manifest, precision)}, or give --precision "
            f"{' or '.join(['fp32', *manifest.variants])}"
        )
    return {
        **{name: (precision, spec) for name, spec in networks.items()},
        **{name: ("fp32", spec) for name, spec in operators.items()},
    }


def default_precision(manifest: Manifest) -> str:
    """Return the fastest precision that a bundle has graphs for."""
    return next(name for name in PRECISIONS if name in ("fp32", *manifest.variants))


def export_command(manifest: Manifest, precision: str) -> str:
    """Return the command that exports a bundle again with the graphs of a precision."""
    source = manifest.sources["target"].path if "target" in manifest.sources else "zoo:NAME"
    zoo = source.removeprefix("zoo:")
    what = f"--zoo {zoo}" if zoo != source else f"--target {source} --target-config CONFIG"
    return f"csd-export {what} --precision {precision} --out BUNDLE --force"


def update_engines(
    root: Path, manifest: Manifest, request: EngineRequest, report: Report, progress: Progress
) -> Manifest:
    """Build the engines that are wanted and not there, and return the manifest that names them.

    The caller writes the manifest, then calls `drop_unnamed`. Files that were written here are
    taken away again when something fails.

    Args:
        root: the bundle, or what is becoming one.
        manifest: with the graphs, and the engines that are there.
        request: what to build.
        report: called with a line for each engine.
        progress: shows how a build goes on.

    Raises:
        ExportError: an engine cannot be built, or its precision is not in the bundle.
    """
    jobs = list(_jobs(manifest, request))
    there = {_key(engine): engine for engine in manifest.engines}
    engines: dict[tuple[str, ...], EngineSpec] = {}
    written: list[Path] = []
    try:
        for job in jobs:
            old = there.get(job.key)
            reason = _why(root, old, job)
            if old is not None and reason is None:
                engines[job.key] = old
                report(f"{job.label}: kept")
                continue
            with progress(job.label) as step:
                engines[job.key] = _build(root, job, step, written)
            made = engines[job.key]
            report(
                f"{job.label}: {made.size / 1e6:.1f} MB in {made.build_seconds:.1f} s, "
                f"built: {reason}"
            )
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        _drop_empty_folders(root)
        raise
    for key, engine in there.items():
        if key in engines:
            continue
        if (reason := _stale(root, manifest, engine)) is None:
            engines[key] = engine
        else:
            report(f"{engine.file}: dropped: {reason}")
    return dataclasses.replace(manifest, engines=tuple(engines.values()))


def drop_unnamed(root: Path, manifest: Manifest) -> None:
    """Delete files of engines that the manifest does not name, and folders that become empty."""
    named = {root / engine.file for engine in manifest.engines}
    for path in _under(root):
        if path.is_file() and path not in named:
            path.unlink()
    _drop_empty_folders(root)


def _jobs(manifest: Manifest, request: EngineRequest) -> Iterator[_Job]:
    graphs: dict[tuple[str, str], GraphSpec] = {}
    for wanted in request.precisions:
        for name, (precision, spec) in graphs_of(manifest, wanted).items():
            graphs[name, precision] = spec
    for builder in request.builders:
        for target in builder.targets:
            for (name, precision), spec in graphs.items():
                yield _Job(builder, target, name, precision, spec)


def _key(engine: EngineSpec) -> tuple[str, ...]:
    return (
        engine.backend, engine.graph, engine.precision, engine.platform,
        *engine.compute_capabilities,
    )  # fmt: skip


def _why(root: Path, old: EngineSpec | None, job: _Job) -> str | None:
    """Return why an engine must be built, or None."""
    if old is None:
        return "new"
    return first_difference(old.fingerprint, job.fingerprint()) or _damage(root, old)


def _damage(root: Path, engine: EngineSpec) -> str | None:
    path = root / engine.file
    if not path.is_file():
        return "its file is missing"
    return None if file_sha256(path) == engine.sha256 else "its file was altered"


def _stale(root: Path, manifest: Manifest, engine: EngineSpec) -> str | None:
    """Return why an engine that nobody asked for now cannot stay, or None."""
    graphs: Mapping[str, GraphSpec] = (
        manifest.graphs
        if engine.precision == "fp32"
        else manifest.variants.get(engine.precision, {})
    )
    if engine.graph not in graphs:
        return "its graph is gone"
    new = fingerprint(
        graphs[engine.graph], precision=engine.precision, target=(), library="", options={}
    )
    same = {**new, **{part: engine.fingerprint.get(part, "") for part in _OF_THE_BUILDER}}
    return first_difference(engine.fingerprint, same) or _damage(root, engine)


# Parts of a fingerprint that only its builder knows.
_OF_THE_BUILDER = ("target", "library", "options")


def _build(root: Path, job: _Job, step: OnStep, written: list[Path]) -> EngineSpec:
    began = time.perf_counter()
    built = job.builder.build(root / job.spec.onnx_file, job.spec, job.target, job.label, step)
    seconds = time.perf_counter() - began
    parts = job.fingerprint()
    name = f"{job.graph}.{job.precision}.{short_name(parts)}.engine"
    path = root / FOLDER / job.builder.backend / job.target.name / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():  # else it repairs a file that the manifest names
        written.append(path)
    with write_atomically(path) as stream:
        stream.write(memoryview(built))
    return EngineSpec(
        graph=job.graph,
        backend=job.builder.backend,
        precision=job.precision,
        file=path.relative_to(root).as_posix(),
        sha256=file_sha256(path),
        size=path.stat().st_size,
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
