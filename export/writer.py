"""Write a bundle: into a temporary directory that is renamed at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime.backends import Graph
from ..runtime.bundle import Bundle
from ..runtime.decoding.model import RuntimeModel
from ..runtime.errors import ExportError
from ..runtime.manifest import MANIFEST_FILE, Calibration, GraphSpec, Manifest, file_sha256
from ..runtime.version import version
from .engines.progress import silent
from .engines.update import Progress, Report, jobs_of, update_engines
from .onnx.calibrate import calibrate
from .onnx.graphs import ExportGraph, decoder_graph, model_graphs
from .onnx.networks import export_networks
from .onnx.operators import operator_profiles, write_operators
from .profiles import changed_profiles
from .request import ExportRequest


def write_bundle(
    request: ExportRequest, out: Path, *, force: bool, report: Report, progress: Progress = silent
) -> Bundle:
    """Export all graphs, check them against PyTorch, build engines and write the bundle.

    Args:
        request: what to export.
        out: directory of the bundle; its parent must exist or be creatable.
        force: replace a bundle that is there.
        report: called with a line for each graph.
        progress: shows how the build of an engine goes on.

    Returns:
        The bundle. Its manifest says whether every parity check passed.

    Raises:
        ExportError: `out` is in the way, or a graph cannot be exported or built.
        OSError: nothing can be written there. Nothing half-written is left behind.
    """
    out = Path(os.path.abspath(out))  # "." and ".." have no name to rename to
    check_destination(out, force)
    made = [folder for folder in out.parents if not folder.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        manifest = _fill(request, partial, report)
        if request.engines is not None:
            jobs = jobs_of(partial, manifest, request.engines)
            engines = update_engines(partial, manifest, jobs, report, progress)
            manifest = dataclasses.replace(manifest, engines=engines)
        (partial / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        _move_into_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:  # those that hold nothing go again
            with contextlib.suppress(OSError):
                folder.rmdir()
    return Bundle(out, manifest)


def check_destination(out: Path, force: bool) -> None:
    """Check that a bundle may be written to `out`.

    Raises:
        ExportError: something is there that may not be replaced.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"{out} is a file: give a directory for the bundle")
    if not any(out.iterdir()):
        return
    if not (out / MANIFEST_FILE).is_file():
        raise ExportError(f"{out} holds other files: give an empty or a new directory")
    if not force:
        raise ExportError(f"{out} holds a bundle: give --force to replace it, or another --out")


def _move_into_place(partial: Path, out: Path) -> None:
    """Rename, with the old bundle set aside until the new one is in place."""
    if not out.exists():
        partial.rename(out)
        return
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)


def _fill(request: ExportRequest, folder: Path, report: Report) -> Manifest:
    """Write everything but engines and the manifest, and return it."""
    config, limits = request.target.config, request.limits
    graphs = _graphs(request)
    defaults = {graph.name: graph.profile for graph in graphs}
    if request.operators:
        defaults |= operator_profiles(config, limits)
    profiles = changed_profiles(defaults, request.profile, config)
    made = export_networks(graphs, request.variants, profiles, folder, report)
    operators: dict[str, GraphSpec] = {}
    if request.operators:
        operators = write_operators(folder, config, profiles)
    calibration = None
    if request.calibration_tokens:
        calibration = _calibrate(request, made.loaded, folder, report)
    return Manifest(
        name=request.name,
        models={role: model.config for role, model in request.models.items()},
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
        graphs += model_graphs(role, model, request.limits, head_chain=request.head_chain)
    if request.decoder is not None:
        graphs.append(decoder_graph(request.decoder, request.target.config, request.limits))
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
            RuntimeModel(role, model.config, graphs), steps=request.head_steps,
            tokens=request.calibration_tokens, batch=request.max_batch,
        )  # fmt: skip
        for field in dataclasses.fields(fitted):
            arrays[f"{role}.{field.name}"] = getattr(fitted, field.name)
        report(f"{role}: held-out acceptance of one transition {fitted.acceptance.mean():.1%}")
    path = folder / "calibration.npz"
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    tokens = request.calibration_tokens
    return Calibration(path.name, file_sha256(path), request.head_steps, tokens, request.row_cost)
