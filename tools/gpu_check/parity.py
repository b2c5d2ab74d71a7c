"""Every graph of every backend against ONNX Runtime's CPU provider, on random inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...plugins.operators import GRAPH_PREFIX
from ...runtime.backends import BackendOptions, Graph, obstacles
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import GraphSpec, Manifest
from ...runtime.difference import Difference
from ...runtime.schedule import TRAIN_STEPS
from .part import Outcome, Skipped, device_or_skip

# Largest difference as a share of the largest value (at least 1), by precision of the engine.
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}


def check(bundle: Bundle) -> Outcome:
    """Compare all graphs with all backends that run here.

    Raises:
        Skipped: there is no device, no backend but the reference runs here, or the bundle has no
            graphs to compare with.
    """
    device_or_skip()
    found = obstacles(bundle.path, bundle.manifest, BackendOptions())
    others = [name for name, reason in found.items() if reason is None and name != "onnxruntime"]
    if not others:
        raise Skipped("; ".join(str(reason) for reason in found.values() if reason))
    rows: list[dict[str, Any]] = []
    manifest = bundle.manifest
    if not manifest.graphs:
        raise Skipped("the bundle is slim and has no float32 graphs to compare with")
    for name in others:
        for precision in precisions(manifest, name):
            with (
                bundle.session(name, precision=precision) as tested,
                bundle.session("onnxruntime") as reference,
            ):
                for graph, spec in manifest.graphs.items():
                    if graph.startswith(GRAPH_PREFIX):
                        continue
                    row = compare(
                        manifest, graph, spec, tested.graph(graph), reference.graph(graph)
                    )
                    kind = precision or "fp32"
                    row.update(backend=name, precision=kind, tolerance=TOLERANCES[kind])
                    row["passed"] = row["share"] <= TOLERANCES[kind]
                    rows.append(row)
    failed = [f"{row['graph']} with {row['backend']}" for row in rows if not row["passed"]]
    details = {"rows": rows}
    if failed:
        return Outcome("failed", f"too far from ONNX Runtime: {', '.join(failed)}", details)
    return Outcome("passed", "", details)


def precisions(manifest: Manifest, backend: str) -> list[str | None]:
    """Precisions of the engines for a backend; ONNX Runtime runs the graphs as they are."""
    found = {engine.precision for engine in manifest.engines if engine.backend == backend}
    return [name for name in TOLERANCES if name in found] or [None]


def compare(
    manifest: Manifest, name: str, spec: GraphSpec, tested: Graph, reference: Graph
) -> dict[str, Any]:
    """Return the largest differences over two sizes of the dynamic dimensions."""
    worst = Difference()
    for seed, place in enumerate((1, 0)):  # typical, least
        feeds = random_feeds(manifest, name, spec, place, np.random.default_rng(seed))
        wanted, made = reference.run(feeds), tested.run(feeds)
        for output, expected in wanted.items():
            worst = worst.or_worse(Difference.of(made[output], expected))
    return {"graph": name, "max_abs": worst.absolute, "share": worst.share}


def random_feeds(
    manifest: Manifest, name: str, spec: GraphSpec, place: int, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    """Return inputs of a graph.

    Args:
        manifest: of the bundle.
        name: of the graph.
        spec: its inputs and the ranges of their dimensions.
        place: 0 for the least, 1 for the typical sizes.
        rng: of the values.
    """
    role = name.split(".")[0]
    config = manifest.models.get(role, manifest.target)
    sizes = {dim: max(1, ranges[place]) for dim, ranges in spec.profile.items()}
    below = {
        "label": config.class_num + 1, "timestep": TRAIN_STEPS,
        "step": sizes.get("S", 1), "token": sizes.get("N", 1),
    }  # fmt: skip
    feeds: dict[str, NDArray[Any]] = {}
    for tensor in spec.inputs:
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)
        if tensor.name in ("visible", "query"):  # different positions
            order = np.argsort(rng.random((shape[0], config.seq_len)), axis=1)
            last = tensor.name == "query"
            feeds[tensor.name] = order[:, -shape[1] :] if last else order[:, : shape[1]]
        elif tensor.dtype == "int64":
            feeds[tensor.name] = rng.integers(below[tensor.name], size=shape)
        elif tensor.name == "timestep":  # of a solver
            feeds[tensor.name] = rng.uniform(0, TRAIN_STEPS - 1, shape).astype(np.float32)
        else:
            feeds[tensor.name] = 0.5 * rng.standard_normal(shape, dtype=np.float32)
    return feeds
