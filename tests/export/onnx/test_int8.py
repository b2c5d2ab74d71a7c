"""Graphs with int8 products, as they are written and as they run."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest

from csd.export.cli import main
from csd.export.onnx.int8 import has_int8, write_int8
from csd.export.onnx.weights import tensor_bytes
from csd.runtime import BackendError, Bundle, GenerateOptions
from csd.runtime.backends import OnnxLoader
from csd.runtime.backends.onnx_library import load_quantizer

from ...helpers import failure, leftovers


@pytest.fixture(scope="module")
def backbone(tiny_bundle, tmp_path_factory):
    """A float32 graph, and the files of its int8 form."""
    source = tiny_bundle / "target_backbone.onnx"
    folder = tmp_path_factory.mktemp("int8")
    return source, write_int8(source, folder / "b.int8.onnx")


def test_products_of_weights_are_integers_and_attention_stays(backbone):
    source, (graph, weights) = backbone
    full, half = (onnx.load(path, load_external_data=False).graph for path in (source, graph))
    weighted = {tensor.name for tensor in full.initializer}
    # The last block takes a part of a weight: that product stays.
    products = [n for n in full.node if n.op_type == "Gemm" and n.input[1] in weighted]
    kinds = [node.op_type for node in half.node]
    assert kinds.count("MatMulInteger") == len(products) + 1 > 10  # and of the tokens
    assert "MatMul" in kinds  # of attention
    assert kinds.count("Gemm") == sum(n.op_type == "Gemm" for n in full.node) - len(products)
    assert weights.stat().st_size < 0.4 * source.with_name(f"{source.name}.data").stat().st_size
    assert not onnx.load(graph, load_external_data=False).metadata_props


def test_weights_have_seven_bits_and_a_scale_for_each_column(backbone):
    model = onnx.load(backbone[1][0])
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    quantized = {name: value for name, value in arrays.items() if value.dtype == np.int8}
    matrices = {name: value for name, value in quantized.items() if value.ndim == 2}
    assert matrices
    for name, value in matrices.items():
        assert value.min() >= -64
        assert value.max() <= 64
        assert arrays[name.replace("_quantized", "_scale")].shape == value.shape[1:]


def test_it_computes_nearly_the_same_and_not_quite(tiny_bundle, backbone):
    spec = Bundle.open(tiny_bundle).manifest.graphs["target.backbone"]
    rng = np.random.default_rng(0)
    sizes = {"B": 2, "V": 3, "P": 4}
    feeds = {}
    for tensor in spec.inputs:
        shape = [sizes.get(d, d) for d in tensor.shape]
        if tensor.dtype == "int64":
            feeds[tensor.name] = np.stack([rng.permutation(7)[: shape[-1]] for _ in range(2)])
        else:
            feeds[tensor.name] = rng.standard_normal(shape, dtype=np.float32)
    feeds["label"] = np.array([1, 2])
    z, near = (OnnxLoader(1).load(path).run(feeds)["z"] for path in (backbone[0], backbone[1][0]))
    error = np.sqrt(np.square(near - z).mean() / np.square(z).mean())
    print(f"relative error of z: {error:.2%}")
    assert 1e-4 < error < 0.03


def test_the_quantizer_holds_one_weight_at_a_time(tiny_bundle, tmp_path, monkeypatch):
    source = tiny_bundle / "target_backbone.onnx"
    given = []
    quantizer = load_quantizer()
    quantize = quantizer.quantize_dynamic

    def watched(model, *args, **kwargs):
        assert isinstance(model, onnx.ModelProto)  # a path would be read whole
        given.append(model.ByteSize())
        quantize(model, *args, **kwargs)

    monkeypatch.setattr(quantizer, "quantize_dynamic", watched)
    write_int8(source, tmp_path / "b.onnx")
    weights = onnx.load(source, load_external_data=False).graph.initializer
    largest = max(tensor_bytes(tensor) for tensor in weights)
    print(f"{len(given)} products, the largest of {max(given)} bytes, weights of {largest}")
    assert largest < max(given) < 1.1 * largest + 2048


def test_products_of_one_input_round_it_once(tmp_path):
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((8, 6), dtype=np.float32) for _ in range(2)]
    make = onnx.helper.make_node
    nodes = [
        make("Relu", ["x"], ["r"]),
        make("MatMul", ["r", "w0"], ["a"], name="first"),
        make("Gemm", ["r", "w1"], ["b"], name="second"),
        make("Add", ["a", "b"], ["y"]),
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [value("x", 1, ["N", 8])], [value("y", 1, ["N", 6])],
        [onnx.numpy_helper.from_array(w, f"w{k}") for k, w in enumerate(weights)],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "f.onnx"
    )
    path = write_int8(tmp_path / "f.onnx", tmp_path / "q.onnx")[0]
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert (kinds.count("DynamicQuantizeLinear"), kinds.count("MatMulInteger")) == (1, 2)
    x = rng.standard_normal((3, 8), dtype=np.float32)
    exact = np.maximum(x, 0) @ sum(weights)
    near = OnnxLoader(1).load(path).run({"x": x})["y"]
    assert 0 < np.abs(near - exact).max() < 0.1 * np.abs(exact).max()


def test_the_quantizer_leaves_nothing_and_says_nothing(tiny_bundle, tmp_path, capfd, caplog):
    write_int8(tiny_bundle / "target_head_modulation.onnx", tmp_path / "m.onnx")
    assert leftovers(tmp_path) == ["m.onnx", "m.onnx.data"]
    captured = capfd.readouterr()
    assert (captured.out, captured.err, caplog.records) == ("", "", [])
    assert logging.root.manager.disable == logging.NOTSET
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_only_what_does_not_multiply_errors_is_quantized():
    assert has_int8("target.backbone")
    assert has_int8("draft.head_modulation")
    assert not has_int8("target.head_step")
    assert not has_int8("decoder")


@pytest.fixture(scope="module")
def exported(tmp_path_factory, config_files):
    """A bundle of the draft alone with int8 graphs, and its slim form."""
    from ...helpers import DATA

    out = tmp_path_factory.mktemp("exported")
    argv = ["--target", DATA / "draft.pth", "--target-config", config_files["draft"],
            "--max-batch", 2, "--calibration-tokens", 64,
            "--precision", "int8", "--out", out / "bundle"]  # fmt: skip
    assert main([str(part) for part in argv]) == 0
    slim = ["--slim", out / "bundle", "--for", "int8,cpu", "--out", out / "slim"]
    assert main([str(part) for part in slim]) == 0
    return out


def test_a_run_of_int8_graphs_makes_nearly_the_same_tokens(exported):
    bundle = Bundle.open(exported / "bundle")
    options = GenerateOptions(mode="target", head="sequential", num_iter=4)
    tokens = {}
    for precision in ("fp32", "int8"):
        with bundle.session("onnxruntime", precision=precision) as session:
            result = session.generate([3, 7], options)
            assert session.versions()["precision"] == precision
        tokens[precision] = result.tokens
    difference = np.sqrt(np.square(tokens["int8"] - tokens["fp32"]).mean())
    print(f"tokens differ by {difference:.2g}, of {tokens['fp32'].std():.2g}")
    assert 1e-5 < difference < 0.1 * tokens["fp32"].std()


def test_a_slim_bundle_has_int8_graphs_and_those_that_stay_float32(exported):
    bundle, slim = Bundle.open(exported / "bundle"), Bundle.open(exported / "slim")
    assert slim.manifest.precisions == ("int8",)
    names = set(slim.manifest.file_hashes)
    assert "target_head_step.onnx" in names
    assert "target_backbone.int8.onnx" in names
    assert "target_backbone.onnx" not in names
    options = GenerateOptions(mode="target", num_iter=3)
    with slim.session() as small, bundle.session("onnxruntime", precision="int8") as whole:
        assert small.versions()["precision"] == "int8"
        ours, theirs = (each.generate([1], options, seed=4) for each in (small, whole))
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)


def test_where_int8_does_not_run_is_one_line(exported, tiny_bundle, capsys, tmp_path):
    with pytest.raises(BackendError, match="tensorrt has no engines of int8: give --backend onnx"):
        Bundle.open(exported / "bundle").session("tensorrt", precision="int8")
    with pytest.raises(BackendError, match="has no int8 graphs: give --precision fp32, or export"):
        Bundle.open(tiny_bundle).session("onnxruntime", precision="int8")
    argv = ["--zoo", "fashion-mnist", "--precision", "int8", "--out", tmp_path / "x"]
    message = failure(main, [*argv, "--backend", "tensorrt_rtx"], capsys)
    assert "int8 graphs are for ONNX Runtime on the CPU" in message
    rebuild = ["--rebuild", exported / "bundle", "--backend", "tensorrt_rtx", "--precision", "int8"]
    assert "give --precision fp16" in failure(main, rebuild, capsys)
    slim = ["--slim", exported / "bundle", "--for", "int8,sm_89", "--out", tmp_path / "y"]
    assert "GPUs run fp16, bf16, fp32" in failure(main, slim, capsys)
