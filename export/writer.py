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
from ..runtime.bundle.manifest import MANIFEST_FILE, Calibration, GraphSpec, Manifest, file_sha256
from ..runtime.command.files import write_atomically
from ..runtime.config import MARConfig
from ..runtime.decoding.model import RuntimeModel
from ..runtime.options import CHAIN_STEPS
from ..runtime.version import version
from .destination import new_bundle
from .engines.update import jobs_of, update_engines
from .memory import release_memory
from .onnx.calibrate import calibrate
from .onnx.graphs import ExportGraph, decoder_graph, model_graphs
from .onnx.networks import Networks, check_networks, export_networks, load
from .onnx.operators import operator_dimensions, write_operators
from .parts import DECODER, Parts, PartsFound, inspect_parts
from .profiles import Limits, Profile, changed_profiles, default_profiles
from .progress import Progress, Report, silent
from .request import ExportRequest
from .slim import slim_folder, write_manifest

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
        WeightsError: a model cannot be read.
        ExportError: `out` is in the way, models do not fit each other, or a graph cannot be
            exported or built.
        ConfigError: the draft does not make the target's tokens.
        OSError: nothing can be written there. Nothing half-written is left behind.
    """
    parts = Parts(request.models, request.decoder)
    found = inspect_parts(parts, report)
    with new_bundle(out, force=force, report=report) as folder:
        manifest = _Export(request, parts, found, folder, report, progress).run()
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
        parts: Parts,
        found: PartsFound,
        folder: Path,
        report: Report,
        progress: Progress,
    ) -> None:
        self._request, self._parts, self._found = request, parts, found
        self._folder, self._report, self._progress = folder, report, progress
        self._loader = OnnxLoader(threads=os.cpu_count() or 1, lean=True)  # before minutes of work
        config = found.configs["target"]
        steps = config.num_sampling_steps if request.head_steps is None else request.head_steps
        self._limits = Limits(request.max_batch, request.max_gamma, steps)
        # Of the chain, which drafts are fitted for.
        self._chain_steps = CHAIN_STEPS if config.solved else steps
        self._made = Networks(variants={name: {} for name in request.precisions})
        self._dimensions = self._graph_dimensions(config)
        self._profiles = self._graph_profiles(config)

    def run(self) -> Manifest:
        """Write the files, and return the manifest."""
        request, configs = self._request, self._found.configs
        fitted: dict[str, NDArray[np.float32]] = {}
        for role in configs:
            self._export(lambda role=role: self._model_graphs(role))
            if request.calibration_tokens:
                fitted |= self._calibrate(role)
        if self._parts.has_decoder:
            self._export(self._decoder_graphs)
        operators: dict[str, GraphSpec] = {}
        if request.operators:
            operators = write_operators(self._folder, configs["target"], self._profiles)
        return Manifest(
            name=request.name,
            models=configs,
            head_steps=self._limits.head_steps,
            max_batch=request.max_batch,
            max_gamma=request.max_gamma,
            graphs={**self._made.specs, **operators},
            variants=self._made.variants,
            class_names=request.class_names,
            calibration=self._write_calibration(fitted) if fitted else None,
            parity=tuple(self._made.parity),
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
            for role, config in self._found.configs.items()
            for kind in kinds
        }
        if self._parts.has_decoder:
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
            default_profiles(dimensions, self._found.configs, self._limits),
            self._request.profile, target,
        )  # fmt: skip

    def _model_graphs(self, role: str) -> list[ExportGraph]:
        return model_graphs(
            role, self._parts.model(role),
            head_chain=self._request.head_chain, local_steps=self._request.local_steps,
        )  # fmt: skip

    def _decoder_graphs(self) -> list[ExportGraph]:
        return [decoder_graph(self._parts.decoder(), self._found.configs["target"])]

    def _export(self, make: Callable[[], list[ExportGraph]]) -> None:
        """Write and check the graphs of one part, which leaves memory in between."""
        precisions, first = self._request.precisions, 1 + len(self._made.specs)
        written = export_networks(
            make(), precisions, self._folder, self._report, self._progress, first,
            len(self._dimensions),
        )  # fmt: skip
        self._parts.free()
        check_networks(
            written, precisions, self._profiles, self._made, self._loader, self._report,
            self._progress,
        )  # fmt: skip
        release_memory()

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
                RuntimeModel(role, self._found.configs[role], graphs),
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
