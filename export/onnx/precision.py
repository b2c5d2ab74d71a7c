"""Float32 ONNX graphs in half precision, for engines of strongly typed networks.

Matrix products, convolutions and what only moves their data run in the type of the variant; all
else stays float32: sums into the residual stream, LayerNorm, softmax, activations. The weights of
products, which bound the time at batch 1, have half the size. The layers of `FLOAT32_LAYERS` stay
float32 too. Casts stand where a value changes its type, for the builder of an engine to fuse.

Those layers become a multiplication and a sum: TensorRT for RTX has no float32 matrix products for
sm_75. It makes one operation of both, with no room for the product in its memory plan.

| tensor of a variant | type |
| --- | --- |
| `mods`, between `head_modulation` and the head | the variant's |
| caches, from `backbone_full` to `backbone_local`, but `token_bias` | the variant's |
| every other floating-point input and output | float32 |
| integers | as in the float32 graph |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from ...runtime.bundle.graph_tensors import TYPED
from ...runtime.errors import ExportError
from .weights import Array, SharedWeights, drop_unused, is_beside, pieces_of, save_beside

ELEMENTS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# The first and the last layer of the head: the first step of a cosine chain multiplies an error of
# eps by 350, and rounding here adds two thirds to it. They have C and 2 C columns of the head's.
FLOAT32_LAYERS = ("input_proj.", "final_layer.linear.")

_PRODUCTS = {"MatMul", "Gemm", "Conv"}
# Operators that only move data, with the inputs that hold it (None: all of them).
_MOVES: dict[str, tuple[int, ...] | None] = {
    "Concat": None, "Expand": (0,), "Gather": (0,), "GatherElements": (0,), "GatherND": (0,),
    "Identity": (0,), "Reshape": (0,), "ScatterElements": (0, 2), "ScatterND": (0, 2),
    "Slice": (0,), "Split": (0,), "Squeeze": (0,), "Transpose": (0,), "Unsqueeze": (0,),
}  # fmt: skip


def write_variant(
    source: Path,
    path: Path,
    precision: str,
    *,
    emulated: bool = False,
    shared: SharedWeights | None = None,
) -> list[Path]:
    """Write a float32 ONNX file in a precision and return its files, the `.onnx` first.

    Args:
        source: the float32 graph.
        path: where to write.
        precision: a key of `ELEMENTS`.
        emulated: as for `retype`.
        shared: see `WeightsFile`.

    Raises:
        ExportError: a weight is too large for the precision.
        OSError: a file cannot be read or written.
    """
    model = onnx.load(source, load_external_data=False)
    sources = retype(model, precision, emulated=emulated)

    def values(tensor: TensorProto) -> Iterator[Array]:
        full = sources.get(tensor.name)
        if full is None:
            yield from pieces_of(tensor, source.parent)
            return
        for piece in pieces_of(full, source.parent):
            yield _rounded(piece, full.name, precision, emulated)

    return save_beside(model, path, values, shared)


def retype(
    model: onnx.ModelProto, precision: str, *, emulated: bool = False
) -> dict[str, TensorProto]:
    """Change a float32 model, in place, to a precision of `ELEMENTS`.

    Args:
        model: the float32 model.
        precision: a key of `ELEMENTS`.
        emulated: keep every tensor float32, and round to the precision what would have it: the
            same numbers where a runtime has no operators of that type. `TYPED` tensors must then
            be given rounded.

    Returns:
        For names of weights that lie beside it and have another type now, the float32 ones.

    Raises:
        ExportError: a weight is too large for the precision.
    """
    element = TensorProto.FLOAT if emulated else ELEMENTS[precision]
    for value in (*model.graph.input, *model.graph.output):
        if value.name in TYPED:
            value.type.tensor_type.elem_type = element
    scope = _Scope(model.graph, precision, emulated, None)
    scope.convert()
    return scope.sources


class _Scope:
    """A graph on its way to a typed one; the body of a loop has the graph around it as `outer`.

    A value keeps its name in the type that it is computed in. `half` and `full` return its name in
    the other one, and write the cast where it is first asked for.
    """

    def __init__(
        self, graph: GraphProto, precision: str, emulated: bool, outer: _Scope | None
    ) -> None:
        self.graph, self.precision, self.emulated, self.outer = graph, precision, emulated, outer
        self.declared = {v.name: v.type.tensor_type.elem_type for v in graph.output}
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        # Names of values in the variant's type, and in float32 where they are computed in it.
        self.halves = {v.name: v.name for v in graph.input if v.name in TYPED}
        self.fulls: dict[str, str | None] = dict.fromkeys(self.halves)
        self.nodes: list[NodeProto] = []
        # Weights that lie beside the model, by the names that they have in the variant's type.
        self.sources: dict[str, TensorProto] = {} if outer is None else outer.sources
        # A name of a loop's body must not be one of the graph around it.
        self.suffix: str = "" if outer is None else f"{outer.suffix}_inner"

    def convert(self) -> None:
        """Rewrite the graph."""
        for node in list(self.graph.node):
            self._node(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        del self.graph.value_info[:]  # they hold the old types
        if self.outer is None:
            drop_unused(self.graph)

    def _node(self, node: NodeProto) -> None:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _Scope(attribute.g, self.precision, self.emulated, self).convert()
        if _stays_float32(node):
            self._exact_product(node)
            return
        product = node.op_type in _PRODUCTS or self._is_bias(node)
        data = _data_inputs(node)
        moved = bool(data) and all(self._is_half(node.input[i]) for i in data)
        if product or moved:
            for index in range(len(node.input)) if product else data:
                if node.input[index]:
                    node.input[index] = self.half(node.input[index])
        else:
            node.input[:] = [self.full(name) for name in node.input]
        self.nodes.append(node)
        for index, name in enumerate(node.output):
            if product or moved:
                self._produced(node, index, name, rounded=moved)

    def _exact_product(self, node: NodeProto) -> None:
        """Write `x [R, n]` times `weight [m, n]` plus a bias in float32, as a sum of products."""
        x, weight, bias = node.input
        result = node.output[0]
        make, part = onnx.helper.make_node, [f"{result}_{k}" for k in ("rows", "products", "sum")]
        self.nodes += [
            make("Unsqueeze", [self.full(x), self._axis(1)], part[:1], name=part[0]),
            make("Mul", [part[0], weight], part[1:2], name=part[1]),
            make("ReduceSum", [part[1], self._axis(-1)], part[2:], name=part[2], keepdims=0),
            make("Add", [part[2], bias], [result], name=node.name),
        ]

    def _axis(self, axis: int) -> str:
        """Return the name of a constant that holds one axis."""
        name = f"axis_{axis}"
        if self._where(lambda scope: name in scope.weights) is None:
            tensor = numpy_helper.from_array(np.array([axis], dtype=np.int64), name)
            self.graph.initializer.append(tensor)
            self.weights[name] = tensor
        return name

    def _is_bias(self, node: NodeProto) -> bool:
        """Whether a node adds a weight to a product: engines make one operation of both."""
        return (
            node.op_type == "Add"
            and any(self._is_half(name) for name in node.input)
            and any(self._where(lambda s, n=name: n in s.weights) for name in node.input)
        )

    def _produced(self, node: NodeProto, index: int, name: str, *, rounded: bool) -> None:
        """Note a result in the variant's type; a graph may declare it float32 among its outputs."""
        self.halves[name], self.fulls[name] = name, None
        if self.emulated and not rounded:
            node.output[index] = f"{name}_exact"
            self._round(node.output[index], name)
        elif not self.emulated and self.declared.get(name) == TensorProto.FLOAT:
            node.output[index] = f"{name}_{self.precision}"
            self._cast(node.output[index], name, TensorProto.FLOAT)
            self.halves[name], self.fulls[name] = node.output[index], name

    def _is_half(self, name: str) -> bool:
        """Whether a value is computed in the variant's type."""
        scope = self._where(lambda scope: name in scope.fulls)
        return scope is not None

    def half(self, name: str) -> str:
        """Return the name of a value in the variant's type."""
        scope = self._where(lambda scope: name in scope.halves)
        if scope is not None:
            return scope.halves[name]
        holder = self._where(lambda scope: name in scope.weights)
        typed = f"{name}_{self.precision}{(holder or self).suffix}"
        if holder is not None:
            holder.graph.initializer.append(self._converted(holder.weights[name], typed))
            holder.halves[name] = typed
            return typed
        if self.emulated:
            self._round(name, typed)
        else:
            self._cast(name, typed, ELEMENTS[self.precision])
        self.halves[name] = typed
        return typed

    def _converted(self, tensor: TensorProto, name: str) -> TensorProto:
        """Return a weight in the variant's type; one that lies beside the model is noted."""
        if is_beside(tensor):
            typed = TensorProto()
            typed.CopyFrom(tensor)
            typed.name = name
            typed.data_type = TensorProto.FLOAT if self.emulated else ELEMENTS[self.precision]
            self.sources[name] = tensor
            return typed
        array = numpy_helper.to_array(tensor)
        rounded = _rounded(array, tensor.name, self.precision, self.emulated)
        return numpy_helper.from_array(rounded, name)

    def full(self, name: str) -> str:
        """Return the name of a value in float32, or of what is no floating-point value."""
        if self.emulated or not self._is_half(name):
            return name
        scope = self._where(lambda scope: scope.fulls.get(name) is not None) or self
        known = scope.fulls.get(name)
        if known is None:
            known = f"{name}_fp32{self.suffix}"
            self._cast(self.half(name), known, TensorProto.FLOAT)
            self.fulls[name] = known
        return known

    def _where(self, holds: Callable[[_Scope], bool]) -> _Scope | None:
        """Return the innermost scope of which something is true."""
        scope: _Scope | None = self
        while scope is not None and not holds(scope):
            scope = scope.outer
        return scope

    def _round(self, source: str, result: str) -> None:
        rounded = f"{result}_{self.precision}_rounded"
        self._cast(source, rounded, ELEMENTS[self.precision])
        self._cast(rounded, result, TensorProto.FLOAT)

    def _cast(self, source: str, result: str, element: int) -> None:
        node = onnx.helper.make_node("Cast", [source], [result], name=f"cast_{result}", to=element)
        self.nodes.append(node)


def _stays_float32(node: NodeProto) -> bool:
    return node.op_type == "Gemm" and any(layer in node.input[1] for layer in FLOAT32_LAYERS)


def _data_inputs(node: NodeProto) -> tuple[int, ...]:
    if node.op_type not in _MOVES:
        return ()
    indices = _MOVES[node.op_type]
    return tuple(range(len(node.input))) if indices is None else indices


def _rounded(values: Array, name: str, precision: str, emulated: bool) -> Array:
    """Return float32 values of a weight in a precision, or rounded to it.

    Raises:
        ExportError: one is too large.
    """
    with np.errstate(over="ignore"):  # told below
        typed = values.astype(onnx.helper.tensor_dtype_to_np_dtype(ELEMENTS[precision]))
    full = typed.astype(np.float32)
    if not np.isfinite(full).all():
        most = float(np.abs(values).max())
        raise ExportError(
            f"{name} holds {most:.3g}, which {precision} has no number for: give --precision "
            f"{'bf16 or fp32' if precision == 'fp16' else 'fp32'}"
        )
    return full if emulated else typed
