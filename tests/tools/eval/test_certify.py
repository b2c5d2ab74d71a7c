from __future__ import annotations

import json

import numpy as np
import pytest

from csd.runtime import Bundle
from csd.runtime.head import HeadSchedule, SequentialSampler
from csd.tools.eval import exactness
from csd.tools.eval.commands import certify
from csd.tools.eval.exactness import Certificate, Finding

from ...helpers import failure

FEW = ["--contexts=2", "--tokens=100", "--threads=1", "--quiet"]


@pytest.mark.slow
def test_the_shipped_heads_are_exact_and_the_bug_is_found(zoo_bundle, tmp_path, capsys):
    argv = [str(zoo_bundle), *FEW, f"--json={tmp_path / 'c.json'}"]
    assert certify.main(argv) == 0
    assert "EXACT: no difference seen" in capsys.readouterr().out
    values = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    roles = [*Bundle.open(zoo_bundle).manifest.models]
    assert len(values["tests"]) == len(values["planted_bug"]) == 3 * 2 * len(roles)
    assert min(test["adjusted"] for test in values["tests"]) >= 0.01
    for role in roles:
        bug = [test["adjusted"] for test in values["planted_bug"] if test["role"] == role]
        assert min(bug) < 0.01
        assert values["evaluations_per_token"][role] < values["head_steps"] / 2
    assert values["backend"]["name"] == "onnxruntime"
    assert values["machine"]["processor"]


@pytest.mark.slow
def test_a_head_with_a_bug_gets_no_certificate(zoo_bundle, monkeypatch, capsys):
    honest, bugged = exactness._sampled, exactness._bugged

    def sampled(model, conditions, steps, head, rng):
        draw = bugged if (model.role, head) == ("target", "speculative") else honest
        return draw(model, conditions, steps, head, rng)

    monkeypatch.setattr(exactness, "_sampled", sampled)
    assert certify.main([str(zoo_bundle), *FEW]) == 1
    assert "NOT EXACT" in capsys.readouterr().out


def test_too_few_tokens_certify_nothing(tiny_bundle, capsys):
    assert certify.main([str(tiny_bundle), "--contexts=1", "--tokens=20", *FEW[2:]]) == 3
    assert "the planted bug was not found, give more --tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tests", "control", "code"),
    [
        ([0.5, 0.9], [0.001, 0.5], 3),
        ([0.5, 0.9], [0.001, 0.002], 0),
        ([0.5, 0.009], [0.001, 0.002], 1),
        ([0.001, 0.9], [0.5, 0.5], 1),
    ],
)
def test_the_exit_code_needs_both_heads(tests, control, code):
    def of(values):
        return [Finding(role, 0, "tokens", p, p)
                for role, p in zip(("target", "draft"), values, strict=True)]  # fmt: skip

    assert certify.certificate_code(Certificate(of(tests), of(control), {}, 0.01, 20)) == code


def test_the_bug_asks_the_network_at_every_eighth_head_step_only():
    schedule, asked = HeadSchedule.linear(20), []

    def evaluate(x, step, token):
        asked.append(int(step[0]))
        return 0.5 * x, np.zeros_like(x)

    stale = exactness.without_tests(schedule, evaluate, 3, 2)
    SequentialSampler(schedule).sample(stale, n_tokens=3, channels=2, rng=np.random.default_rng(0))
    assert asked == [19, 11, 3]
    x = np.ones((3, 2), np.float32)
    at, token = np.full(3, 19), np.arange(3)
    eps, v = stale(x, at, token)
    np.testing.assert_allclose(eps, 0.5 * x, atol=1e-5)
    np.testing.assert_array_equal(v, 0 * x)
    eps, _ = stale(2 * x, at - 1, token)
    kept = schedule.transition(x, 0.5 * x, v, at).x0hat
    made = schedule.transition(2 * x, eps, v, at - 1).x0hat
    np.testing.assert_allclose(made, kept, rtol=1e-4)


def test_a_models_own_solver_is_no_obstacle(emigm_bundle, capsys):
    code = certify.main([str(emigm_bundle), "--contexts=1", "--tokens=20", *FEW[2:]])
    assert code in (0, 3)
    assert "100 head steps" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--tokens=5", "--contexts=0", "--level=0.6", "--cfg=0"])
def test_what_cannot_be_is_one_line(option, tiny_bundle, capsys):
    assert "error" not in failure(certify.main, [tiny_bundle, option], capsys)
