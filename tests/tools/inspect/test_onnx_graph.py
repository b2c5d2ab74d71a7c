"""The reader of nodes against the onnx package, and files that are none."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from csd.tools.inspect.onnx_graph import Tensor, read_graph


@pytest.mark.parametrize("name", ["target_backbone", "target_head_step", "decoder"])
def test_a_graph_is_read_as_onnx_reads_it(tiny_bundle, name):
    path = tiny_bundle / f"{name}.onnx"
    found, wanted = read_graph(path), onnx.load(path, load_external_data=False)
    assert found.ir_version == wanted.ir_version
    assert found.producer == f"{wanted.producer_name} {wanted.producer_version}".strip()
    assert found.opsets == {entry.domain or "ai.onnx": entry.version
                            for entry in wanted.opset_import}  # fmt: skip
    nodes = [(n.name, n.op_type, tuple(n.input), tuple(n.output)) for n in wanted.graph.node]
    assert [(n.name, n.operator, n.inputs, n.outputs) for n in found.nodes] == nodes
    weights = {weight.name: tuple(weight.dims) for weight in wanted.graph.initializer}
    assert {name: weight.shape for name, weight in found.weights.items()} == weights
    for value in (*wanted.graph.value_info, *wanted.graph.input, *wanted.graph.output):
        dims = value.type.tensor_type.shape.dim
        shape = tuple(d.dim_param or d.dim_value or None for d in dims)
        assert found.tensors[value.name].shape == shape
    size = sum(found.external_bytes.values())
    # Tensors in the file are aligned.
    assert 0 <= (tiny_bundle / f"{name}.onnx.data").stat().st_size - size < 4096 * len(weights)


def test_functions_branches_types_and_domains(tmp_path):
    then = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"], name="inner")], "then", [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
    )  # fmt: skip
    node = helper.make_node("If", ["flag"], ["z"], name="choice", then_branch=then,
                            else_branch=then)  # fmt: skip
    own = helper.make_node("Own", ["x", "", "w"], ["u"], domain="csd")
    weight = helper.make_tensor("w", TensorProto.INT4, [3], [1, 2, 3])
    graph = helper.make_graph(
        [node, own], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [None, 2])],
        [helper.make_tensor_value_info("u", TensorProto.DOUBLE, None)], [weight],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("csd", 1)]
    function = helper.make_function(
        "csd", "Own", ["a", "b", "c"], ["d"], [helper.make_node("Add", ["a", "c"], ["d"])], opsets
    )
    path = tmp_path / "x.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[function]), path)
    found = read_graph(path)
    assert [(node.operator, node.within) for node in found.nodes] == [
        ("If", ""), ("Neg", "choice"), ("Neg", "choice"), ("csd.Own", ""), ("Add", "csd.Own"),
    ]  # fmt: skip
    assert found.operators == {"Neg": 2, "Add": 1, "If": 1, "csd.Own": 1}
    assert found.opsets == {"ai.onnx": 21, "csd": 1}
    assert (found.weights["w"].dtype, found.weights["w"].bytes, found.parameters) == ("int4", 2, 3)
    assert found.tensor("x") == Tensor("float16", (None, 2))
    assert found.tensor("w") == Tensor("int4", (3,))
    assert found.tensor("nothing") is None


@pytest.mark.parametrize(
    "content",
    [
        b"\x3a\x7f", b"hello, world", b"\x00\x01",
        # A weight of 2**60 x 2**60 numbers.
        bytes([0x3A, 0x18, 0x2A, 0x16]) + (b"\x08" + b"\x80" * 8 + b"\x10") * 2 + b"\x10\x01",
    ],
)  # fmt: skip
def test_what_is_no_graph_is_an_error(content, tmp_path):
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"it |a weight has more numbers"):
        read_graph(tmp_path / "x.onnx")
