"""Files for the stand-ins of TensorRT: engines that they load, and a graph that they refuse."""

from __future__ import annotations

import json
import types
from pathlib import Path

import onnx

from csd.runtime.backends.shapes import shape_of
from csd.runtime.bundle.manifest import file_sha256, needed_graphs
from csd.runtime.device import architecture, current_platform

from ...helpers import edit_manifest
from .common import VERSIONS


def write_engines(
    folder, backend, *, precisions=("fp32",), graphs=None, capability="8.7", library=None,
    platform=None, most=None, plugin=None, typed=("mods",),
):  # fmt: skip
    """Add engines to a bundle.

    Args:
        folder: the bundle.
        backend: `tensorrt` or `tensorrt_rtx`.
        precisions: of every graph.
        graphs: None is all that decoding needs.
        capability: of the device that they are for.
        library: its version.
        platform: None is this one.
        most: lowers profiles, as `{"target.head_step": {"R": 7}}`.
        plugin: that they need.
        typed: tensors of the precision's type; None is all that would be float32.
    """

    def change(values):
        names = graphs or [n for n in _needed(values) if n in values["graphs"]]
        for precision in precisions:
            for name in names:
                spec = _variant(values, name, precision, typed)
                where = Path("engines") / backend / architecture(capability)
                out = where / f"{name}.{precision}.engine"
                path = folder / out
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(_engine(folder, spec, (most or {}).get(name), plugin)))
                values["engines"].append(
                    {
                        "graph": name, "backend": backend, "precision": precision,
                        "file": str(out), "sha256": file_sha256(path), "size": 1 << 20,
                        "library": library or VERSIONS[backend],
                        "platform": platform or current_platform(),
                        "compute_capabilities": [capability], "build_seconds": 1.0,
                        "fingerprint": {},
                    }
                )  # fmt: skip

    edit_manifest(folder, change)


def _needed(values):
    models = types.SimpleNamespace(models=values["models"], every_graph=values["graphs"])
    return needed_graphs(models)


def _variant(values, name, precision, typed):
    spec = values["graphs"][name]
    if precision == "fp32":
        return spec
    spec = json.loads(json.dumps(spec))
    for tensor in (*spec["inputs"], *spec["outputs"]):
        if tensor["dtype"] == "float32" and (typed is None or tensor["name"] in typed):
            tensor["dtype"] = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    values.setdefault("variants", {}).setdefault(precision, {})[name] = spec
    return spec


def _engine(folder, spec, most, plugin):
    ranges = {name: list(row) for name, row in spec["profile"].items()}
    for name, size in (most or {}).items():
        ranges[name][2] = size
        ranges[name][:2] = (min(end, size) for end in ranges[name][:2])
    tensors = {
        tensor["name"]: {"dtype": tensor["dtype"], "shape": tensor["shape"], "input": is_input}
        for key, is_input in (("inputs", True), ("outputs", False))
        for tensor in spec[key]
    }
    profile = {
        tensor["name"]: [
            shape_of(types.SimpleNamespace(shape=tensor["shape"]),
                     {name: row[k] for name, row in ranges.items()})
            for k in range(3)
        ]
        for tensor in spec["inputs"]
    }  # fmt: skip
    onnx = str(folder / next(iter(spec["files"])))
    return {"onnx": onnx, "tensors": tensors, "profile": profile, "plugin": plugin}


def broken_copy(path: Path, target: Path) -> Path:
    """Copy an ONNX file with a node that no TensorRT imports."""
    model = onnx.load(path)
    name = model.graph.output[0].name
    model.graph.node.append(
        onnx.helper.make_node("NonZero", [name], ["places"], name="find_places")
    )
    model.graph.output.append(onnx.helper.make_tensor_value_info("places", 7, ["A", "K"]))
    onnx.save_model(model, target)
    return target
