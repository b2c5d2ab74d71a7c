"""Export networks to ONNX files, in float32 and in variants, each checked against PyTorch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...runtime.backends import Graph, OnnxLoader
from ...runtime.bundle.graph_tensors import Shapes, tensor_dtype
from ...runtime.bundle.manifest import GraphSpec, ParityResult, TensorSpec, file_sha256
from ...runtime.errors import BackendError, ExportError
from ..profiles import Profile
from .graphs import ExportGraph
from .precision import write_variant
from .to_onnx import check_parity, export_onnx

# ONNX Runtime's CPU provider has no products in it: its numbers are checked by emulation alone.
_NOT_IN_ONNX_RUNTIME = "bf16"

Report = Callable[[str], None]


@dataclass
class Networks:
    """Exported graphs: their entries in the manifest, their parity, and float32 ones loaded."""

    specs: dict[str, GraphSpec] = field(default_factory=dict[str, GraphSpec])
    variants: dict[str, dict[str, GraphSpec]] = field(
        default_factory=dict[str, dict[str, GraphSpec]]
    )
    parity: list[ParityResult] = field(default_factory=list[ParityResult])
    loaded: dict[str, Graph] = field(default_factory=dict[str, Graph])


def export_networks(
    graphs: Sequence[ExportGraph],
    precisions: Sequence[str],
    profiles: Mapping[str, Profile],
    folder: Path,
    report: Report,
) -> Networks:
    """Write every graph in float32 and in each variant, and check it.

    Args:
        graphs: what to export.
        precisions: besides float32.
        profiles: ranges of the dimensions of each graph.
        folder: where to write.
        report: called with a line for each graph.

    Raises:
        ExportError: a graph cannot be exported or loaded.
    """
    loader = OnnxLoader(threads=os.cpu_count() or 1)
    made = Networks(variants={precision: {} for precision in precisions})
    for index, graph in enumerate(graphs):
        counter, stem = f"[{index + 1}/{len(graphs)}]", graph.name.replace(".", "_")
        report(f"{counter} {graph.name}: exporting")
        files = export_onnx(graph, folder / f"{stem}.onnx")
        made.specs[graph.name] = _spec(graph, files, profiles[graph.name], "fp32")
        report(f"{counter} {graph.name}: {_megabytes(files):.1f} MB, checking")
        made.loaded[graph.name] = _loaded(loader, files[0])
        made.parity.append(check_parity(graph, made.loaded[graph.name]))
        for precision in precisions:
            typed = write_variant(files[0], folder / f"{stem}.{precision}.onnx", precision)
            made.variants[precision][graph.name] = _spec(
                graph, typed, profiles[graph.name], precision
            )
            report(f"{counter} {graph.name} [{precision}]: {_megabytes(typed):.1f} MB, checking")
            made.parity.append(_check_variant(graph, files[0], typed[0], precision, loader))
    return made


def _check_variant(
    graph: ExportGraph, source: Path, typed: Path, precision: str, loader: OnnxLoader
) -> ParityResult:
    """Check a variant: the file where ONNX Runtime has its type, and its rounding by emulation.

    Both, because ONNX Runtime leaves out roundings between the operators of a float16 file.
    """
    path = typed.with_name(f"{typed.stem}.emulated.onnx")
    files = write_variant(source, path, precision, emulated=True)
    try:
        emulated = check_parity(graph, _loaded(loader, path), precision, emulated=True)
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    if precision == _NOT_IN_ONNX_RUNTIME:
        return emulated
    own = check_parity(graph, _loaded(loader, typed), precision)
    return dataclasses.replace(
        own,
        max_abs=max(own.max_abs, emulated.max_abs),
        max_rel=max(own.max_rel, emulated.max_rel),
        passed=own.passed and emulated.passed,
    )


def _loaded(loader: OnnxLoader, path: Path) -> Graph:
    try:
        return loader.load(path)
    except BackendError as error:
        raise ExportError(str(error)) from error


def _megabytes(files: Sequence[Path]) -> float:
    return sum(file.stat().st_size for file in files) / 1e6


def _spec(graph: ExportGraph, files: Sequence[Path], profile: Profile, precision: str) -> GraphSpec:
    hashes = {file.name: file_sha256(file) for file in files}
    return GraphSpec(
        hashes, _tensors(graph, graph.inputs, precision),
        _tensors(graph, graph.outputs, precision), profile,
    )  # fmt: skip


def _tensors(graph: ExportGraph, tensors: Shapes, precision: str) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, tensor_dtype(name, graph.integers, precision), shape)
        for name, shape in tensors.items()
    )
