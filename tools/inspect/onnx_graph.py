"""The nodes, weights and shapes of an ONNX file, without the onnx package.

It reads with the strict reader of `runtime/bundle/onnx_file.py`, which has accepted the file before
when its bundle was opened.

| message | fields that are read |
| --- | --- |
| model | 1 IR version, 2 and 3 what wrote it, 7 graph, 8 operator sets, 25 functions |
| operator set | 1 domain, 2 version |
| graph | 1 nodes, 5 initializers, 11 inputs, 12 outputs, 13 shapes of what lies between |
| node | 1 inputs, 2 outputs, 3 name, 4 operator, 5 attributes (6 and 11: graphs), 7 domain |
| function | 1 name, 7 nodes, 10 domain |
| tensor | 1 dims, 2 type, 8 name, 13 external data |
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...runtime.bundle.onnx_file import (
    ELEMENTS,
    Dimension,
    View,
    as_message,
    as_number,
    as_text,
    fields,
    mapped,
    tensor_message,
    value_info,
)

# Types of weights, with those that no tensor of a bundle's interface has: name and bits by number.
_WEIGHTS = {
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16),
    6: ("int32", 32), 7: ("int64", 64), 9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64),
    12: ("uint32", 32), 13: ("uint64", 64), 16: ("bfloat16", 16), 17: ("float8e4m3fn", 8),
    18: ("float8e4m3fnuz", 8), 19: ("float8e5m2", 8), 20: ("float8e5m2fnuz", 8), 21: ("uint4", 4),
    22: ("int4", 4),
}  # fmt: skip
_MOST_NUMBERS = 1 << 50
_MOST_DEPTH = 20


@dataclass(frozen=True)
class Tensor:
    """A tensor of a graph; a dimension that the file does not name is None."""

    dtype: str
    shape: tuple[Dimension, ...]


@dataclass(frozen=True)
class Weight:
    """An initializer.

    Attributes:
        dtype: of its numbers.
        shape: its dimensions.
        bytes: that its numbers take.
        location: the file beside the graph that has them, or None.
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    location: str | None

    @property
    def numbers(self) -> int:
        """How many there are."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Node:
    """A node.

    Attributes:
        name: empty where the file gives none.
        operator: with its domain before it, unless that is ONNX's own.
        inputs, outputs: names of tensors; an input that is left out is empty.
        within: the function or node that the node is a part of, or empty.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    within: str = ""


@dataclass
class OnnxGraph:
    """What a file holds.

    Attributes:
        ir_version: of the format.
        producer: what wrote it.
        opsets: version by domain; ONNX's own is `ai.onnx`.
        nodes: in their order, those of functions last.
        weights: by name.
        tensors: types and shapes that the file states, by name.
    """

    ir_version: int = 0
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict[str, int])
    nodes: list[Node] = field(default_factory=list[Node])
    weights: dict[str, Weight] = field(default_factory=dict[str, Weight])
    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def operators(self) -> dict[str, int]:
        """Nodes by operator, the most frequent first."""
        counts = Counter(node.operator for node in self.nodes)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def parameters(self) -> int:
        """Numbers of all weights."""
        return sum(weight.numbers for weight in self.weights.values())

    @property
    def external_bytes(self) -> dict[str, int]:
        """Bytes of the weights in each file beside the graph."""
        found: dict[str, int] = {}
        for weight in self.weights.values():
            if weight.location is not None:
                found[weight.location] = found.get(weight.location, 0) + weight.bytes
        return found

    def tensor(self, name: str) -> Tensor | None:
        """Type and shape of a tensor or weight, where the file states them."""
        if (weight := self.weights.get(name)) is not None:
            return Tensor(weight.dtype, weight.shape)
        return self.tensors.get(name)


def read_graph(path: Path) -> OnnxGraph:
    """Read a file; the numbers of its weights are passed over.

    Raises:
        ValueError: it is not an ONNX file, or names sizes that no file has.
        OSError: it cannot be read.
    """
    found = OnnxGraph()
    names = ["", ""]
    for number, value in fields(mapped(path)):
        if number == 1:
            found.ir_version = as_number(value)
        elif number in (2, 3):
            names[number - 2] = as_text(value)
        elif number == 7:
            _read_graph(as_message(value), found, "", 0)
        elif number == 8:
            domain, version = _opset(as_message(value))
            found.opsets[domain or "ai.onnx"] = version
        elif number == 25:
            _read_function(as_message(value), found)
    found.producer = " ".join(filter(None, names))
    return found


def _opset(view: View) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in fields(view):
        if number == 1:
            domain = as_text(value)
        elif number == 2:
            version = as_number(value)
    return domain, version


def _read_graph(view: View, found: OnnxGraph, within: str, depth: int) -> None:
    if depth > _MOST_DEPTH:
        raise ValueError("it is nested too deep")
    for number, value in fields(view):
        if number == 1:
            _read_node(as_message(value), found, within, depth)
        elif number == 5:
            name, weight = _weight(as_message(value))
            found.weights[name] = weight
        elif number in (11, 12, 13):
            name, (dtype, shape) = value_info(as_message(value))
            if dtype:
                found.tensors[name] = Tensor(dtype, shape)


def _read_function(view: View, found: OnnxGraph) -> None:
    name = domain = ""
    nodes: list[View] = []
    for number, value in fields(view):
        if number == 1:
            name = as_text(value)
        elif number == 10:
            domain = as_text(value)
        elif number == 7:
            nodes.append(as_message(value))
    for node in nodes:
        _read_node(node, found, _qualified(domain, name), 1)


def _read_node(view: View, found: OnnxGraph, within: str, depth: int) -> None:
    inputs: list[str] = []
    outputs: list[str] = []
    name = operator = domain = ""
    graphs: list[View] = []
    for number, value in fields(view):
        if number == 1:
            inputs.append(as_text(value))
        elif number == 2:
            outputs.append(as_text(value))
        elif number == 3:
            name = as_text(value)
        elif number == 4:
            operator = as_text(value)
        elif number == 5:
            graphs += _graphs_of(as_message(value))
        elif number == 7:
            domain = as_text(value)
    operator = _qualified(domain, operator)
    found.nodes.append(Node(name, operator, tuple(inputs), tuple(outputs), within))
    for graph in graphs:
        _read_graph(graph, found, name or operator, depth + 1)


def _graphs_of(attribute: View) -> Iterator[View]:
    for number, value in fields(attribute):
        if number in (6, 11):
            yield as_message(value)


def _qualified(domain: str, name: str) -> str:
    return name if domain in ("", "ai.onnx") else f"{domain}.{name}"


def _weight(view: View) -> tuple[str, Weight]:
    tensor = tensor_message(view)
    name = ELEMENTS.get(tensor.element, f"type {tensor.element}")
    dtype, bits = _WEIGHTS.get(tensor.element, (name, 0))
    numbers = math.prod(tensor.shape)
    if len(tensor.shape) > 64 or numbers > _MOST_NUMBERS:
        raise ValueError("a weight has more numbers than a file can have")
    location = tensor.entries.get("location")
    return tensor.name, Weight(dtype, tensor.shape, -(-numbers * bits // 8), location)
