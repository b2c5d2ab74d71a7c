"""Write a bundle: into a temporary directory that is put into its place at the end."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Mapping
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime.backends import OnnxLoader
from ..runtime.bundle.bundle import Bundle
from ..runtime.bundle.graph_tensors import LOCAL_GRAPHS, MODEL_GRAPHS, graph_tensors
from ..runtime.bundle.manifest import (
    MANIFEST_FILE,
    Calibration,
    GraphSpec,
    Manifest,
    file_sha256,
    write_manifest,
)
from ..runtime.command.files import write_atomically
from ..runtime.config import MARConfig
from ..runtime.decoding.model import RuntimeModel
from ..runtime.options import CHAIN_STEPS
from ..runtime.version import version
from .destination import new_bundle
from .engines.update import jobs_of, update_engines
from .memory import leave_in_memory, modules_aside, release_memory
from .onnx.calibrate import calibrate
from .onnx.graphs import ExportGraph, decoder_graph, model_graphs
from .onnx.networks import Networks, check_networks, export_networks, load
from .onnx.operators import operator_dimensions, write_operators
from .parts import DECODER, ModelPart, T, in_memory
from .profiles import Limits, Profile, changed_profiles, default_profiles
from .progress import Progress, Report, silent
from .request import ExportRequest
from .slim import slim_folder

# What a model is exported as besides, where that was asked for.
_HEAD_CHAIN = "head_chain"


def write_bundle(
    request: ExportRequest, out: Path, *, force: bool, report: Report, progress: Progress = silent
) -> Bundle:
    """Export all graphs, check them against PyTorch, build engines and write the bundle.

    Args:
        request: what to export.
        out: directory of the bundle; its parent must exist or be creatable.
        force: replace a bundle that is there; what it does not name is kept (`destination.py`).
        report: called with a line for each graph.
        progress: shows how checks, calibration and builds of engines go on.

    Returns:
        The bundle. Its manifest says whether every parity check passed.

    Raises:
        WeightsError: a model cannot be read, or a weight is not finite.
        ExportError: `out` is in the way, or a graph cannot be exported or built.
        OSError: nothing can be written there. Nothing half-written is left behind.
    """
    with new_bundle(out, force=force, report=report) as folder:
        with modules_aside():
            manifest = _Export(request, folder, report, progress).run()
        if request.engines is not None:
            jobs = jobs_of(folder, manifest, request.engines)
            engines = update_engines(folder, manifest, jobs, report, progress)
            manifest = dataclasses.replace(manifest, engines=engines)
        if request.slim:
            manifest = slim_folder(folder, manifest, next(iter(request.precisions), "fp32"))
        write_manifest(folder, manifest)
        written = folder / MANIFEST_FILE
        mode = stat.S_IMODE(written.stat().st_mode)
        for path in folder.rglob("*"):  # libraries make some of them for their owner alone
            if path.is_file():
                path.chmod(mode)
    return Bundle(out, manifest)


class _Export:
    """One export of everything but engines and the manifest: part after part.

    A part is read, its graphs are written and its numbers noted; it is let go of, its graphs are
    checked and its head is calibrated.
    """

    def __init__(
        self,
        request: ExportRequest,
        folder: Path,
        report: Report,
        progress: Progress,
    ) -> None:
        self._request, self._folder = request, folder
        self._report, self._progress = report, progress
        self._loader = OnnxLoader(threads=os.cpu_count() or 1, lean=True)  # before minutes of work
        self._configs = {role: part.config for role, part in request.models.items()}
        config = request.target.config
        steps = config.num_sampling_steps if request.head_steps is None else request.head_steps
        self._limits = Limits(request.max_batch, request.max_gamma, steps)
        # Of the chain, which drafts are fitted for.
        self._chain_steps = CHAIN_STEPS if config.solved else steps
        self._made = Networks(variants={name: {} for name in request.precisions})
        self._dimensions = self._graph_dimensions(config)
        self._profiles = self._graph_profiles(config)

    def run(self) -> Manifest:
        """Write the files, and return the manifest."""
        request, config = self._request, self._request.target.config
        fitted: dict[str, NDArray[np.float32]] = {}
        # The target last: where a graph of the others fails, that shows before its minutes of work.
        if request.decoder is not None:
            self._export(DECODER, request.decoder.read, lambda m: [decoder_graph(m, config)])
        for role, part in reversed(request.models.items()):
            self._export_model(role, part)
            if request.calibration_tokens:
                fitted |= self._calibrate(role)
        operators: dict[str, GraphSpec] = {}
        if request.operators:
            operators = write_operators(self._folder, config, self._profiles)
        order = list(self._dimensions)
        return Manifest(
            name=request.name,
            models=self._configs,
            head_steps=self._limits.head_steps,
            max_batch=request.max_batch,
            max_gamma=request.max_gamma,
            graphs={**self._in_order(self._made.specs), **operators},
            variants={name: self._in_order(specs) for name, specs in self._made.variants.items()},
            class_names=request.class_names,
            calibration=self._write_calibration(fitted) if fitted else None,
            parity=tuple(sorted(self._made.parity, key=lambda row: order.index(row.graph_name))),
            sources=dict(request.sources),
            created_by={"csd": version(), **{lib: installed(lib) for lib in ("torch", "onnx")}},
        )

    def _graph_dimensions(self, target: MARConfig) -> dict[str, set[str]]:
        """Names of the dynamic dimensions of every network that will be exported."""
        request = self._request
        kinds = (
            *MODEL_GRAPHS,
            *(LOCAL_GRAPHS if request.local_steps else ()),
            *([_HEAD_CHAIN] if request.head_chain else ()),
        )
        tensors = {
            f"{role}.{kind}": graph_tensors(kind, config)
            for role, config in self._configs.items()
            for kind in kinds
        }
        if self._request.decoder is not None:
            tensors[DECODER] = graph_tensors(DECODER, target)
        return {
            name: {d for shape in found.inputs.values() for d in shape if isinstance(d, str)}
            for name, found in tensors.items()
            if found is not None
        }

    def _graph_profiles(self, target: MARConfig) -> Mapping[str, Profile]:
        dimensions = dict(self._dimensions)
        if self._request.operators:
            dimensions |= operator_dimensions()
        return changed_profiles(
            default_profiles(dimensions, self._configs, self._limits),
            self._request.profile, target,
        )  # fmt: skip

    def _in_order(self, specs: Mapping[str, GraphSpec]) -> dict[str, GraphSpec]:
        """Graphs in the order of their models, in whichever they were made."""
        return {name: specs[name] for name in self._dimensions}

    def _export_model(self, role: str, part: ModelPart) -> None:
        chain, local = self._request.head_chain, self._request.local_steps
        self._export(
            role,
            part.read,
            lambda model: model_graphs(role, model, head_chain=chain, local_steps=local),
        )

    def _export(
        self, name: str, read: Callable[[], T], graphs: Callable[[T], list[ExportGraph]]
    ) -> None:
        """Read a part, write its graphs and check them, when it has left memory."""
        precisions, first = self._request.precisions, 1 + len(self._made.specs)
        self._report(f"{name}: reading")
        with in_memory(read) as module:
            written = export_networks(
                graphs(module), precisions, self._folder, self._report, self._progress, first,
                len(self._dimensions),
            )  # fmt: skip
            del module
        check_networks(
            written, precisions, self._profiles, self._made, self._loader, self._report,
            self._progress,
        )  # fmt: skip
        release_memory()
        leave_in_memory()

    def _calibrate(self, role: str) -> dict[str, NDArray[np.float32]]:
        """Fit the draft of a model's head; returns its arrays by name."""
        request, report = self._request, self._report
        report(f"{role}: fitting the head's draft")
        specs = {name: self._made.specs[f"{role}.{name}"] for name in MODEL_GRAPHS}
        graphs = {
            name: load(self._loader, self._folder / spec.onnx_file) for name, spec in specs.items()
        }
        with self._progress(f"{role}: fitting the head's draft") as step:
            fitted = calibrate(
                RuntimeModel(role, self._configs[role], graphs),
                steps=self._chain_steps, tokens=request.calibration_tokens,
                batch=request.max_batch, step=step,
            )  # fmt: skip
        graphs.clear()
        release_memory()
        report(f"{role}: held-out acceptance of one transition {fitted.acceptance.mean():.1%}")
        return {
            f"{role}.{field.name}": getattr(fitted, field.name)
            for field in dataclasses.fields(fitted)
        }

    def _write_calibration(self, arrays: Mapping[str, NDArray[np.float32]]) -> Calibration:
        """Write the drafts of all heads to one file."""
        path, request = self._folder / "calibration.npz", self._request
        with write_atomically(path) as stream:
            np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType]
        return Calibration(
            path.name, file_sha256(path), self._chain_steps, request.calibration_tokens,
            request.row_cost,
        )  # fmt: skip
