"""Slim bundles: one precision, and what one target needs of it.

| target | keeps |
| --- | --- |
| the CPU | the graphs in that precision, which ONNX Runtime runs, and engines can be built from |
| a compute capability, as 8.9 | its engines in that precision, and kernels for the device |

Both keep the manifest, the calibration of the heads and, where they are there, the graphs or
engines of local AR steps. Operators and the head's whole chain, which decoding does not run, go.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.backends.engines import LIBRARIES, rebuild_command
from ..runtime.backends.onnx_runtime import PRECISIONS as ON_CPU
from ..runtime.bundle.bundle import Bundle
from ..runtime.bundle.folder import KERNELS_FOLDER, BundleFolder
from ..runtime.bundle.manifest import (
    SCHEMA_VERSION,
    EngineSpec,
    GraphSpec,
    Manifest,
    local_graphs,
    needed_graphs,
    write_manifest,
)
from ..runtime.bundle.manifest_checks import ENGINE_PRECISIONS, PRECISIONS
from ..runtime.bundle.verification import FileCheck
from ..runtime.command.files import check_outside
from ..runtime.command.parser import parse_list
from ..runtime.command.text import listed, shown
from ..runtime.errors import ExportError
from .destination import new_bundle
from .engines.builder import BACKENDS
from .progress import Progress, Report

CPU = "cpu"
_FORM = "give a precision and a target, as in fp16,cpu or fp16,sm_89"


@dataclass(frozen=True)
class SlimFor:
    """What a slim bundle is for.

    Attributes:
        precision: of everything in it.
        capability: of the device that its engines run on, as `8.9`; None is the CPU.
    """

    precision: str
    capability: str | None


def parse_for(text: str) -> SlimFor:
    """Read the option `--for`.

    Raises:
        OptionError: a part of it is not known.
        ExportError: it is not one precision and one target.
    """
    parts = parse_list("for", text, _part)
    precisions = [part for part in parts if part in PRECISIONS]
    targets = [part for part in parts if part not in PRECISIONS]
    if len(precisions) != 1 or len(targets) != 1:
        raise ExportError(f"for is {shown(text)}: {_FORM}")
    capability = None if targets[0] == CPU else targets[0]
    if capability is None and precisions[0] not in ON_CPU:
        raise ExportError(
            f"for is {shown(text)}: the CPU runs {listed(ON_CPU)}; give one of them, or the "
            "compute capability of a GPU, as sm_89"
        )
    if capability is not None and precisions[0] not in ENGINE_PRECISIONS:
        raise ExportError(
            f"for is {shown(text)}: GPUs run {', '.join(ENGINE_PRECISIONS)}; give one of them, or "
            "cpu as the target"
        )
    return SlimFor(precisions[0], capability)


def _part(text: str) -> str:
    if text in PRECISIONS or text == CPU:
        return text
    found = re.fullmatch(r"sm_?(\d{1,2})(\d)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{shown(text)} is neither: {_FORM}")
    return f"{int(found[1])}.{found[2]}"


def slim_bundle(
    source: Path,
    wanted: SlimFor,
    out: Path,
    *,
    backend: str | None,
    force: bool,
    report: Report,
    progress: Progress,
) -> Bundle:
    """Write the slim form of a bundle that is there, which stays.

    Args:
        source: the bundle.
        wanted: what the slim one is for.
        out: its directory.
        backend: whose engines it keeps, where there are those of several.
        force: replace a bundle that is there.
        report: called with a line about what was kept.
        progress: shows how copying goes on.

    Raises:
        BundleError: there is no bundle, or a file of it is missing or was altered.
        ExportError: it lacks what was asked for, or `out` is in the way.
        OptionError: `out` lies in the bundle.
        OSError: nothing can be written there.
    """
    check_outside("--out", out, {"the bundle": source})
    bundle = Bundle.open(source)
    engines = None
    if wanted.capability is not None:
        engines = _engines_for(bundle, wanted.precision, wanted.capability, backend)
    manifest = slim_manifest(bundle.manifest, wanted.precision, engines, source)
    with new_bundle(out, force=force, report=report) as folder:
        _copy(bundle.check, manifest, folder, progress)
        if engines is not None:
            _copy_kernels(bundle.check.folder, folder)
        write_manifest(folder, manifest)
    return Bundle(out, manifest)


def slim_folder(folder: Path, manifest: Manifest, precision: str) -> Manifest:
    """Drop from a bundle that is being written what its slim form has not.

    Args:
        folder: with the files of the manifest.
        manifest: with engines of one target, which stay in place of the graphs, or without any.
        precision: which stays.

    Returns:
        The manifest of what is left.
    """
    slim = slim_manifest(manifest, precision, manifest.engines or None, folder)
    for name in set(manifest.file_hashes) - set(slim.file_hashes):
        (folder / name).unlink()
    return slim


def slim_manifest(
    manifest: Manifest, precision: str, engines: Sequence[EngineSpec] | None, folder: Path
) -> Manifest:
    """Return the manifest of a bundle's slim form.

    Args:
        manifest: of the whole bundle.
        precision: that stays.
        engines: that stay in place of the graphs; None keeps the graphs.
        folder: of the bundle, for messages.

    Raises:
        ExportError: the bundle lacks a graph in that precision.
    """
    table = manifest.tables.get(precision, {})
    built = None if engines is None else {engine.graph for engine in engines}
    local = [name for name in local_graphs(manifest) if built is None or name in built]
    kept: dict[str, GraphSpec] = {}
    for name in (*needed_graphs(manifest), *local):
        if name not in table or (engines is None and not table[name].files):
            raise ExportError(
                f"bundle {folder} has no {precision} graph {name}: give --for with "
                f"{listed(manifest.precisions or ['another precision'], 'or')}, or export it with "
                f"--precision {precision}"
            )
        kept[name] = table[name] if engines is None else dataclasses.replace(table[name], files={})
    full = precision == "fp32"
    return dataclasses.replace(
        manifest,
        graphs=kept if full else {},
        variants={} if full else {precision: kept},
        engines=tuple(engine for engine in engines or () if engine.graph in kept),
        parity=tuple(
            row for row in manifest.parity
            if row.precision == precision and row.graph.split(" ")[0] in kept
        ),
        code={} if engines is None else manifest.code,
        schema_version=SCHEMA_VERSION,
    )  # fmt: skip


def _engines_for(
    bundle: Bundle, precision: str, capability: str, backend: str | None
) -> list[EngineSpec]:
    """Return an engine of each graph for a device, the one that was built for the fewest."""
    fitting = [
        engine
        for engine in bundle.manifest.engines
        if engine.precision == precision
        and capability in engine.compute_capabilities
        and backend in (None, engine.backend)
    ]
    backends = [name for name in BACKENDS if any(e.backend == name for e in fitting)]
    if len(backends) > 1:
        raise ExportError(
            f"bundle {bundle.path} has {precision} engines for {_sm(capability)} of "
            f"{listed([LIBRARIES[name] for name in backends])}: give --backend "
            f"{listed(backends, 'or')}"
        )
    fitting.sort(key=lambda engine: len(engine.compute_capabilities), reverse=True)
    best = {(engine.graph, engine.platform): engine for engine in fitting}
    there = {graph for graph, _ in best}
    for graph in needed_graphs(bundle.manifest):
        if graph not in there:
            library = backend or (backends or [BACKENDS[0]])[0]
            sm = "" if library == "tensorrt" else f" --sm {capability.replace('.', '')}"
            raise ExportError(
                f"bundle {bundle.path} has no {precision} engine of {graph} for "
                f"{_sm(capability)}: {rebuild_command(bundle.path, library, precision)}{sm}, then "
                "this again"
            )
    return list(best.values())


def _sm(capability: str) -> str:
    return f"sm_{capability.replace('.', '')}"


def _copy(check: FileCheck, manifest: Manifest, folder: Path, progress: Progress) -> None:
    """Copy the files of a manifest, each compared with its hash before."""
    sizes: Mapping[str, int] = {
        name: path.stat().st_size
        for name in manifest.file_hashes
        if (path := check.folder.file(name)) is not None
    }
    done, total = 0, sum(sizes.values()) >> 20
    with progress("slim bundle") as step:
        for name, size in sizes.items():
            step("copying, MB", done >> 20, total)
            check([name])
            source = check.folder.file(name)
            assert source is not None, name
            goal = folder / name
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, goal)
            done += size


def _copy_kernels(source: BundleFolder, folder: Path) -> None:
    """Copy what no manifest names: kernels that were built for a device."""
    for path in sorted((source.root / KERNELS_FOLDER).rglob("*")):
        name = path.relative_to(source.root).as_posix()
        if path.is_dir() or (found := source.file(name)) is None:
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found, folder / name)
