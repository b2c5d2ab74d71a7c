from __future__ import annotations

import numpy as np
import onnx
import pytest

from csd.plugins import reference
from csd.plugins.operators import OPERATOR_OF, OPERATORS
from csd.runtime import Bundle, GenerateOptions
from csd.runtime.backends.onnx_library import load_onnxruntime
from csd.runtime.head import HeadSchedule

from ...helpers import assert_parity

DTYPES = {1: "float32", 6: "int32", 9: "bool"}


@pytest.fixture(scope="module")
def graphs(gpu_bundle):
    manifest = Bundle.open(gpu_bundle).manifest
    return {name: (gpu_bundle / manifest.graphs[name].onnx_file, manifest.graphs[name])
            for name in OPERATOR_OF}  # fmt: skip


def run(path, feeds):
    session = load_onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_each_operator_is_one_node_with_its_function(graphs):
    assert set(OPERATOR_OF.values()) == set(OPERATORS)
    for name, (path, spec) in graphs.items():
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        (node,) = model.graph.node
        assert (node.domain, node.op_type) == ("csd", OPERATOR_OF[name])
        assert [function.name for function in model.functions] == [node.op_type]
        for specs, values in (
            (spec.inputs, model.graph.input),
            (spec.outputs, model.graph.output),
        ):
            assert [(t.name, t.dtype, t.shape) for t in specs] == [
                (
                    v.name,
                    DTYPES[v.type.tensor_type.elem_type],
                    tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim),
                )
                for v in values
            ]
        dimensions = {d for t in spec.inputs for d in t.shape if isinstance(d, str)}
        assert dimensions == set(spec.profile)
        assert "C" not in dimensions


def test_acceptance_has_the_inner_temperature_of_the_default_options(graphs):
    path, _ = graphs["ops.accept"]
    rng = np.random.default_rng(0)
    names = ("x", "mean_p", "std_p", "sum_log_std_p", "mean_q", "std_q", "sum_log_std_q")
    feeds = {name: rng.standard_normal((2, 5, 16)).astype(np.float32) for name in names}
    feeds |= {name: np.exp(0.3 * feeds[name]) for name in ("std_p", "std_q")}
    feeds |= {"u": rng.random((2, 5), dtype=np.float32)}
    flat = {name: value.reshape(-1, 16) for name, value in feeds.items() if name != "u"}
    p, q = (
        reference.Density(flat[f"mean_{k}"], flat[f"std_{k}"], flat[f"sum_log_std_{k}"])
        for k in "pq"
    )
    temperature = GenerateOptions().inner_temperature
    accepted, ratio = reference.accept(
        flat["x"], p, q, feeds["u"].reshape(-1), inner_temperature=temperature
    )
    got = run(path, feeds)
    assert_parity(got["log_ratio"].reshape(-1), ratio, "log ratio", 1e-5)
    np.testing.assert_array_equal(got["accepted"].reshape(-1), accepted)


def test_the_transition_is_the_schedules(graphs):
    path, _ = graphs["ops.transition"]
    schedule, rng = HeadSchedule.linear(20), np.random.default_rng(1)
    step = np.array([19, 7, 0], dtype=np.int32)
    names = ("x", "eps", "v", "noise")
    x, eps, v, noise = (rng.standard_normal((3, 16)).astype(np.float32) for _ in names)
    feeds = dict(zip(names, (x, eps, v, noise), strict=True))
    feeds |= {"eps_uncond": eps, "scale": np.ones(3, dtype=np.float32), "step": step}
    feeds |= {"tables": np.concatenate(schedule.columns, axis=1)}
    wanted = schedule.transition(x, eps, v, step)
    got = run(path, feeds)
    assert_parity(got["mean"], wanted.mean, "mean", 1e-5)
    assert_parity(got["log_std"], wanted.log_std, "log std", 1e-5)
    moved = wanted.mean + np.exp(wanted.log_std) * noise * (step > 0)[:, None]
    assert_parity(got["next"], moved, "next state", 1e-5)
