from __future__ import annotations

import numpy as np
import pytest

from csd.export.onnx.graphs import chain_tables
from csd.runtime import Bundle
from csd.runtime.backends import OnnxLoader
from csd.runtime.head import HeadSchedule, SequentialSampler

from ...helpers import assert_parity

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def graphs(gpu_bundle):
    manifest = Bundle.open(gpu_bundle).manifest
    backend = OnnxLoader(1)
    names = ("head_modulation", "head_step", "head_chain")
    return {n: backend.load(gpu_bundle / manifest.graphs[f"target.{n}"].onnx_file) for n in names}


@pytest.mark.parametrize("guided", [False, True], ids=["unguided", "guided"])
@pytest.mark.parametrize(("steps", "count", "temperature"), [(20, 3, 1.0), (50, 1, 0.8), (1, 2, 1)])
def test_the_chain_is_the_sequential_sampler(graphs, steps, count, temperature, guided):
    schedule = HeadSchedule.linear(steps)
    rng = np.random.default_rng(steps)
    z = 0.5 * rng.standard_normal((count * (1 + guided), 64)).astype(np.float32)
    feeds = {"z": z, "timestep": schedule.timesteps}
    mods = graphs["head_modulation"].run(feeds)["mods"]
    initial = rng.standard_normal((count, 16)).astype(np.float32)
    noise = rng.standard_normal((count, steps, 16)).astype(np.float32)
    scale = np.linspace(1.5, 3, count, dtype=np.float32)

    def evaluate(x, step, token):
        feeds = {"x": x, "step": step, "mods": mods}
        out = graphs["head_step"].run({**feeds, "token": token})
        if not guided:
            return out["eps"], out["v"]
        free = graphs["head_step"].run({**feeds, "token": token + count})["eps"]
        return free + scale[token, None] * (out["eps"] - free), out["v"]

    tokens, report = SequentialSampler(schedule).sample(
        evaluate, n_tokens=count, channels=16, temperature=temperature, noise=(initial, noise)
    )
    got = graphs["head_chain"].run(
        {
            "x": initial,
            "noise": np.float32(temperature) * noise.transpose(1, 0, 2),
            "mods": mods,
            "tables": chain_tables(schedule),
            "scale": scale,
        }
    )
    what = f"S={steps}, N={count}, guided={guided}"
    assert_parity(got["tokens"], tokens, f"tokens, {what}", TOLERANCE)
    assert_parity(got["mean"], report.mean, f"mean, {what}", TOLERANCE)
    assert_parity(np.float32(temperature) * got["std"], report.std, f"std, {what}", TOLERANCE)
    assert_parity(got["sum_log_std"], report.sum_log_std, f"sum of log std, {what}", TOLERANCE)
    assert_parity(got["trajectory"], report.trajectory, f"trajectory, {what}", TOLERANCE)
    assert np.abs(tokens).max() > 0.1


def test_the_noise_of_the_last_head_step_is_not_used(graphs):
    rng = np.random.default_rng(0)
    steps, count = 4, 2
    feeds = {
        "x": rng.standard_normal((count, 16)).astype(np.float32),
        "noise": rng.standard_normal((steps, count, 16)).astype(np.float32),
        "mods": 0.3 * rng.standard_normal((steps, count, 11 * 96)).astype(np.float32),
        "tables": chain_tables(HeadSchedule.linear(steps)),
        "scale": np.ones(count, dtype=np.float32),
    }
    before = graphs["head_chain"].run(feeds)
    feeds["noise"][0] += 1
    after = graphs["head_chain"].run(feeds)
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name])
    feeds["noise"][1] += 1
    assert np.abs(graphs["head_chain"].run(feeds)["tokens"] - before["tokens"]).max() > 0


def test_the_chain_is_one_loop_whatever_the_number_of_steps(gpu_bundle):
    import onnx

    manifest = Bundle.open(gpu_bundle).manifest
    spec = manifest.graphs["target.head_chain"]
    kinds = [node.op_type for node in onnx.load(gpu_bundle / spec.onnx_file).graph.node]
    assert kinds.count("Loop") == 1
    assert "Gemm" not in kinds
    assert spec.profile["S"] == (1, 20, 20)
