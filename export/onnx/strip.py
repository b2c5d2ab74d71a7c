"""ONNX models without what ties them to the machine that made them.

PyTorch's exporter notes stack traces and scopes in its models: paths of the exporting machine, a
third of a small graph's bytes, and other ones wherever the same weights are exported again.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, NodeProto

# Fields of any message that hold notes for people.
_NOTES = ("doc_string", "metadata_props")


def strip_notes(model: ModelProto) -> None:
    """Take notes out of a model, in place."""
    _strip(model)
    _strip_graph(model.graph)
    for function in model.functions:
        _strip(function, *function.value_info)
        _strip_nodes(function.node)


def _strip(*messages: Message) -> None:
    for message in messages:
        for field in _NOTES:
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)


def _strip_graph(graph: GraphProto) -> None:
    _strip(graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        _strip(node)
        for attribute in node.attribute:
            # To change what is not there would make it.
            own = [attribute.t] if attribute.HasField("t") else []
            _strip(attribute, *own, *attribute.tensors)
            inner = [attribute.g] if attribute.HasField("g") else []
            for graph in (*inner, *attribute.graphs):
                _strip_graph(graph)
