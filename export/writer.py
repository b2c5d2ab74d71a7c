"""Write a bundle: into a temporary directory that is renamed at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..models.kl_decoder import KLDecoder
from ..models.mar import MAR
from ..runtime.backends import Graph, OnnxRuntimeBackend
from ..runtime.bundle import Bundle
from ..runtime.errors import BundleError, ExportError
from ..runtime.head.draft import ROW_COST
from ..runtime.manifest import (
    MANIFEST_FILE,
    Calibration,
    GraphSpec,
    Manifest,
    ParityResult,
    Source,
    TensorSpec,
    file_sha256,
)
from ..runtime.model import RuntimeModel
from ..runtime.version import version
from .calibrate import calibrate
from .graphs import ExportGraph, decoder_graph, model_graphs
from .onnx_export import check_parity, export_onnx

_INT64_INPUTS = {"visible", "query", "label", "step", "token", "timestep"}
# What two models must share to speak of the same tokens.
_SHARED_FIELDS = (
    "img_size", "vae_stride", "patch_size", "vae_embed_dim", "class_num", "image_kind",
    "latent_scale", "beta_schedule",
)  # fmt: skip

Report = Callable[[str], None]


@dataclass(frozen=True)
class ExportRequest:
    """What to put into a bundle.

    Attributes:
        name: name of the bundle.
        target: the large model.
        draft: the small model, or None for a bundle that serves the target only.
        decoder: KL decoder; None for a pixel model, or for a bundle that makes latents only.
        head_steps: default number S of head steps.
        max_batch: images in one call at most.
        max_gamma: AR steps in one verification at most.
        class_names: names of the labels, or None.
        calibration_tokens: tokens that the head drafts are fitted on at least; 0 fits none.
        row_cost: what a row of the head costs in units of a call (`Calibration`).
        sources: where the weights came from.

    Raises:
        ExportError: the parts do not fit each other.
    """

    name: str
    target: MAR
    draft: MAR | None
    decoder: KLDecoder | None
    head_steps: int
    max_batch: int
    max_gamma: int
    class_names: tuple[str, ...] | None
    sources: Mapping[str, Source]
    calibration_tokens: int = 2048
    row_cost: float = ROW_COST

    def __post_init__(self) -> None:
        target = self.target.config
        if self.draft is not None:
            check_pair(self.target, self.draft)
        if self.decoder is not None:
            if target.image_kind == "pixel":
                raise ExportError("a pixel model has no decoder: leave out --decoder")
            if self.decoder.latent_channels != target.vae_embed_dim:
                raise ExportError(
                    f"the decoder takes {self.decoder.latent_channels} latent channels, the model "
                    f"makes {target.vae_embed_dim}: give the decoder that belongs to the model"
                )
        if self.calibration_tokens != 0 and self.calibration_tokens < 64:
            raise ExportError(
                f"calibration-tokens is {self.calibration_tokens}: give at least 64, or 0 for none"
            )
        if not (math.isfinite(self.row_cost) and self.row_cost > 0):
            raise ExportError(f"row-cost is {self.row_cost}: give a number above 0, as 0.06")
        for name in ("head_steps", "max_batch", "max_gamma"):
            most = 1000 if name == "head_steps" else 1024
            if not 1 <= getattr(self, name) <= most:
                raise ExportError(
                    f"{name.replace('_', '-')} is {getattr(self, name)}: give 1 to {most}"
                )


def check_pair(target: MAR, draft: MAR) -> None:
    """Check that two models speak of the same tokens.

    Raises:
        ExportError: names the first field that differs.
    """
    for name in _SHARED_FIELDS:
        ours, theirs = getattr(target.config, name), getattr(draft.config, name)
        if ours != theirs:
            raise ExportError(
                f"the draft has {name} {theirs}, the target {ours}: a draft must make the "
                "target's tokens; give one trained on the same latents"
            )


def write_bundle(request: ExportRequest, out: Path, *, force: bool, report: Report) -> Bundle:
    """Export all graphs, check them against PyTorch and write the bundle.

    Args:
        request: what to export.
        out: directory of the bundle; its parent must exist or be creatable.
        force: replace a bundle that is there.
        report: called with a line for each graph.

    Returns:
        The bundle. Its manifest says whether every parity check passed.

    Raises:
        ExportError: `out` is in the way, or a graph cannot be exported.
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
    models = {"target": request.target}
    if request.draft is not None:
        models["draft"] = request.draft
    graphs: list[ExportGraph] = []
    for role, model in models.items():
        graphs += model_graphs(
            role, model, request.max_batch, request.max_gamma, request.head_steps
        )
    if request.decoder is not None:
        graphs.append(decoder_graph(request.decoder, request.target.config, request.max_batch))
    backend = OnnxRuntimeBackend(threads=os.cpu_count() or 1)
    specs: dict[str, GraphSpec] = {}
    loaded: dict[str, Graph] = {}
    parity: list[ParityResult] = []
    for index, graph in enumerate(graphs):
        report(f"[{index + 1}/{len(graphs)}] {graph.name}: exporting")
        files = export_onnx(graph, folder / f"{graph.name.replace('.', '_')}.onnx")
        specs[graph.name] = GraphSpec(
            {file.name: file_sha256(file) for file in files},
            _specs(graph.inputs),
            _specs(graph.outputs),
            graph.profile,
        )
        size = sum(file.stat().st_size for file in files) / 1e6
        report(f"[{index + 1}/{len(graphs)}] {graph.name}: {size:.1f} MB, checking")
        try:
            loaded[graph.name] = backend.load(files[0])
            parity.append(check_parity(graph, loaded[graph.name]))
        except BundleError as error:
            raise ExportError(str(error)) from error
    calibration = None
    if request.calibration_tokens:
        calibration = _calibrate(request, models, loaded, folder, report)
    return Manifest(
        name=request.name,
        models={role: model.config for role, model in models.items()},
        head_steps=request.head_steps,
        max_batch=request.max_batch,
        max_gamma=request.max_gamma,
        graphs=specs,
        class_names=request.class_names,
        calibration=calibration,
        parity=tuple(parity),
        sources=dict(request.sources),
        created_by={"csd": version(), **{lib: installed(lib) for lib in ("torch", "onnx")}},
    )


def _calibrate(
    request: ExportRequest,
    models: Mapping[str, MAR],
    loaded: Mapping[str, Graph],
    folder: Path,
    report: Report,
) -> Calibration:
    """Fit the drafts of all heads and write them to one file."""
    arrays: dict[str, NDArray[np.float32]] = {}
    for role, model in models.items():
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


def _specs(tensors: Mapping[str, tuple[int | str, ...]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, "int64" if name in _INT64_INPUTS else "float32", shape)
        for name, shape in tensors.items()
    )
