from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest

from csd.plugins import onnx_functions, reference
from csd.plugins.reference import Density
from csd.runtime.backends.onnx_library import load_onnxruntime

from ..helpers import assert_parity, run_python
from ..vendor.real import missing

onnxruntime = load_onnxruntime()

FORMS = [("CsdAccept", True), ("CsdResample", True), ("CsdVerifyWindow", True),
         ("CsdTransition", True), ("CsdTransition", False)]  # fmt: skip
FLOATS = {"float32": np.float32, "float16": np.float16}
TOLERANCE = 1e-5


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(name, inputs, *, dtype="float32", optional=True, **attributes):
    model = onnx_functions.operator_model(name, dtype, optional=optional, **attributes)
    types = {t.name: t.dtype for t in onnx_functions.OPERATORS[name].inputs}
    numpy_types = {"T": FLOATS[dtype], "float": np.float32, "int32": np.int32}
    feeds = {key: np.asarray(value, numpy_types[types[key]]) for key, value in inputs.items()}
    operator = onnx_functions.OPERATORS[name]
    names = [t.name for t in operator.outputs]
    outputs = session(model).run(names, feeds)
    return dict(zip(names, outputs, strict=True)), feeds


def densities(rng, shape, spread=1.0, distance=0.3):
    """Two densities that overlap, as the arrays of an operator."""
    mean = rng.standard_normal(shape)
    log_std = spread * rng.standard_normal(shape)
    arrays = {
        "mean_p": mean,
        "std_p": np.exp(log_std),
        "sum_log_std_p": 0.1 * rng.standard_normal(shape),
        "mean_q": mean + distance * np.exp(log_std) * rng.standard_normal(shape),
        "std_q": np.exp(log_std + distance * rng.standard_normal(shape)),
        "sum_log_std_q": 0.1 * rng.standard_normal(shape),
    }
    return {key: value.astype(np.float32) for key, value in arrays.items()}


def density_of(arrays, which):
    flat = [arrays[f"{name}_{which}"] for name in ("mean", "std", "sum_log_std")]
    return Density(*(a.reshape(-1, a.shape[-1]) for a in flat))


def expected_accept(feeds, **options):
    x, u = feeds["x"], feeds["u"]
    flat = x.astype(np.float64).reshape(-1, x.shape[-1])
    accepted, ratio = reference.accept(
        flat, density_of(feeds, "p"), density_of(feeds, "q"), u.reshape(-1), **options
    )
    return accepted.reshape(u.shape), ratio.reshape(u.shape)


def accept_inputs(rng, batch, window, channels, **options):
    arrays = densities(rng, (batch, window, channels), **options)
    arrays["x"] = arrays["mean_q"] + arrays["std_q"] * rng.standard_normal(
        arrays["mean_q"].shape
    ).astype(np.float32)
    arrays["u"] = rng.random((batch, window), dtype=np.float32)
    return arrays


@pytest.mark.parametrize(("name", "optional"), FORMS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_models_pass_the_checker_and_have_the_declared_types(name, optional, dtype):
    model = onnx_functions.operator_model(name, dtype, optional=optional)
    onnx.checker.check_model(model, full_check=True)
    outputs = {o.name: o.type for o in session(model).get_outputs()}
    assert list(outputs) == [t.name for t in onnx_functions.OPERATORS[name].outputs]


def test_functions_use_operators_that_tensorrt_builds_and_names_of_their_own():
    for name, optional in FORMS:
        function = onnx_functions.operator_function(name, optional=optional)
        assert (function.domain, function.name) == ("csd", name)
        used = {node.op_type for node in function.node}
        assert not used & {"NonZero", "Compress", "CumProd", "Bernoulli", "Multinomial"}
        assert not any("Random" in op for op in used)
        assert {node.domain for node in function.node} == {""}
        names = [v for node in function.node for v in (*node.input, *node.output)]
        assert all(value.startswith(f"{name}_") for value in names)


@pytest.mark.parametrize("channels", [1, 3, 16, 64])
@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize("kind", ["paper", "relaxed"])
def test_acceptance_is_the_references(channels, window, kind):
    rng = np.random.default_rng([channels, window, kind == "paper"])
    inputs = accept_inputs(rng, 32, window, channels)
    got, feeds = run("CsdAccept", inputs, kind=int(kind == "relaxed"), inner_temperature=2.5)
    accepted, ratio = expected_accept(feeds, kind=kind, inner_temperature=2.5)
    assert_parity(got["log_ratio"], ratio, f"log ratio, {kind}, C={channels}", TOLERANCE)
    np.testing.assert_array_equal(got["accepted"], accepted)
    np.testing.assert_array_equal(got["prefix"], reference.accepted_prefix(accepted))
    assert accepted.any()
    assert not accepted.all()
    assert not got["error"].any()


@pytest.mark.parametrize("exponent", [-6, -3, 0, 3])
def test_acceptance_at_extreme_deviations(exponent):
    rng = np.random.default_rng(exponent + 10)
    inputs = accept_inputs(rng, 16, 4, 16, spread=0.1, distance=0.05)
    scale = np.float32(10.0**exponent)
    for key in ("x", "mean_p", "mean_q", "std_p", "std_q"):
        inputs[key] = inputs[key] * scale
    got, feeds = run("CsdAccept", inputs)
    accepted, ratio = expected_accept(feeds)
    assert_parity(got["log_ratio"], ratio, f"log ratio at std 1e{exponent}", TOLERANCE)
    clear = np.abs(np.log(feeds["u"]) - np.minimum(ratio, 0)) > 1e-4
    np.testing.assert_array_equal(got["accepted"][clear], accepted[clear])


def test_equal_densities_are_all_accepted_and_distant_ones_are_not():
    rng = np.random.default_rng(4)
    inputs = accept_inputs(rng, 8, 6, 16)
    same = {key: inputs[key.replace("_q", "_p")] for key in inputs}
    got, _ = run("CsdAccept", same)
    assert got["accepted"].all()
    assert (got["prefix"] == 6).all()
    assert (got["log_ratio"] == 0).all()
    far = {**inputs, "mean_p": inputs["mean_p"] + 1e3 * inputs["std_p"]}
    got, _ = run("CsdAccept", far)
    assert not got["accepted"].any()
    assert (got["prefix"] == 0).all()


@pytest.mark.parametrize("name", ["x", "mean_p", "std_q", "sum_log_std_q", "u"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_input_that_is_not_finite_flags_its_row_and_only_that(name, value):
    inputs = accept_inputs(np.random.default_rng(5), 3, 4, 8)
    inputs[name][1, 2] = value
    got, _ = run("CsdAccept", inputs)
    np.testing.assert_array_equal(got["error"], [0, 1, 0])
    if np.isnan(value):
        assert not got["accepted"][1, 2]


def resample_inputs(rng, tries, tokens, channels, **options):
    return {
        **densities(rng, (tokens, channels), **options),
        "normals": rng.standard_normal((tries, tokens, channels), dtype=np.float32),
        "uniforms": rng.random((tries, tokens), dtype=np.float32),
    }


@pytest.mark.parametrize("channels", [1, 2, 16, 64])
@pytest.mark.parametrize("tries", [1, 8])
@pytest.mark.parametrize("kind", ["paper", "relaxed"])
def test_resampling_is_the_references(channels, tries, kind):
    inputs = resample_inputs(np.random.default_rng([channels, tries]), tries, 64, channels)
    got, feeds = run("CsdResample", inputs, kind=int(kind == "relaxed"))
    x, done = reference.resample(
        density_of(feeds, "p"), density_of(feeds, "q"), feeds["normals"], feeds["uniforms"],
        kind=kind,
    )  # fmt: skip
    np.testing.assert_array_equal(got["done"], done)
    assert_parity(got["x"], x, f"resampled, {kind}, C={channels}", TOLERANCE)
    assert done.any()
    assert not got["error"].any()


def test_a_small_chance_of_keeping_has_its_digits():
    """p and q are so close that 1 - exp(-l) would round to 0 or one step of float32."""
    tokens, shift = 512, 3e-6
    rng = np.random.default_rng(6)
    normals = np.abs(rng.standard_normal((1, tokens, 1), dtype=np.float32))
    ones, zeros = np.ones((tokens, 1), np.float32), np.zeros((tokens, 1), np.float32)
    p = Density(ones * np.float32(shift), ones, zeros)
    q = Density(zeros, ones, zeros)
    keep = reference.residual_keep(p.mean + normals[0], p, q, kind="paper")
    inputs = {"mean_p": p.mean, "std_p": ones, "sum_log_std_p": zeros, "mean_q": zeros,
              "std_q": ones, "sum_log_std_q": zeros, "normals": normals}  # fmt: skip
    for factor, kept in ((0.7, True), (1.3, False)):
        got, _ = run("CsdResample", {**inputs, "uniforms": (factor * keep)[None]})
        share = float((got["done"] == kept).mean())
        print(f"u = {factor} of a keep probability near {np.median(keep):.1e}: {share:.3f} agree")
        # What is left is the rounding of the log ratio itself.
        assert share > 0.8


def test_a_density_that_is_not_finite_is_flagged_and_never_done():
    inputs = resample_inputs(np.random.default_rng(7), 4, 6, 8)
    inputs["std_q"][2, 3] = np.nan
    inputs["sum_log_std_p"][4, 0] = np.inf
    got, _ = run("CsdResample", inputs)
    np.testing.assert_array_equal(got["error"], [0, 0, 1, 0, 1, 0])
    assert not got["done"][[2, 4]].any()


def window_inputs(rng, tokens, window, channels, tries=8, **options):
    arrays = densities(rng, (tokens, window, channels), **options)
    inputs = {key: arrays[key] for key in ("mean_p", "std_p", "mean_q", "std_q")}
    normals = rng.standard_normal(arrays["mean_q"].shape, dtype=np.float32)
    return {
        **inputs,
        "proposed": inputs["mean_q"] + inputs["std_q"] * normals,
        "uniforms": rng.random((tokens, window), dtype=np.float32),
        "index": rng.integers(-1, 2 * window, tokens),
        "pool_normals": rng.standard_normal((tries, tokens, channels), dtype=np.float32),
        "pool_uniforms": rng.random((tries, tokens), dtype=np.float32),
    }


def expected_window(feeds):
    """The walk by the reference's parts, one token at a time."""
    tokens, window, channels = feeds["proposed"].shape
    accepted, following, status = (np.zeros(tokens, np.int64) for _ in range(3))
    state = np.zeros((tokens, channels))
    names = ("proposed", "mean_p", "std_p", "mean_q", "std_q")
    wide = {name: feeds[name].astype(np.float64) for name in names}
    zero = np.zeros(channels)
    for n in range(tokens):
        i = int(feeds["index"][n])
        for j in range(window):
            if i < 0:
                break
            drawn, mp, sp, mq, sq = (wide[k][n, j] for k in wide)
            ratio = reference.log_normal(drawn, mp, sp) - reference.log_normal(drawn, mq, sq)
            if i == 0:
                ratio = 0.0 if np.isfinite(mp).all() else np.nan
            if not np.isfinite(ratio):
                status[n], state[n] = 2, np.nan
                break
            if i > 0 and not np.log(feeds["uniforms"][n, j]) < ratio:
                p, q = (Density(m[None], s[None], zero[None]) for m, s in ((mp, sp), (mq, sq)))
                pool = feeds["pool_normals"][:, n : n + 1], feeds["pool_uniforms"][:, n : n + 1]
                x, done = reference.resample(p, q, *pool)
                status[n], state[n] = int(not done[0]), x[0] if done[0] else np.nan
                i -= 1
                break
            state[n] = drawn if i > 0 else mp
            accepted[n] += 1
            i -= 1
        following[n] = i
    return accepted, following, state, status


@pytest.mark.parametrize("channels", [1, 16, 64])
@pytest.mark.parametrize("window", [1, 2, 8])
@pytest.mark.parametrize("tries", [1, 8])
def test_the_walk_is_the_references(channels, window, tries):
    rng = np.random.default_rng([channels, window, tries])
    inputs = window_inputs(rng, 96, window, channels, tries, distance=0.15)
    inputs["std_p"][3, 0, 0] = np.nan
    inputs["mean_p"][5, -1, -1] = np.inf
    inputs["index"][3] = window
    got, feeds = run("CsdVerifyWindow", inputs)
    with np.errstate(invalid="ignore"):
        accepted, following, state, status = expected_window(feeds)
    np.testing.assert_array_equal(got["accepted"], accepted)
    np.testing.assert_array_equal(got["next_index"], following)
    np.testing.assert_array_equal(got["status"], status)
    np.testing.assert_array_equal(np.isnan(got["state"]), np.isnan(state))
    assert_parity(np.nan_to_num(got["state"]), np.nan_to_num(state), "state", TOLERANCE)
    assert {0, 2} <= set(status)


def test_equal_windows_are_all_accepted_to_their_end_or_the_chains():
    inputs = window_inputs(np.random.default_rng(8), 5, 4, 8, distance=0.0)
    inputs["index"] = np.array([9, 3, 2, 0, -1])
    got, _ = run("CsdVerifyWindow", inputs)
    np.testing.assert_array_equal(got["accepted"], [4, 4, 3, 1, 0])
    np.testing.assert_array_equal(got["next_index"], [5, -1, -1, -1, -1])
    np.testing.assert_array_equal(got["status"], [0] * 5)
    last = [inputs["proposed"][0, 3], inputs["mean_p"][1, 3], inputs["mean_p"][2, 2],
            inputs["mean_p"][3, 0], np.zeros(8, np.float32)]  # fmt: skip
    np.testing.assert_array_equal(got["state"], last)


def transition_inputs(rng, rows, channels, steps):
    return {
        **{name: rng.standard_normal((rows, channels)) for name in ("x", "eps", "v", "eps_uncond")},
        "scale": rng.random(rows) * 3,
        "noise": rng.standard_normal((rows, channels)),
        "step": rng.integers(0, steps, rows),
        "tables": np.abs(rng.standard_normal((steps, 6))) * [3, 2, 1, 1, -2, 0.5],
    }


@pytest.mark.parametrize("channels", [1, 16, 64])
@pytest.mark.parametrize("guided", [True, False])
def test_the_transition_is_the_references(channels, guided):
    inputs = transition_inputs(np.random.default_rng(channels), 40, channels, 7)
    inputs["step"][:3] = 0
    if not guided:
        del inputs["eps_uncond"], inputs["scale"]
    got, feeds = run("CsdTransition", inputs, optional=guided, temperature=0.9)
    wide = {key: value.astype(np.float64) for key, value in feeds.items()}
    eps = wide["eps"]
    if guided:
        eps = wide["eps_uncond"] + wide["scale"][:, None] * (eps - wide["eps_uncond"])
    recip, recipm1, coef_x0, coef_x, base, slope = wide["tables"][feeds["step"]].T[..., None]
    mean, log_std, x0hat = reference.transition(
        wide["x"], eps, wide["v"], recip=recip, recipm1=recipm1, coef_x0=coef_x0, coef_x=coef_x,
        log_beta=2 * (base + slope), log_posterior=2 * (base - slope),
    )  # fmt: skip
    innovation = np.where(feeds["step"][:, None] > 0, 0.9 * np.exp(log_std) * wide["noise"], 0.0)
    for name, value in (("mean", mean), ("log_std", log_std), ("x0hat", x0hat),
                        ("next", mean + innovation)):  # fmt: skip
        assert_parity(got[name], value, f"{name}, C={channels}", TOLERANCE)
    np.testing.assert_array_equal(got["next"][:3], got["mean"][:3])


def test_a_head_step_outside_the_tables_gives_no_number():
    inputs = transition_inputs(np.random.default_rng(9), 4, 3, 5)
    inputs["step"] = np.array([-1, 0, 4, 5])
    got, _ = run("CsdTransition", inputs)
    for value in got.values():
        np.testing.assert_array_equal(np.isnan(value).all(axis=1), [True, False, False, True])


@pytest.mark.parametrize("name", list(onnx_functions.OPERATORS))
def test_half_precision_is_float32_arithmetic_on_rounded_inputs(name):
    rng = np.random.default_rng(10)
    inputs = {
        "CsdAccept": lambda: accept_inputs(rng, 8, 4, 16),
        "CsdResample": lambda: resample_inputs(rng, 8, 32, 16),
        "CsdVerifyWindow": lambda: window_inputs(rng, 32, 6, 16),
        "CsdTransition": lambda: transition_inputs(rng, 32, 16, 5),
    }[name]()
    half, feeds = run(name, inputs, dtype="float16")
    full, _ = run(name, feeds)
    for output in onnx_functions.OPERATORS[name].outputs:
        if output.dtype == "T":
            np.testing.assert_array_equal(half[output.name], full[output.name].astype(np.float16))
        else:
            np.testing.assert_array_equal(half[output.name], full[output.name])


@pytest.mark.parametrize("name", list(onnx_functions.OPERATORS))
def test_an_empty_batch_gives_empty_outputs(name):
    rng = np.random.default_rng(11)
    inputs = {
        "CsdAccept": lambda: accept_inputs(rng, 0, 4, 16),
        "CsdResample": lambda: resample_inputs(rng, 8, 0, 16),
        "CsdVerifyWindow": lambda: window_inputs(rng, 0, 6, 16),
        "CsdTransition": lambda: transition_inputs(rng, 0, 16, 5),
    }[name]()
    got, _ = run(name, inputs)
    assert {len(value) for value in got.values()} == {0}


def test_add_functions_attaches_what_is_used_once():
    model = onnx_functions.operator_model("CsdAccept")
    node = onnx_functions.operator_node(
        "CsdAccept", [i.name for i in model.graph.input], ["a", "b", "c", "d"], kind=1
    )
    model.graph.node.append(node)
    onnx_functions.add_functions(model)
    onnx_functions.add_functions(model)
    assert [f.name for f in model.functions] == ["CsdAccept"]
    onnx.checker.check_model(model)
    session(model)
    onnx_functions.remove_functions(model)
    assert not model.functions


def test_operators_inside_a_branch_get_their_function():
    inner = onnx_functions.operator_model("CsdResample")
    branch = onnx.helper.make_graph(inner.graph.node, "branch", [], inner.graph.output)
    condition = onnx.helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, [])
    names = [o.name for o in inner.graph.output]
    choice = onnx.helper.make_node("If", ["go"], names, then_branch=branch, else_branch=branch)
    outer = onnx.helper.make_graph(
        [choice], "outer", [condition, *inner.graph.input], inner.graph.output
    )
    opset = onnx.helper.make_opsetid("", onnx_functions.OPSET)
    model = onnx.helper.make_model(outer, opset_imports=[opset])
    onnx_functions.add_functions(model)
    assert [f.name for f in model.functions] == ["CsdResample"]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="CsdAccept has no attribute temperature"):
        onnx_functions.operator_model("CsdAccept", temperature=2.0)
    model = onnx_functions.operator_model("CsdTransition")
    without = onnx_functions.operator_model("CsdTransition", optional=False)
    model.graph.node.extend(without.graph.node)
    with pytest.raises(ValueError, match=r"with and without \['eps_uncond', 'scale'\]"):
        onnx_functions.add_functions(model)
    del model.graph.node[1:]
    model.graph.node[0].input.pop()
    with pytest.raises(ValueError, match="a node of CsdTransition has 7 inputs"):
        onnx_functions.add_functions(model)
    model.graph.node[0].op_type = "CsdOther"
    with pytest.raises(ValueError, match="has no operator CsdOther"):
        onnx_functions.add_functions(model)


def test_without_onnx_the_error_says_what_to_install():
    done = run_python(
        "import sys; sys.modules['onnx'] = None\n"
        "from csd.plugins import onnx_functions\n"
        "try: onnx_functions.operator_model('CsdAccept')\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    assert ": pip install onnx\n" in done.stdout, done.stderr


# Arguments: the model, a plugin library or nothing. Prints the layers of the network, and the size
# of the engine.
BUILD_WITH_RTX = """
import sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
for library in sys.argv[2:]:
    assert builder.get_plugin_registry().load_library(library)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
if not parser.parse_from_file(sys.argv[1]):
    sys.exit(str([str(parser.get_error(i)) for i in range(parser.num_errors)]))
config, profile = builder.create_builder_config(), builder.create_optimization_profile()
for i in range(network.num_inputs):
    tensor = network.get_input(i)
    low = [size if size > 0 else 1 for size in tensor.shape]
    high = [size if size > 0 else 16 for size in tensor.shape]
    profile.set_shape(tensor.name, low, high, high)
config.add_optimization_profile(profile)
plan = builder.build_serialized_network(network, config)
assert plan is not None
types = {network.get_layer(i).type for i in range(network.num_layers)}
print("plugin" if types == {trt.LayerType.PLUGIN_V3} else "function", plan.nbytes)
"""


def rtx_python() -> str:
    """Return an interpreter that has TensorRT-RTX: this one, or that of CSD_RTX_PYTHON."""
    found = importlib.util.find_spec("tensorrt_rtx")
    python = sys.executable if found else os.environ.get("CSD_RTX_PYTHON")
    if not python:
        missing(
            "tensorrt_rtx", "pip install tensorrt-rtx, or name a Python with it: CSD_RTX_PYTHON"
        )
    return python


def build_with_rtx(model, folder, *libraries, **environment):
    path = folder / "operator.onnx"
    path.write_bytes(model.SerializeToString())
    done = subprocess.run(
        [rtx_python(), "-c", BUILD_WITH_RTX, str(path), *map(str, libraries)],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    print(model.graph.name, done.stdout.strip())
    return done.stdout.split()[0]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("name", "optional"), FORMS)
def test_tensorrt_rtx_builds_the_functions(name, optional, dtype, tmp_path):
    model = onnx_functions.operator_model(name, dtype, optional=optional)
    assert build_with_rtx(model, tmp_path) == "function"
