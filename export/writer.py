"""Write a bundle: into a temporary directory that is put into its place at the end."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Mapping
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime.backends import Graph
from ..runtime.bundle.bundle import Bundle
from ..runtime.bundle.manifest import MANIFEST_FILE, Calibration, GraphSpec, Manifest, file_sha256
from ..runtime.command.files import write_atomically
from ..runtime.decoding.model import RuntimeModel
from ..runtime.version import version
from .destination import new_bundle
from .engines.progress import silent
from .engines.update import Progress, Report, jobs_of, update_engines
from .onnx.calibrate import calibrate
from .onnx.graphs import ExportGraph, decoder_graph, model_graphs
from .onnx.networks import export_networks
from .onnx.operators import operator_dimensions, write_operators
from .profiles import changed_profiles, default_profiles
from .request import ExportRequest


def write_bundle(
    request: ExportRequest, out: Path, *, force: bool, report: Report, progress: Progress = silent
) -> Bundle:
    """Export all graphs, check them against PyTorch, build engines and write the bundle.

    Args:
        request: what to export.
        out: directory of the bundle; its parent must exist or be creatable.
        force: replace a bundle that is there; what it does not name is kept (`destination.py`).
        report: called with a line for each graph.
        progress: shows how the build of an engine goes on.

    Returns:
        The bundle. Its manifest says whether every parity check passed.

    Raises:
        ExportError: `out` is in the way, or a graph cannot be exported or built.
        OSError: nothing can be written there. Nothing half-written is left behind.
    """
    with new_bundle(out, force=force, report=report) as folder:
        manifest = _fill(request, folder, report)
        if request.engines is not None:
            jobs = jobs_of(folder, manifest, request.engines)
            engines = update_engines(folder, manifest, jobs, report, progress)
            manifest = dataclasses.replace(manifest, engines=engines)
        written = folder / MANIFEST_FILE
        with write_atomically(written) as stream:
            stream.write(manifest.to_json().encode())
        mode = stat.S_IMODE(written.stat().st_mode)
        for path in folder.rglob("*"):  # libraries make some of them for their owner alone
            if path.is_file():
                path.chmod(mode)
    return Bundle(out, manifest)


def _fill(request: ExportRequest, folder: Path, report: Report) -> Manifest:
    """Write everything but engines and the manifest, and return it."""
    config = request.target.config
    graphs = _graphs(request)
    dimensions = {graph.name: graph.dimensions for graph in graphs}
    if request.operators:
        dimensions |= operator_dimensions()
    configs = {role: model.config for role, model in request.models.items()}
    profiles = changed_profiles(
        default_profiles(dimensions, configs, request.limits), request.profile, config
    )
    made = export_networks(graphs, request.precisions, profiles, folder, report)
    operators: dict[str, GraphSpec] = {}
    if request.operators:
        operators = write_operators(folder, config, profiles)
    calibration = None
    if request.calibration_tokens:
        calibration = _calibrate(request, made.loaded, folder, report)
    return Manifest(
        name=request.name,
        models=configs,
        head_steps=request.head_steps,
        max_batch=request.max_batch,
        max_gamma=request.max_gamma,
        graphs={**made.specs, **operators},
        variants=made.variants,
        class_names=request.class_names,
        calibration=calibration,
        parity=tuple(made.parity),
        sources=dict(request.sources),
        created_by={"csd": version(), **{lib: installed(lib) for lib in ("torch", "onnx")}},
    )


def _graphs(request: ExportRequest) -> list[ExportGraph]:
    graphs: list[ExportGraph] = []
    for role, model in request.models.items():
        graphs += model_graphs(role, model, head_chain=request.head_chain)
    if request.decoder is not None:
        graphs.append(decoder_graph(request.decoder, request.target.config))
    return graphs


def _calibrate(
    request: ExportRequest, loaded: Mapping[str, Graph], folder: Path, report: Report
) -> Calibration:
    """Fit the drafts of all heads and write them to one file."""
    arrays: dict[str, NDArray[np.float32]] = {}
    for role, model in request.models.items():
        report(f"{role}: fitting the head's draft")
        names = ("backbone", "head_modulation", "head_step")
        graphs = {name: loaded[f"{role}.{name}"] for name in names}
        fitted = calibrate(
            RuntimeModel(role, model.config, graphs), steps=request.chain_steps,
            tokens=request.calibration_tokens, batch=request.max_batch,
        )  # fmt: skip
        for field in dataclasses.fields(fitted):
            arrays[f"{role}.{field.name}"] = getattr(fitted, field.name)
        report(f"{role}: held-out acceptance of one transition {fitted.acceptance.mean():.1%}")
    path = folder / "calibration.npz"
    with write_atomically(path) as stream:
        np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType]
    tokens = request.calibration_tokens
    return Calibration(path.name, file_sha256(path), request.chain_steps, tokens, request.row_cost)
