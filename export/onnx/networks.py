"""Export networks to ONNX files, in float32 and in variants, each checked against PyTorch.

That is done in two halves, between which the model leaves memory: `export_networks` writes the
float32 graphs and notes what PyTorch computes, `check_networks` writes the variants from these
files and runs each file by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...runtime.backends import Graph, OnnxLoader
from ...runtime.bundle.graph_tensors import Shapes, tensor_dtype
from ...runtime.bundle.manifest import GraphSpec, ParityResult, TensorSpec, file_sha256
from ...runtime.errors import BackendError, ExportError
from ..memory import release_memory
from ..profiles import Profile
from ..progress import OnStep, Progress, Report, silent
from . import int8
from .graphs import ExportGraph
from .parity import Reference, check_parity, references
from .precision import write_variant
from .to_onnx import export_onnx
from .weights import SharedWeights


@dataclass(frozen=True)
class _Form:
    """How graphs in a precision are made of those in float32, and checked.

    Attributes:
        write: from a float32 file to the files at a path, and what weights others share with it.
        changes: whether a graph of some name is another one; if not, float32's own files serve.
        emulated: its rounding is checked by emulation: ONNX Runtime leaves out roundings between
            the operators of a float16 file.
        runs: ONNX Runtime has its products.
    """

    write: Callable[[Path, Path, SharedWeights], list[Path]]
    changes: Callable[[str], bool] = lambda _: True
    emulated: bool = True
    runs: bool = True


def _rounded(precision: str) -> Callable[[Path, Path, SharedWeights], list[Path]]:
    return lambda source, path, shared: write_variant(source, path, precision, shared=shared)


_FORMS = {
    "fp16": _Form(_rounded("fp16")),
    "bf16": _Form(_rounded("bf16"), runs=False),
    int8.NAME: _Form(int8.write_int8, int8.has_int8, emulated=False),
}


@dataclass(frozen=True, eq=False)
class Written:
    """A float32 graph that was written.

    Attributes:
        name: of the graph.
        counter: its number among all of the export, for people.
        inputs: see `ExportGraph`.
        outputs: likewise.
        integers: likewise.
        files: the `.onnx` first.
        references: what PyTorch computes, by precision.
        network: see `ExportGraph`.
    """

    name: str
    counter: str
    inputs: Shapes
    outputs: Shapes
    integers: frozenset[str]
    files: list[Path]
    references: Mapping[str, Reference]
    network: str


@dataclass
class Networks:
    """Exported graphs: their entries in the manifest, and their parity."""

    specs: dict[str, GraphSpec] = field(default_factory=dict[str, GraphSpec])
    variants: dict[str, dict[str, GraphSpec]] = field(
        default_factory=dict[str, dict[str, GraphSpec]]
    )
    parity: list[ParityResult] = field(default_factory=list[ParityResult])


def export_networks(
    graphs: Sequence[ExportGraph],
    precisions: Sequence[str],
    folder: Path,
    report: Report,
    progress: Progress = silent,
    first: int = 1,
    total: int | None = None,
) -> list[Written]:
    """Write graphs in float32, and note what PyTorch computes.

    Args:
        graphs: what to export.
        precisions: besides float32, in which they will be checked.
        folder: where to write.
        report: called with a line for each graph.
        progress: shows how an export goes on.
        first: number of the first graph among all of the export.
        total: how many these are.

    Raises:
        ExportError: a graph cannot be exported.
        OSError: the disk is full.
    """
    written: list[Written] = []
    shared: dict[str, SharedWeights] = {}
    total = len(graphs) if total is None else total
    for index, graph in enumerate(graphs):
        counter = f"[{first + index}/{total}]"
        report(f"{counter} {graph.name}: exporting")
        with progress(f"{graph.name}: exporting"):  # PyTorch does not say how far it is
            path = folder / f"{_stem(graph.name)}.onnx"
            files = export_onnx(graph, path, shared.setdefault(graph.network, {}))
            made = references(graph, tuple(precisions))
        written.append(
            Written(
                graph.name, counter, graph.inputs, graph.outputs, graph.integers, files, made,
                graph.network,
            )
        )  # fmt: skip
    return written


def check_networks(
    graphs: Sequence[Written],
    precisions: Sequence[str],
    profiles: Mapping[str, Profile],
    made: Networks,
    loader: OnnxLoader,
    report: Report,
    progress: Progress = silent,
) -> None:
    """Check graphs, write each in its variants and check these.

    Args:
        graphs: that were written.
        precisions: besides float32.
        profiles: ranges of the dimensions of each graph.
        made: where what was made is noted.
        loader: loads the files.
        report: called with lines for each graph.
        progress: shows how a check goes on.

    Raises:
        ExportError: a graph cannot be loaded, or a weight does not fit a precision.
        OSError: the disk is full.
    """
    shared: dict[tuple[str, str], SharedWeights] = {}
    for graph in graphs:
        source, profile = graph.files[0], profiles[graph.name]
        made.specs[graph.name] = _spec(graph, graph.files, profile, "fp32")
        report(f"{graph.counter} {graph.name}: {_megabytes(graph.files):.1f} MB, checking")
        with progress(graph.name) as step:
            full = _run(graph.references["fp32"], source, loader, "checking", step)
        _note(made, full, report)
        for precision in precisions:
            form = _FORMS[precision]
            if not form.changes(graph.name):
                made.variants.setdefault(precision, {})[graph.name] = made.specs[graph.name]
                continue
            label = f"{graph.name} [{precision}]"
            path = source.with_suffix(f".{precision}.onnx")
            typed = form.write(source, path, shared.setdefault((graph.network, precision), {}))
            spec = _spec(graph, typed, profile, precision)
            made.variants.setdefault(precision, {})[graph.name] = spec
            report(f"{graph.counter} {label}: {_megabytes(typed):.1f} MB, checking")
            with progress(label) as step:
                half = _check_variant(graph, precision, typed[0], loader, step)
            _note(made, half, report)


def _check_variant(
    graph: Written, precision: str, typed: Path, loader: OnnxLoader, step: OnStep
) -> ParityResult:
    """Check a variant: the file where ONNX Runtime runs it, and its rounding by emulation."""
    wanted, form, rows = graph.references[precision], _FORMS[precision], list[ParityResult]()
    if form.emulated:
        rows.append(_check_rounding(graph, precision, typed, loader, step))
    if form.runs:
        rows.append(_run(wanted, typed, loader, "checking", step))
    return dataclasses.replace(
        rows[-1],
        max_abs=max(row.max_abs for row in rows),
        max_rel=max(row.max_rel for row in rows),
        passed=all(row.passed for row in rows),
    )


def _check_rounding(
    graph: Written, precision: str, typed: Path, loader: OnnxLoader, step: OnStep
) -> ParityResult:
    """Check a variant by a graph in float32 that rounds as it does, which then goes."""
    path = typed.with_name(f"{typed.stem}.emulated.onnx")
    files = write_variant(graph.files[0], path, precision, emulated=True)
    try:
        return _run(
            graph.references[precision], path, loader, "checking its rounding", step, emulated=True
        )
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _run(
    wanted: Reference,
    path: Path,
    loader: OnnxLoader,
    phase: str,
    step: OnStep,
    *,
    emulated: bool = False,
) -> ParityResult:
    """Load a file, compare it with PyTorch and let go of it."""
    done, total = 0, len(wanted.trials)
    release_memory()  # of what wrote the file
    step(phase, 0, total)

    def advanced() -> None:
        nonlocal done
        done += 1
        step(phase, done, total)

    try:
        return check_parity(wanted, load(loader, path), emulated=emulated, advanced=advanced)
    finally:
        release_memory()


def _note(made: Networks, row: ParityResult, report: Report) -> None:
    made.parity.append(row)
    report(
        f"      {row.graph}: differs from PyTorch by {row.max_abs:.1e} at most, "
        f"{row.max_rel:.1e} of the largest: {'pass' if row.passed else 'FAIL'}"
    )


def load(loader: OnnxLoader, path: Path) -> Graph:
    """Load a file that was just written.

    Raises:
        ExportError: it cannot be loaded.
    """
    try:
        return loader.load(path)
    except BackendError as error:
        raise ExportError(str(error)) from error


def _stem(graph: str) -> str:
    return graph.replace(".", "_")


def _megabytes(files: Sequence[Path]) -> float:
    """Size of a graph's own files; weights that it shares with another one are that one's."""
    own = (file for file in files if file.name.startswith(files[0].name))
    return sum(file.stat().st_size for file in own) / 1e6


def _spec(graph: Written, files: Sequence[Path], profile: Profile, precision: str) -> GraphSpec:
    hashes = {file.name: file_sha256(file) for file in files}
    return GraphSpec(
        hashes, _tensors(graph, graph.inputs, precision),
        _tensors(graph, graph.outputs, precision), profile,
    )  # fmt: skip


def _tensors(graph: Written, tensors: Shapes, precision: str) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, tensor_dtype(name, graph.integers, precision), shape)
        for name, shape in tensors.items()
    )
