"""Values of wrong type, everywhere the Python interface takes one."""

from __future__ import annotations

import dataclasses
import fractions

import numpy as np
import pytest

from csd.runtime import FixedNoise, GenerateOptions, OptionError, SeededNoise
from csd.runtime.backends import BackendOptions
from csd.runtime.head import HeadSchedule, ParallelSampler, SequentialSampler, SpeculativeSampler
from csd.runtime.schedule import (
    ARSchedule,
    annealed_head_steps,
    diffusion_tables,
    masked_counts,
    respaced_timesteps,
)

from ..helpers import tiny_config

WHOLE = ("gamma", "num_iter", "head_steps")
REAL = ("cfg", "temperature", "inner_temperature", "prefill", "head_tolerance")
WORDS = ("mode", "cfg_schedule", "mask_schedule", "verify", "acceptance", "head")


def refused(make, name: str, kind: str | None = None) -> None:
    with pytest.raises(OptionError) as error:
        make()
    said = str(error.value)
    assert said.startswith(f"{name} is "), said
    assert ": give " in said
    assert "\n" not in said
    assert len(said) < 200
    if kind is not None:
        assert f"({kind})" in said, said


@pytest.mark.parametrize("value", ["8", 2.5, 8.0, True, np.True_, np.float64(3), [8], {}, b"8", 1j])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_are_no_strings_floats_or_truth_values(name, value):
    kind = type(value).__name__
    refused(lambda: GenerateOptions(**{name: value}), name.replace("_", "-"), kind)


@pytest.mark.parametrize("value", ["1.0", True, np.False_, [1.0], None, {}, 1j, np.ones(2)])
@pytest.mark.parametrize("name", REAL)
def test_numbers_are_no_strings_or_truth_values(name, value):
    kind = type(value).__name__
    refused(lambda: GenerateOptions(**{name: value}), name.replace("_", "-"), kind)


@pytest.mark.parametrize("value", [None, 3, ["csd"], ("csd",), b"csd", {"csd"}, "x" * 9999, "a\nb"])
@pytest.mark.parametrize("name", WORDS)
def test_words_are_those_of_the_list(name, value):
    if value is None and name.endswith("_schedule"):
        assert GenerateOptions(**{name: value}) == GenerateOptions()  # the model's own
        return
    refused(lambda: GenerateOptions(**{name: value}), name.replace("_", "-"))


def test_a_list_of_head_steps_is_told_of_the_tuple():
    refused(lambda: GenerateOptions(head_steps=[50, 5]), "head-steps", "list")
    with pytest.raises(OptionError, match=r"as in \(50, 5\)"):
        GenerateOptions(head_steps=[50, 5])
    refused(lambda: GenerateOptions(head_steps=(50, 5.0)), "head-steps", "float")


def test_numpys_numbers_are_taken_and_become_pythons():
    given = GenerateOptions(
        mode=np.str_("csd"), num_iter=np.int32(4), head_steps=(np.int64(20), np.uint8(5)),
        cfg=np.float32(2.5), gamma=np.uint64(3), temperature=np.int8(1), prefill=np.float64(0.25),
        inner_temperature=fractions.Fraction(3, 2), head_tolerance=0,
    )  # fmt: skip
    plain = GenerateOptions(
        mode="csd", num_iter=4, head_steps=(20, 5), cfg=2.5, gamma=3, temperature=1.0,
        prefill=0.25, inner_temperature=1.5, head_tolerance=0.0,
    )  # fmt: skip
    assert given == plain
    for field in dataclasses.fields(plain):
        assert type(getattr(given, field.name)) is type(getattr(plain, field.name)), field.name
    assert [type(steps) for steps in given.head_steps] == [int, int]


def test_a_number_that_no_float_holds_is_refused():
    refused(lambda: GenerateOptions(cfg=10**400), "cfg")


@pytest.mark.parametrize("value", [1.5, "1", True, None, [1], np.float32(1)])
def test_seeds_are_whole_numbers(value):
    refused(lambda: SeededNoise(value), "seed", type(value).__name__)
    orders = np.array([[0]])
    refused(lambda: FixedNoise(orders, np.zeros((1, 1, 2)), np.zeros((1, 1, 3, 2)), value), "seed")
    assert type(SeededNoise(np.uint64(2**64 - 1)).seed) is int


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("orders", {"orders": np.array([[0.0, 1.0]])}),
        ("orders", {"orders": "01"}),
        ("initial", {"initial": [["a", "b"]]}),
        ("per-step", {"per_step": [[1], [1, 2]]}),
    ],
)
def test_fixed_noise_is_arrays_of_numbers(name, change):
    values = {
        "orders": np.array([[0, 1]]), "initial": np.zeros((1, 2, 1)),
        "per_step": np.zeros((1, 2, 3, 1)),
    }  # fmt: skip
    FixedNoise(**values)
    refused(lambda: FixedNoise(**{**values, **change}), name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backend", 3), ("backend", None), ("threads", "2"), ("threads", 2.0), ("threads", True),
        ("precision", 16), ("precision", "fp8"), ("memory_limit", "900"), ("memory_limit", 1e3),
        ("cuda_graph", 1), ("cuda_graph", "yes"), ("cuda_graph", None),
    ],
)  # fmt: skip
def test_options_of_the_backend(name, value):
    refused(lambda: BackendOptions(**{name: value}), name.replace("_", "-"))


def test_options_of_the_backend_become_pythons():
    made = BackendOptions(
        threads=np.int64(1), memory_limit=np.uint16(900), cuda_graph=np.False_, precision="fp32"
    )
    assert made == BackendOptions(threads=1, memory_limit=900, cuda_graph=False, precision="fp32")
    assert (type(made.threads), type(made.memory_limit), type(made.cuda_graph)) == (int, int, bool)


@pytest.mark.parametrize("steps", ["100", 100.0, True, None, [100], 0, 1001])
def test_head_schedules(steps):
    HeadSchedule.cosine(100)  # cached: 100.0 is the same key
    for make in (HeadSchedule.cosine, HeadSchedule.linear, respaced_timesteps):
        refused(lambda make=make: make(steps), "head steps")
    refused(lambda: diffusion_tables("cosine", steps), "head steps")
    assert HeadSchedule.linear(np.int32(7)).steps == 7


def test_schedules_of_ar_steps():
    for bad in ("4", 4.0, True, None):
        refused(lambda bad=bad: masked_counts(16, bad), "num-iter", type(bad).__name__)
        refused(lambda bad=bad: ARSchedule(bad, 4), "seq-len", type(bad).__name__)
        refused(lambda bad=bad: annealed_head_steps(9, bad, 4), "head-steps")
        refused(lambda bad=bad: annealed_head_steps(9, 3, bad), "num-iter")
    refused(lambda: ARSchedule(16, 4).guidance("3", "linear"), "cfg", "str")
    refused(lambda: ARSchedule(16, 4).guidance(3, ["linear"]), "cfg-schedule", "list")


def evaluate(x, step, token):
    return np.zeros_like(x), np.zeros_like(x)


SCHEDULE = HeadSchedule.cosine(5)
SAMPLERS = [SequentialSampler(SCHEDULE), ParallelSampler(SCHEDULE), SpeculativeSampler(SCHEDULE)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_tokens", 2.0), ("n_tokens", "2"), ("n_tokens", True), ("n_tokens", -1),
        ("channels", 3.0), ("channels", None), ("channels", 0),
        ("temperature", "1"), ("temperature", True), ("temperature", 0), ("temperature", np.nan),
        ("rng", 3), ("rng", np.random.RandomState(0)), ("noise", 3), ("noise", (1, 2, 3)),
    ],
)  # fmt: skip
def test_arguments_of_samplers(sampler, name, value):
    values = {"n_tokens": 2, "channels": 3, "rng": np.random.default_rng(0), "temperature": 1.0}
    refused(lambda: sampler.sample(evaluate, **{**values, name: value}), name)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_samplers_take_numpys_numbers(sampler):
    numpys = {"n_tokens": np.int16(2), "channels": np.uint8(3), "temperature": np.float32(0.5)}
    pythons = {"n_tokens": 2, "channels": 3, "temperature": 0.5}
    made = [
        sampler.sample(evaluate, rng=np.random.default_rng(0), **values)[0]
        for values in (numpys, pythons)
    ]
    np.testing.assert_array_equal(*made)


@pytest.mark.parametrize("value", ["0.1", True, None, -0.1, np.nan, [0.1]])
def test_tolerances(value):
    refused(lambda: ParallelSampler(SCHEDULE, value), "tolerance")


@pytest.mark.parametrize("value", ["4", 4.0, True, 0, [4, 4], [4.0] * 5, ["4"] * 5])
def test_windows(value):
    refused(lambda: SpeculativeSampler(SCHEDULE, value), "window")
    if np.ndim(value) == 0:
        refused(lambda: ParallelSampler(SCHEDULE, window=value), "window")
    assert SpeculativeSampler(SCHEDULE, np.int32(4)).largest_window == 4
    assert SpeculativeSampler(SCHEDULE, [1, 2, 3, 4, 5]).largest_window == 5


# Python prints no number of so many digits.
HUGE = 10**5000


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("seed", lambda: SeededNoise(HUGE)),
        ("seed", lambda: SeededNoise(-HUGE)),
        ("gamma", lambda: GenerateOptions(gamma=-HUGE)),
        ("gamma", lambda: GenerateOptions(gamma=[HUGE])),
        ("mode", lambda: GenerateOptions(mode=HUGE)),
        ("head-steps", lambda: GenerateOptions(head_steps=HUGE)),
        ("head-steps", lambda: GenerateOptions(head_steps=(HUGE, 1, 1))),
        ("num-iter", lambda: GenerateOptions(num_iter=HUGE).resolved(tiny_config("target"), 8)),
        ("num-iter", lambda: ARSchedule(16, HUGE)),
        ("threads", lambda: BackendOptions(threads=HUGE)),
        ("memory-limit", lambda: BackendOptions(memory_limit=-HUGE)),
        ("cfg", lambda: GenerateOptions(cfg=np.ones((9, 9)))),
    ],
)
def test_what_python_does_not_print_is_refused_in_one_line_all_the_same(name, make):
    refused(make, name)


def test_a_huge_label_or_gamma_is_refused(tiny_session):
    with pytest.raises(OptionError, match="is out of range: give 0 to"):
        tiny_session.generate([HUGE])
    with pytest.raises(OptionError, match=r"this bundle takes 1 to [0-9]+$"):
        tiny_session.generate([0], GenerateOptions(mode="csd", gamma=HUGE))
