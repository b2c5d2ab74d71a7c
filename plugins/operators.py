"""The operators: names, tensors and attributes. Everything that lists operators reads this table.

| reads it | for |
| --- | --- |
| `onnx_functions.py` | functions of standard operators, by name |
| `qdp.py` | quickly deployable TensorRT plugins |
| `csd.runtime.backends.tensorrt.plugins` | which plugin a graph of a bundle needs |
| `csd.export.onnx.operators` | graphs of a bundle that are one operator each |
"""

from __future__ import annotations

from dataclasses import dataclass

# Domain of the nodes, namespace of the plugins.
DOMAIN = "csd"
VERSION = 1
# Graphs of operators, which compute in float32 whatever the precision.
GRAPH_PREFIX = "ops."


@dataclass(frozen=True)
class Tensor:
    """An input or output of an operator.

    Attributes:
        name: name in the tables of plugins/README.md.
        shape: names of the dimensions, or numbers.
        dtype: an ONNX element type in lower case; "T" is the operator's element type.
    """

    name: str
    shape: tuple[str | int, ...]
    dtype: str = "T"


@dataclass(frozen=True)
class Operator:
    """An operator of the domain.

    Attributes:
        name: its ONNX operator type and TensorRT plugin name.
        inputs: in order.
        outputs: in order.
        attributes: their default values by name.
        graph: name of the graph of a bundle that is this operator alone.
        optional: inputs that a node may leave out, all or none.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attributes: dict[str, int | float]
    graph: str
    optional: frozenset[str] = frozenset()

    def inputs_given(self, optional: bool = True) -> tuple[Tensor, ...]:
        """Return the inputs of a node with or without the optional ones."""
        return tuple(t for t in self.inputs if optional or t.name not in self.optional)


def _tensors(names: str, shape: tuple[str | int, ...], dtype: str = "T") -> tuple[Tensor, ...]:
    return tuple(Tensor(name, shape, dtype) for name in names.split())


_TOKEN = ("B", "K", "C")
_WINDOW = ("N", "K", "C")
_POOL = ("R", "N", "C")

OPERATORS = {
    operator.name: operator
    for operator in (
        Operator(
            name="CsdAccept",
            inputs=(
                *_tensors("x mean_p std_p sum_log_std_p mean_q std_q sum_log_std_q", _TOKEN),
                Tensor("u", ("B", "K"), "float"),
            ),
            outputs=(
                Tensor("accepted", ("B", "K"), "bool"),
                Tensor("log_ratio", ("B", "K"), "float"),
                *_tensors("prefix error", ("B",), "int32"),
            ),
            attributes={"kind": 0, "inner_temperature": 1.0},
            graph=f"{GRAPH_PREFIX}accept",
        ),
        Operator(
            name="CsdResample",
            inputs=(
                *_tensors("mean_p std_p sum_log_std_p mean_q std_q sum_log_std_q", ("N", "C")),
                Tensor("normals", _POOL, "float"),
                Tensor("uniforms", ("R", "N"), "float"),
            ),
            outputs=(
                Tensor("x", ("N", "C")),
                Tensor("done", ("N",), "bool"),
                Tensor("error", ("N",), "int32"),
            ),
            attributes={"kind": 0},
            graph=f"{GRAPH_PREFIX}resample",
        ),
        Operator(
            name="CsdVerifyWindow",
            inputs=(
                *_tensors("proposed mean_p std_p mean_q std_q", _WINDOW),
                Tensor("uniforms", ("N", "K"), "float"),
                Tensor("index", ("N",), "int32"),
                Tensor("pool_normals", _POOL, "float"),
                Tensor("pool_uniforms", ("R", "N"), "float"),
            ),
            outputs=(
                *_tensors("accepted next_index", ("N",), "int32"),
                Tensor("state", ("N", "C")),
                Tensor("status", ("N",), "int32"),
            ),
            attributes={},
            graph=f"{GRAPH_PREFIX}verify_window",
        ),
        Operator(
            name="CsdTransition",
            inputs=(
                *_tensors("x eps v eps_uncond", ("R", "C")),
                Tensor("scale", ("R",), "float"),
                Tensor("noise", ("R", "C"), "float"),
                Tensor("step", ("R",), "int32"),
                Tensor("tables", ("S", 6), "float"),
            ),
            outputs=(
                Tensor("next", ("R", "C")),
                *_tensors("mean log_std x0hat", ("R", "C"), "float"),
            ),
            attributes={"temperature": 1.0},
            graph=f"{GRAPH_PREFIX}transition",
            optional=frozenset({"eps_uncond", "scale"}),
        ),
    )
}

# Operator of a graph of a bundle, by the graph's name.
OPERATOR_OF = {operator.graph: operator.name for operator in OPERATORS.values()}
