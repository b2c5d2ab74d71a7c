"""A bundle as JSON values, of which the tables are made: `csd-inspect --json`.

| key | holds |
| --- | --- |
| `schema` | version of this table, 1 |
| `kind` | `bundle`; `graph` with `--graph` (`graph_values`), `difference` with `--diff` |
| `csd` | version of csd that wrote this |
| `path`, `name`, `manifest_sha256`, `manifest_schema`, `bytes` | the folder as given; of the bundle |
| `created_by` | versions of the libraries that wrote it |
| `models` | by role: `family`, `parameters` and what they are counted in, `tokens`, `classes`, widths and depths, `config` (every field of the configuration) |
| `sampling` | by role: what a run takes that says nothing: `head_steps`, `num_iter`, schedules, guidance |
| `limits` | `max_batch`, `max_gamma` |
| `class_names` | list or null |
| `precisions` | those that all graphs of the models are there in |
| `graphs` | by name, by precision: `files`, `bytes`, `inputs` and `outputs` (`name`, `dtype`, `shape`), `profile` (`[least, typical, most]` by dimension), `parity` or null |
| `engines` | list: the manifest's fields, `architectures`, `profile` of the graph |
| `calibration` | null, or `file`, `sha256`, `bytes`, `head_steps`, `tokens`, `row_cost`, `survival` by role and number of transitions: a list over head steps |
| `presets` | by name: `options`, `precision`, `evidence` |
| `sources` | of the weights: `path`, `sha256`, `weights` (`ema`, `model` or null), `key` |
| `files` | by name: `sha256`, `bytes` |
| `code` | SHA-256 of the files of them that are code, by name: what `csd-export --seal` took in |
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ...runtime.backends.engines import graph_spec
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.checks import read_graph_file
from ...runtime.bundle.graph_tensors import MODEL_GRAPHS
from ...runtime.bundle.manifest import GraphSpec, Manifest, ParityResult, TensorSpec
from ...runtime.config import MARConfig
from ...runtime.device import architecture
from ...runtime.head import AffineDraft
from ...runtime.version import VERSION
from .onnx_graph import OnnxGraph, read_graph

SCHEMA = 1
# Of drafted transitions, the numbers whose survival is told.
SURVIVALS = (1, 2, 4, 8, 16, 32, 64)
_DIGITS = 6


def describe(bundle: Bundle) -> dict[str, Any]:
    """Return all that is known of a bundle; its calibration is read, graphs are looked through.

    Raises:
        BundleError: a file of it cannot be read, or was altered.
    """
    manifest = bundle.manifest
    sizes = {name: _size(bundle, name) for name in manifest.file_hashes}
    return {
        **header("bundle"),
        **identity(bundle),
        "manifest_schema": manifest.schema_version,
        "bytes": sum(sizes.values()),
        "created_by": dict(manifest.created_by),
        "models": {role: _model(bundle, role) for role in manifest.models},
        "sampling": {role: _sampling(c, manifest) for role, c in manifest.models.items()},
        "limits": {"max_batch": manifest.max_batch, "max_gamma": manifest.max_gamma},
        "class_names": None if manifest.class_names is None else [*manifest.class_names],
        "precisions": [*manifest.precisions],
        "graphs": _graphs(manifest, sizes),
        "engines": [_engine(manifest, index) for index in range(len(manifest.engines))],
        "calibration": _calibration(bundle, sizes),
        "presets": {name: dataclasses.asdict(p) for name, p in manifest.presets.items()},
        "sources": {role: dataclasses.asdict(s) for role, s in manifest.sources.items()},
        "files": {
            name: {"sha256": digest, "bytes": sizes[name]}
            for name, digest in manifest.file_hashes.items()
        },
        "code": dict(manifest.code),
    }


def header(kind: str) -> dict[str, Any]:
    """What every document begins with."""
    return {"schema": SCHEMA, "kind": kind, "csd": VERSION}


def identity(bundle: Bundle) -> dict[str, Any]:
    """Which bundle it is, and where."""
    return {"path": str(bundle.path), **bundle.identity()}


def graph_at(bundle: Bundle, spec: GraphSpec) -> OnnxGraph:
    """Read the ONNX file of a graph.

    Raises:
        BundleError: it cannot be read.
    """
    return read_graph_file(bundle.check.folder, spec.onnx_file, read_graph)


def graph_values(bundle: Bundle, name: str, precision: str, *, layers: bool) -> dict[str, Any]:
    """Return all that is known of one graph.

    The keys are those of `describe` for it, with `graph`, `precision`, `ir_version`, `producer`,
    `opsets` (version by domain), `operators` (nodes by operator), `nodes`, `parameters` and `bytes`
    of its weights by `dtypes`, `external` (bytes by file) and, with `layers`, `layers`: a list of
    `name`, `operator`, `within` (the function or node that it is a part of), `inputs` and
    `outputs`, each with `name`, and `dtype` and `shape` where the file states them, else null.

    Args:
        bundle: that has it.
        name: of the graph.
        precision: that it has files in.
        layers: whether nodes are listed.

    Raises:
        BundleError: its file cannot be read.
    """
    manifest = bundle.manifest
    spec = manifest.tables[precision][name]
    found = graph_at(bundle, spec)
    sizes = {file: _size(bundle, file) for file in spec.files}
    values: dict[str, Any] = {
        **header("graph"),
        **identity(bundle),
        "graph": name,
        "precision": precision,
        **_graph(spec, sizes, _parity(manifest, name, precision)),
        "ir_version": found.ir_version,
        "producer": found.producer,
        "opsets": found.opsets,
        "operators": found.operators,
        "nodes": len(found.nodes),
        "parameters": found.parameters,
        "dtypes": _dtypes(found),
        "external": found.external_bytes,
    }
    if layers:
        values["layers"] = [
            {
                "name": node.name,
                "operator": node.operator,
                "within": node.within,
                "inputs": [_tensor(found, tensor) for tensor in node.inputs if tensor],
                "outputs": [_tensor(found, tensor) for tensor in node.outputs if tensor],
            }
            for node in found.nodes
        ]
    return values


def survivals(draft: AffineDraft) -> dict[str, list[float]]:
    """By number of drafted transitions, the chance that all are accepted, by head step `[S]`."""
    return {
        str(count): [round(float(value), _DIGITS) for value in draft.survival[:, count - 1]]
        for count in SURVIVALS
    }


def _model(bundle: Bundle, role: str) -> dict[str, Any]:
    manifest, config = bundle.manifest, bundle.manifest.models[role]
    specs = [manifest.every_graph.get(f"{role}.{name}") for name in MODEL_GRAPHS]
    counted = [spec for spec in specs if spec is not None and spec.files]
    whole = len(counted) == len(specs)
    return {
        "family": config.family,
        "parameters": (
            sum(graph_at(bundle, spec).parameters for spec in counted)
            if whole
            else config.parameters
        ),
        "counted_in": "weights of its graphs" if whole else "matrices of its configuration",
        "tokens": config.seq_len,
        "token_channels": config.token_dim,
        "classes": config.class_num,
        "image": f"{config.img_size} x {config.img_size} {config.image_kind}",
        "encoder": [config.encoder_depth, config.encoder_embed_dim, config.encoder_num_heads],
        "decoder": [config.decoder_depth, config.decoder_embed_dim, config.decoder_num_heads],
        "head": [config.diffloss_d, config.diffloss_w],
        "config": config.to_dict(),
    }


def _sampling(config: MARConfig, manifest: Manifest) -> dict[str, Any]:
    return {
        "head_steps": manifest.head_steps,
        "beta_schedule": config.beta_schedule,
        "sampler": config.sampling_algo,
        "num_iter": min(config.num_iter, config.seq_len),
        "mask_schedule": config.mask_strategy,
        "cfg_schedule": config.cfg_schedule,
        "cfg_interval": [config.cfg_t_min, config.cfg_t_max],
    }


def _graphs(manifest: Manifest, sizes: Mapping[str, int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for precision, graphs in manifest.tables.items():
        for name, spec in graphs.items():
            values = _graph(spec, sizes, _parity(manifest, name, precision))
            found.setdefault(name, {})[precision] = values
    return found


def _graph(
    spec: GraphSpec, sizes: Mapping[str, int], parity: ParityResult | None
) -> dict[str, Any]:
    return {
        "files": dict(spec.files),
        "bytes": sum(sizes[file] for file in spec.files),
        "inputs": [_interface(tensor) for tensor in spec.inputs],
        "outputs": [_interface(tensor) for tensor in spec.outputs],
        "profile": {name: [*sizes] for name, sizes in spec.profile.items()},
        "parity": None if parity is None else {
            "shapes": parity.shapes,
            "max_abs": parity.max_abs if math.isfinite(parity.max_abs) else None,
            "max_rel": parity.max_rel if math.isfinite(parity.max_rel) else None,
            "tolerance": parity.tolerance,
            "passed": parity.passed,
        },
    }  # fmt: skip


def _parity(manifest: Manifest, name: str, precision: str) -> ParityResult | None:
    rows = (r for r in manifest.parity if (r.graph_name, r.precision) == (name, precision))
    return next(rows, None)


def _interface(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": [*tensor.shape]}


def _tensor(graph: OnnxGraph, name: str) -> dict[str, Any]:
    found = graph.tensor(name)
    return {
        "name": name,
        "dtype": None if found is None else found.dtype,
        "shape": None if found is None else [*found.shape],
    }


def _dtypes(graph: OnnxGraph) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for weight in graph.weights.values():
        row = found.setdefault(weight.dtype, {"parameters": 0, "bytes": 0})
        row["parameters"] += weight.numbers
        row["bytes"] += weight.bytes
    return found


def _engine(manifest: Manifest, index: int) -> dict[str, Any]:
    engine = manifest.engines[index]
    known = engine.graph in manifest.every_graph
    spec = graph_spec(manifest, engine.graph, engine.precision) if known else None
    return {
        **dataclasses.asdict(engine),
        "compute_capabilities": [*engine.compute_capabilities],
        "architectures": [architecture(one) for one in engine.compute_capabilities],
        "profile": {} if spec is None else {name: [*r] for name, r in spec.profile.items()},
    }


def _calibration(bundle: Bundle, sizes: Mapping[str, int]) -> dict[str, Any] | None:
    calibration = bundle.manifest.calibration
    if calibration is None:
        return None
    drafts = {role: bundle.head_draft(role) for role in bundle.manifest.models}
    return {
        **dataclasses.asdict(calibration),
        "bytes": sizes[calibration.file],
        "survival": {role: survivals(d) for role, d in drafts.items() if d is not None},
    }


def _size(bundle: Bundle, name: str) -> int:
    path = bundle.check.folder.file(name)
    return 0 if path is None else path.stat().st_size
