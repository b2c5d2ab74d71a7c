"""Float32 ONNX graphs with products of int8 weights, for ONNX Runtime on the CPU.

`onnxruntime.quantization` does it: weights to int8 with a scale for each output column, before;
the activations of a product to uint8 with one scale for the whole tensor, as they come. Sums,
LayerNorm, softmax, attention's own products, those of a part of a weight (in a decoder's last
block) and what lies between the graphs stay float32.

| graph | products |
| --- | --- |
| `backbone`, `backbone_full`, `backbone_local`, `head_modulation` | int8 |
| `head_step`, `decoder` | float32: the files of the float32 graphs, written once |

Weights have 7 bits: processors without VNNI add pairs of uint8 x int8 products in 16 bits, and 8
bits overflow there. So a graph computes the same integers on every processor.

The scale of the activations is that of a whole call, so that in int8 the tokens of an image depend,
within the rounding, on the images that are decoded with it.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from ...runtime.backends.onnx_library import load_quantizer
from ...runtime.bundle.graph_tensors import LOCAL_GRAPHS
from .strip import strip_notes
from .weights import SharedWeights, drop_unused, pieces_of, save_beside

NAME = "int8"
# The head's steps take a token's state through up to a thousand times its error.
_QUANTIZED = ("backbone", *LOCAL_GRAPHS, "head_modulation")
_PRODUCTS = ["MatMul", "Gemm"]


def has_int8(graph: str) -> bool:
    """Whether a graph, as `target.backbone`, has int8 products in this precision."""
    return graph.rpartition(".")[2] in _QUANTIZED


def write_int8(source: Path, path: Path, shared: SharedWeights | None = None) -> list[Path]:
    """Write a float32 ONNX file with int8 products and return its files, the `.onnx` first.

    The quantizer holds a model several times, so it is given one product at a time; memory is that
    of the int8 weights and a few of the largest float32 one.

    Args:
        source: the float32 graph.
        path: where to write.
        shared: see `WeightsFile`.

    Raises:
        BackendError: onnxruntime's quantizer cannot be imported.
        OSError: a file cannot be read or written.
    """
    quantizer = load_quantizer()
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: dict[
        str, NodeProto
    ] = {}  # by their first result: two products of one input round it once
    with tempfile.TemporaryDirectory(prefix=".int8-", dir=path.parent) as folder, _without_advice():
        for node in graph.node:
            if node.op_type not in _PRODUCTS or node.input[1] not in weights:
                nodes[node.output[0]] = node
                continue
            held = {name: weights[name] for name in node.input[1:] if name in weights}
            product = _product(node, held, source.parent, model)
            rough = Path(folder) / path.name
            quantizer.quantize_dynamic(
                product, rough, op_types_to_quantize=_PRODUCTS, per_channel=True,
                reduce_range=True, weight_type=quantizer.QuantType.QInt8,
            )  # fmt: skip
            made = onnx.load(rough).graph
            for tensor in made.initializer:
                weights.setdefault(tensor.name, tensor)
            for part in made.node:
                nodes.setdefault(part.output[0], part)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes.values())
    graph.initializer.extend(weights.values())
    drop_unused(graph)
    strip_notes(model)
    return save_beside(model, path, lambda tensor: pieces_of(tensor, source.parent), shared)


def _product(
    node: NodeProto, held: Mapping[str, TensorProto], folder: Path, model: ModelProto
) -> ModelProto:
    """Return a model of one node of `model`; the values of its weights `held` are read."""
    make = onnx.helper.make_tensor_value_info
    read = [
        numpy_helper.from_array(np.concatenate(list(pieces_of(tensor, folder))).reshape(dims), name)
        for name, tensor in held.items()
        for dims in [tuple(tensor.dims)]
    ]
    given = [make(name, TensorProto.FLOAT, None) for name in node.input if name not in held]
    result = [make(node.output[0], TensorProto.FLOAT, None)]
    part = onnx.helper.make_graph([node], model.graph.name, given, result, read)
    return onnx.helper.make_model(
        part, opset_imports=model.opset_import, ir_version=model.ir_version
    )


@contextmanager
def _without_advice() -> Generator[None]:
    """The quantizer advises by the root logger to run its own optimizations first."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
