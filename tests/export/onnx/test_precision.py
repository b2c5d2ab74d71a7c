from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from csd.export.cli import main
from csd.export.onnx import networks
from csd.export.onnx.precision import FLOAT32_LAYERS, retype, write_variant
from csd.runtime import Bundle
from csd.runtime.backends import OnnxLoader
from csd.runtime.backends.onnx_library import load_onnxruntime
from csd.runtime.bundle.manifest import Manifest
from csd.runtime.bundle.onnx_file import read_onnx
from csd.runtime.errors import ExportError

from ...helpers import DATA, assert_parity, failure

HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
NUMPY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
TOLERANCE = {"fp16": 5e-3, "bf16": 4e-2}


def typed_model(model, precision, *, emulated=False):
    """A model with its weights in it, in a precision."""
    assert retype(model, precision, emulated=emulated) == {}
    return model


def run(model, feeds):
    options = load_onnxruntime().SessionOptions()
    options.log_severity_level = 3
    session = load_onnxruntime().InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def nodes_of(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)


def test_the_parity_report_has_a_row_for_each_variant_of_each_network(gpu_export):
    bundle, shown = gpu_export
    manifest = Bundle.open(bundle).manifest
    rows = {row.graph: row for row in manifest.parity}
    table = shown.split("largest difference to PyTorch")[1]
    for graph in manifest.variants["fp16"]:
        assert rows[graph].tolerance == 1e-4
        for name, tolerance in (("fp16", 5e-3), ("bf16, emulated", 4e-2)):
            row = rows[f"{graph} [{name}]"]
            print(f"{row.graph}: {row.max_abs:.1e}, a share of {row.max_rel:.1e}")
            assert row.passed
            assert row.tolerance == tolerance
            # A variant that were float32 all through would be this exact.
            assert row.max_rel > 1e-5
            assert row.graph in table
    assert len(rows) == 3 * len(manifest.variants["fp16"])


def test_variants_are_in_the_manifest_with_their_files_and_types(gpu_bundle):
    manifest = Bundle.open(gpu_bundle).manifest
    assert set(manifest.variants) == {"fp16", "bf16"}
    networks = {name for name in manifest.graphs if not name.startswith("ops.")}
    assert {name.split(".")[-1] for name in networks} == {
        "backbone", "head_modulation", "head_step", "head_chain", "decoder",
    }  # fmt: skip
    for precision, dtype in (("fp16", "float16"), ("bf16", "bfloat16")):
        assert set(manifest.variants[precision]) == networks
        for name, spec in manifest.variants[precision].items():
            own = manifest.graphs[name]
            assert spec.profile == own.profile
            typed = {t.name: t.dtype for t in (*spec.inputs, *spec.outputs)}
            plain = {t.name: t.dtype for t in (*own.inputs, *own.outputs)}
            assert {k: v for k, v in typed.items() if k != "mods"} == {
                k: v for k, v in plain.items() if k != "mods"
            }
            assert typed.get("mods", dtype) == dtype
            model = onnx.load(gpu_bundle / spec.onnx_file)
            onnx.checker.check_model(model)
            for value in (*model.graph.input, *model.graph.output):
                half = value.type.tensor_type.elem_type == HALF[precision]
                assert half == (value.name == "mods"), (name, value.name)
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_products_are_typed_and_the_sensitive_layers_stay_float32(gpu_bundle, precision):
    for name, spec in Bundle.open(gpu_bundle).manifest.variants[precision].items():
        model = onnx.load(gpu_bundle / spec.onnx_file)
        element = {w.name: w.data_type for w in model.graph.initializer}
        kept = {
            node.input[1].split("head.")[1]
            for node in nodes_of(model.graph)
            if node.op_type == "Mul" and any(layer in node.input[1] for layer in FLOAT32_LAYERS)
        }
        head = name.split(".")[-1] in ("head_step", "head_chain")
        assert kept == ({"input_proj.weight", "final_layer.linear.weight"} if head else set())
        products = 0
        for node in nodes_of(model.graph):
            types = {element[i] for i in node.input if element.get(i) in (1, HALF[precision])}
            if node.op_type in ("Gemm", "Conv"):
                assert types == {HALF[precision]}, (name, node.name)
                products += 1
            # What is no product and moves no data computes in float32.
            elif node.op_type in ("LayerNormalization", "Softmax", "Gelu", "Sigmoid", "Mul"):
                assert HALF[precision] not in types, (name, node.name)
        assert products > 1


def test_a_variant_has_about_half_the_size(zoo_bundle, tmp_path):
    source = zoo_bundle / "target_backbone.onnx"
    made = write_variant(source, tmp_path / "half.onnx", "fp16")
    whole = source.stat().st_size + source.with_name(f"{source.name}.data").stat().st_size
    share = sum(path.stat().st_size for path in made) / whole
    print(f"share of the size {share:.2f}")
    assert 0.5 < share < 0.6


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("role", ["target", "draft"])
def test_eps_is_accurate_at_the_first_head_step(zoo_bundle, role, precision):
    """A cosine chain magnifies an error of eps there by 350: 1e-3 is what it bears."""
    path = zoo_bundle / f"{role}_head_step.onnx"
    modulation = onnx.load(zoo_bundle / f"{role}_head_modulation.onnx")
    condition = modulation.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    rng = np.random.default_rng(0)
    z = rng.standard_normal((8, condition)).astype(np.float32)
    mods = run(modulation, {"z": z, "timestep": np.array([999])})["mods"]
    mods = mods.astype(NUMPY[precision]).astype(np.float32)
    feeds = {
        "x": rng.standard_normal((64, 16)).astype(np.float32),
        "step": np.zeros(64, dtype=np.int64), "token": np.arange(64) % 8, "mods": mods,
    }  # fmt: skip
    exact = run(onnx.load(path), feeds)["eps"]
    typed = run(typed_model(onnx.load(path), precision, emulated=True), feeds)["eps"]
    error = np.sqrt(np.mean((typed - exact) ** 2))
    print(f"{role} {precision}: root mean square error of eps at t = 999 {error:.1e}")
    assert error <= {"fp16": 1e-3, "bf16": 1e-2}[precision]


@pytest.mark.parametrize("graph", ["backbone", "head_step", "head_chain"])
def test_emulation_has_the_numbers_of_the_float16_file(gpu_bundle, graph):
    """Up to roundings that ONNX Runtime leaves out of float16 files."""
    manifest = Bundle.open(gpu_bundle).manifest
    name = f"target.{graph}"
    rng = np.random.default_rng(1)
    sizes = {"B": 2, "V": 3, "P": 2, "R": 5, "S": 4, "N": 3, "T": 3, "C": 16}
    feeds = {}
    for spec in manifest.graphs[name].inputs:
        shape = [sizes.get(d, d) for d in spec.shape]
        feeds[spec.name] = (
            rng.integers(0, 3, shape) if spec.dtype == "int64"
            else 0.3 * rng.standard_normal(shape).astype(np.float32)
        )  # fmt: skip
    if "mods" in feeds:
        feeds["mods"] = feeds["mods"].astype(np.float16).astype(np.float32)
    source = gpu_bundle / manifest.graphs[name].onnx_file
    typed = onnx.load(gpu_bundle / manifest.variants["fp16"][name].onnx_file)
    halves = {k: v.astype(np.float16) if k == "mods" else v for k, v in feeds.items()}
    exact, file = run(onnx.load(source), feeds), run(typed, halves)
    emulated = run(typed_model(onnx.load(source), "fp16", emulated=True), feeds)
    for key, values in exact.items():
        assert_parity(file[key], values, f"{name} {key}, file", TOLERANCE["fp16"])
        assert_parity(emulated[key], values, f"{name} {key}, emulated", TOLERANCE["fp16"])
        assert np.abs(emulated[key] - values).max() > 0


def test_emulated_values_are_rounded_to_the_type():
    weights = numpy_helper.from_array(np.float32([[1 / 3]]), "w")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "product",
        [value("x", TensorProto.FLOAT, [1, 1])], [value("y", TensorProto.FLOAT, [1, 1])], [weights],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 20)]
    for precision, dtype in NUMPY.items():
        model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
        model = typed_model(model, precision, emulated=True)
        got = run(model, {"x": np.float32([[0.1]])})["y"]
        exact = np.float32(dtype(0.1)) * np.float32(dtype(1 / 3))
        assert got == np.float32(dtype(exact))
        assert got != np.float32(1 / 30)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("order", ["before", "after", "both"])
def test_a_loop_may_use_values_of_the_graph_around_it_in_both_types(order, precision):
    """A product of the outer graph, multiplied and summed in the body, and outside of it too."""
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    real, whole, truth = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
    body = onnx.helper.make_graph(
        [
            make("MatMul", ["product", "w"], ["inside"]),
            make("Sigmoid", ["product"], ["gate"]),
            make("Mul", ["inside", "gate"], ["term"]),
            make("Add", ["total", "term"], ["next"]),
            make("Identity", ["goes_on"], ["still"]),
        ],
        "body",
        [info("i", whole, []), info("goes_on", truth, []), info("total", real, [3, 3])],
        [info("still", truth, []), info("next", real, [3, 3])],
    )
    outside = make("Sigmoid", ["product"], ["outside"])
    again = make("Sigmoid", ["product"], ["again"])
    loop = make("Loop", ["count", "", "x"], ["sum"], body=body)
    nodes = {"before": [outside, loop], "after": [loop, outside], "both": [outside, loop, again]}
    graph = onnx.helper.make_graph(
        [make("MatMul", ["x", "w"], ["product"]), *nodes[order]], "loop",
        [info("x", real, [3, 3])],
        [info("sum", real, [3, 3]), info("outside", real, [3, 3])],
        [numpy_helper.from_array(np.eye(3, dtype=np.float32) / 3, "w"),
         numpy_helper.from_array(np.array(4), "count")],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)}
    exact = run(model, feeds)
    typed = typed_model(onnx.ModelProto.FromString(model.SerializeToString()), precision)
    onnx.checker.check_model(typed, full_check=True)
    emulated = run(typed_model(model, precision, emulated=True), feeds)
    got = run(typed, feeds) if precision == "fp16" else emulated
    for name, values in exact.items():
        assert_parity(got[name], values, f"{name} {precision}", TOLERANCE[precision])
        assert_parity(emulated[name], values, f"{name} emulated", TOLERANCE[precision])


def test_a_variant_that_differs_fails_the_export(config_files, tmp_path, monkeypatch, capsys):
    def broken(source, path, precision, *, emulated=False, shared=None):
        files = write_variant(source, path, precision, emulated=emulated, shared=shared)
        if "head_step" in path.name:
            model = onnx.load(path)  # with its weights, which then lie inside
            (bias,) = (w for w in model.graph.initializer if w.name == "head.input_proj.bias")
            values = numpy_helper.to_array(bias) + np.linspace(-1, 1, bias.dims[0])
            bias.CopyFrom(numpy_helper.from_array(values.astype(np.float32), bias.name))
            onnx.save_model(model, path)
        return files

    monkeypatch.setattr(networks, "write_variant", broken)
    argv = ["--target", DATA / "target.pth", "--target-config", config_files["target"]]
    argv += ["--precision", "fp16", "--calibration-tokens", 0, "--out", tmp_path / "bundle"]
    assert main([str(part) for part in argv]) == 1
    shown = capsys.readouterr().out
    assert "parity failed: target.head_step [fp16]" in shown


def test_a_precision_that_is_not_known_is_one_line(tmp_path, capsys):
    argv = ["--zoo", "fashion-mnist", "--precision", "fp16,fp8", "--out", tmp_path / "bundle"]
    assert failure(main, argv, capsys) == "precision has 'fp8': give some of fp16, bf16, fp32, int8"


def test_the_weights_of_a_variant_lie_beside_it(gpu_bundle, tmp_path):
    source = gpu_bundle / "target_head_step.onnx"
    files = write_variant(source, tmp_path / "step.fp16.onnx", "fp16")
    assert [file.name for file in files] == ["step.fp16.onnx", "step.fp16.onnx.data"]
    OnnxLoader(1).load(files[0])
    own, full = read_onnx(files[0]), read_onnx(source)
    assert all(tensor.offset % 64 == 0 for tensor in own.external)
    # The same numbers as of a model in memory.
    inside = typed_model(onnx.load(source), "fp16")
    beside = {t.name: numpy_helper.to_array(t) for t in onnx.load(files[0]).graph.initializer}
    assert len(own.external) >= len(full.external) > 1
    for tensor in inside.graph.initializer:
        np.testing.assert_array_equal(beside[tensor.name], numpy_helper.to_array(tensor))


@pytest.mark.parametrize("place", ["inside", "beside"])
def test_a_weight_that_float16_cannot_hold_is_named(place, gpu_bundle, tmp_path):
    model = onnx.load(gpu_bundle / "target_head_step.onnx")
    weight = next(w for w in model.graph.initializer if "mlp.0.weight" in w.name)
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] = 1e5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    path = tmp_path / "x.onnx"
    onnx.save_model(model, path, save_as_external_data=place == "beside", location="x.onnx.data")
    with pytest.raises(ExportError, match=r"mlp.0.weight holds 1e\+05, which fp16 has no number"):
        write_variant(path, tmp_path / "y.onnx", "fp16")
    write_variant(path, tmp_path / "y.onnx", "bf16")
