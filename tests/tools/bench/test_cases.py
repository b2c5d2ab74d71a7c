from __future__ import annotations

import pytest

from csd.runtime import GenerateOptions
from csd.tools.bench.cases import Sweep, make_cases


@pytest.mark.parametrize(
    ("num_iter", "expected"), [(256, [64, 32, 16, 8]), (64, [32, 16, 8]), (10, [8]), (8, [])]
)
def test_the_target_is_also_measured_at_fewer_steps(num_iter, expected):
    cases = _cases(("target",), num_iter=num_iter)
    assert [case.options.num_iter for case in cases] == [num_iter, *expected]


def test_which_fewer_steps_are_measured_can_be_chosen():
    assert len(_cases(("target",), fewer_steps=())) == 1
    assert [case.options.num_iter for case in _cases(("target",), fewer_steps=(7,))] == [10, 7]


def _cases(modes, heads=("sequential",), gammas=(4, 8), temperatures=(), num_iter=10, **changes):
    options = GenerateOptions(mode="csd", cfg=2.0, inner_temperature=42.0, head="sequential")
    return make_cases(Sweep(modes, heads, gammas, temperatures, **changes), options, num_iter)


def test_cases_cover_every_mode_gamma_and_temperature_once():
    cases = _cases(("eager", "target", "draft", "csd"), temperatures=(1.0, 42.0))
    asked = [(c.options.mode, c.options.num_iter, c.baseline) for c in cases]
    assert asked[:4] == [
        ("target", 10, "eager"), ("target", 10, None), ("target", 8, None), ("draft", 10, None),
    ]  # fmt: skip
    speculative = [c.options for c in cases if c.options.mode == "csd"]
    assert [(o.gamma, o.inner_temperature) for o in speculative] == [(4, 42), (8, 42), (4, 1)]
    assert all(c.options.cfg == 2.0 for c in cases)
    assert len({case.name for case in cases}) == len(cases)


def test_cases_repeat_for_every_head_but_eager():
    cases = _cases(
        ("eager", "target", "csd"), heads=("sequential", "auto"), gammas=(4,), num_iter=8
    )
    assert [(c.baseline, c.options.mode, c.options.head) for c in cases] == [
        ("eager", "target", "sequential"), (None, "target", "sequential"),
        (None, "csd", "sequential"), (None, "target", "auto"), (None, "csd", "auto"),
    ]  # fmt: skip
    assert len({case.name for case in cases}) == len(cases)


def test_every_case_is_measured_at_every_thread_count_beside_the_others():
    cases = _cases(("eager", "target"), num_iter=8, threads=(1, 4), baseline_threads=(2,))
    assert [(case.name, case.threads) for case in cases] == [
        ("eager, 2 threads", 2), ("target, 1 thread", 1), ("target, 4 threads", 4),
    ]  # fmt: skip
    assert [case.name for case in _cases(("eager",), threads=(4,))] == ["eager"]


def test_a_sweep_of_full_steps_keeps_fewer_ar_steps_as_they_are():
    cases = _cases(("eager", "target", "csd"), gammas=(4,), refreshes=(1, 2, (3, 8), "auto"))
    assert [(c.name, c.options.refresh) for c in cases] == [
        ("eager", 1), ("target", 1), ("target, 8 AR steps", 1), ("csd, gamma 4, T 42", 1),
        ("target, refresh 2", 2), ("csd, refresh 2, gamma 4, T 42", 2),
        ("target, refresh 3:8", (3, 8)), ("csd, refresh 3:8, gamma 4, T 42", (3, 8)),
        ("target, refresh auto", "auto"), ("csd, refresh auto, gamma 4, T 42", "auto"),
    ]  # fmt: skip


def test_guidance_in_a_part_is_measured_beside_the_whole_with_every_refresh():
    how = {"gammas": (4,), "refreshes": (1, 2), "intervals": ((0, 0.5), (0.25, 1))}
    cases = _cases(("eager", "target"), **how)
    assert [(c.name, c.options.cfg_interval, c.options.refresh) for c in cases] == [
        ("eager", None, 1), ("target", None, 1), ("target, 8 AR steps", None, 1),
        ("target, refresh 2", None, 2),
        ("target, guided 0:0.5", (0, 0.5), 1), ("target, refresh 2, guided 0:0.5", (0, 0.5), 2),
        ("target, guided 0.25:1", (0.25, 1), 1), ("target, refresh 2, guided 0.25:1", (0.25, 1), 2),
    ]  # fmt: skip
