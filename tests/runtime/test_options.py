from __future__ import annotations

import json
import math

import pytest

from csd.runtime import GenerateOptions, OptionError
from csd.runtime.options import parse_head_steps


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "fast"), ("verify", "none"), ("acceptance", "always"), ("cfg_schedule", "cosine"),
        ("gamma", 0), ("gamma", -1), ("num_iter", 0), ("num_iter", -4),
        ("head_steps", 0), ("head_steps", 1001), ("head_steps", (50, 0)), ("head_steps", (1001, 5)),
        ("head_steps", (50, 20, 5)), ("head_steps", ()),
        ("cfg", 0.0), ("cfg", -1.0), ("cfg", math.nan), ("cfg", math.inf),
        ("temperature", 0.0), ("temperature", -1.0), ("temperature", math.nan),
        ("inner_temperature", 0.0), ("inner_temperature", math.inf),
        ("prefill", -0.1), ("prefill", 1.1), ("prefill", math.nan),
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
    assert (options.cfg, options.cfg_schedule, options.temperature) == (1.0, "linear", 1.0)
    assert not options.guided


@pytest.mark.parametrize(("text", "expected"), [("7", 7), ("50:5", (50, 5)), ("5:50", (5, 50))])
def test_head_steps_are_read_with_and_without_annealing(text, expected):
    assert parse_head_steps(text) == expected


@pytest.mark.parametrize("text", ["", ":", "5:", ":5", "1:2:3", "five", "1.5", "-3", "²", "5 :6"])
def test_head_steps_that_are_neither_are_refused_with_an_example(text):
    with pytest.raises(OptionError, match="give N, or N:M to anneal, as in 50:5"):
        parse_head_steps(text)
