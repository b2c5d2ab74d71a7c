from __future__ import annotations

import json
import math

import pytest

from csd.runtime import GenerateOptions, MARConfig, OptionError
from csd.runtime.options import parse_head_steps, parse_interval, parse_refresh


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "fast"), ("verify", "none"), ("acceptance", "always"), ("cfg_schedule", "cosine"),
        ("mask_schedule", "uniform"), ("cfg_interval", (0.3, 0.1)), ("cfg_interval", (0.1,)),
        ("cfg_interval", (-0.1, 0.3)), ("cfg_interval", (0.5, 1.1)), ("cfg_interval", (0.2, 0.2)),
        ("cfg_interval", (math.nan, 1.0)), ("cfg_interval", 0.3), ("cfg_interval", "0:1"),
        ("gamma", 0), ("gamma", -1), ("num_iter", 0), ("num_iter", -4),
        ("head_steps", 0), ("head_steps", 1001), ("head_steps", (50, 0)), ("head_steps", (1001, 5)),
        ("head_steps", (50, 20, 5)), ("head_steps", ()),
        ("cfg", 0.0), ("cfg", -1.0), ("cfg", math.nan), ("cfg", math.inf),
        ("temperature", 0.0), ("temperature", -1.0), ("temperature", math.nan),
        ("inner_temperature", 0.0), ("inner_temperature", math.inf),
        ("prefill", -0.1), ("prefill", 1.1), ("prefill", math.nan),
        ("refresh", 0), ("refresh", -2), ("refresh", (2, 0)), ("refresh", (0, 2)),
        ("refresh", (2,)), ("refresh", (2, 3, 4)), ("refresh", "often"), ("refresh", "2"),
        ("refresh", 1.5), ("refresh", None), ("refresh", [2, 4]), ("refresh", True),
        ("refresh_tolerance", 0.0), ("refresh_tolerance", -1.0), ("refresh_tolerance", math.nan),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_the_name_of_its_option(name, value):
    with pytest.raises(OptionError, match=rf"^{name.replace('_', '-')} .*: give") as error:
        GenerateOptions(**{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"mode": "target", "num_iter": 1, "head_steps": 1},
        {"head_steps": (1000, 1), "gamma": 10**6},
        {"cfg": 0.5, "temperature": 1e-3, "inner_temperature": 1e9, "prefill": 0.0},
        {"prefill": 1.0, "verify": "prefix", "acceptance": "relaxed", "cfg_schedule": "constant"},
    ],
)
def test_values_in_range_are_taken_and_survive_json(values):
    options = GenerateOptions(**values)
    for name, value in values.items():
        assert getattr(options, name) == value
    read = json.loads(json.dumps(options.to_dict()))
    assert read["mode"] == options.mode


def test_the_defaults_are_those_of_the_documentation():
    options = GenerateOptions()
    assert (options.mode, options.head) == ("target", "auto")
    assert (options.verify, options.acceptance) == ("block", "paper")
    assert (options.gamma, options.inner_temperature, options.prefill) == (8, 42.0, 0.05)
    assert (options.cfg, options.temperature) == (1.0, 1.0)
    assert (options.refresh, options.has_local_steps) == (1, False)
    full = options.resolved(MARConfig(), 100)
    assert (full.num_iter, full.head_steps, full.head) == (64, 100, "auto")
    assert (full.mask_schedule, full.cfg_schedule) == ("cosine", "linear")
    assert full.cfg_interval == (0.0, 1.0)
    assert full.resolved(MARConfig(), 100) == full


def test_what_a_run_does_not_say_is_as_the_model_samples():
    config = MARConfig(
        img_size=64, num_iter=32, mask_strategy="exp", cfg_schedule="constant", cfg_t_min=0.1,
        cfg_t_max=0.3, sampling_algo="dpm-solver", num_sampling_steps=8,
    )  # fmt: skip
    full = GenerateOptions().resolved(config, 8)
    assert (full.num_iter, full.mask_schedule, full.cfg_schedule) == (16, "exp", "constant")
    assert (full.cfg_interval, full.head, full.head_steps) == ((0.1, 0.3), "solver", 8)
    given = GenerateOptions(
        num_iter=4, mask_schedule="cosine", cfg_schedule="linear", cfg_interval=(0, 1),
        head="speculative",
    ).resolved(config, 8)  # fmt: skip
    assert (given.num_iter, given.mask_schedule, given.cfg_schedule) == (4, "cosine", "linear")
    # The chain has other numbers of steps than the solver has evaluations.
    assert (given.cfg_interval, given.head, given.head_steps) == ((0.0, 1.0), "speculative", 100)


@pytest.mark.parametrize("head", ["auto", "solver"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "csd"}, "mode csd accepts by densities, .* give --head speculative"),
        ({"temperature": 0.9}, "temperature is 0.9 and the head's solver draws no noise"),
    ],
)
def test_what_a_solver_cannot_do_is_refused_with_a_head_that_can(head, values, message):
    config = MARConfig(sampling_algo="dpm-solver", num_sampling_steps=8)
    with pytest.raises(OptionError, match=message):
        GenerateOptions(head=head, **values).resolved(config, 8)
    GenerateOptions(head="speculative", **values).resolved(config, 8)


@pytest.mark.parametrize("text", ["", ":", "0.1", "0.1:", "0:1:2", "a:b", "0.1,0.3"])
def test_intervals_that_are_no_pair_are_refused_with_an_example(text):
    with pytest.raises(OptionError, match=r"ascending order, 0 to 1, as in 0.1:0.3"):
        parse_interval(text)


@pytest.mark.parametrize(("text", "expected"), [("7", 7), ("50:5", (50, 5)), ("5:50", (5, 50))])
def test_head_steps_are_read_with_and_without_annealing(text, expected):
    assert parse_head_steps(text) == expected


@pytest.mark.parametrize("text", ["", ":", "5:", ":5", "1:2:3", "five", "1.5", "-3", "²", "5 :6"])
def test_head_steps_that_are_neither_are_refused_with_an_example(text):
    with pytest.raises(OptionError, match="give N, or N:M to anneal, as in 50:5"):
        parse_head_steps(text)


@pytest.mark.parametrize(
    ("text", "refresh", "local"),
    [("1", 1, False), ("1:9", (1, 9), False), ("2", 2, True), ("3:8", (3, 8), True),
     ("auto", "auto", True)],
)  # fmt: skip
def test_a_refresh_is_read_and_says_whether_steps_may_be_local(text, refresh, local):
    options = GenerateOptions(refresh=parse_refresh(text))
    assert options.refresh == refresh
    assert options.has_local_steps == local


@pytest.mark.parametrize("text", ["", "0", "2:0", "x", "2:", ":2", "1:2:3", "-1", "1.5", "9" * 10])
def test_another_refresh_is_one_line(text):
    with pytest.raises(OptionError, match=r"^refresh is .*: give ") as error:
        parse_refresh(text)
    assert "\n" not in str(error.value)
