"""Options that change nothing are refused where they are given, whatever their value."""

from __future__ import annotations

import dataclasses

import pytest

from csd.runtime import GenerateOptions
from csd.runtime.backends import BACKENDS
from csd.runtime.cli import build_parser, main
from csd.runtime.command.line.effects import Effect, refuse_without_effect
from csd.runtime.decoding.samplers import CallCosts, sampler_kind
from csd.runtime.effects import MACHINE, PICTURES, Names, decoding_effects
from csd.runtime.errors import OptionError
from csd.runtime.options import HEADS, MODES

from ..helpers import failure, leftovers

FAST = ("--num-iter", 2, "--head-steps", 2, "--quiet")
DEFAULTS = GenerateOptions()
# Each option with its default's value, what it hangs on, and where it has an effect.
HANGING = [
    *((option, value, "only mode csd drafts and verifies", ["--mode=csd"]) for option, value in (
        ("--gamma", 8), ("--verify", "block"), ("--acceptance", "paper"),
        ("--inner-temperature", 42), ("--prefill", 0.05))),
    ("--head-tolerance", 0.03, "only the parallel sampler has a tolerance", ["--head=parallel"]),
    ("--head-tolerance", 0.03, "only the parallel sampler has a tolerance", ["--mode=csd"]),
    ("--cfg-schedule", "linear", "nothing is guided where cfg is 1", ["--cfg=3"]),
    ("--cfg-interval", "0:1", "nothing is guided where cfg is 1", ["--cfg=3"]),
]  # fmt: skip


@pytest.mark.parametrize(("option", "value", "reason", "under"), HANGING)
def test_an_option_is_refused_where_it_changes_nothing(
    option, value, reason, under, tiny_bundle, tmp_path, capsys
):
    (tmp_path / "out").mkdir()
    argv = [tiny_bundle, "--labels", "1", *FAST, "--out", tmp_path / "out" / "x.png"]
    said = failure(main, [*argv, option, value], capsys)
    assert said.startswith(f"{option} has no effect, as {reason}")
    assert said.endswith(f", or leave out {option}")
    assert leftovers(tmp_path / "out") == []
    # Both remedies.
    assert main([str(part) for part in [*argv, option, value, *under]]) == 0
    assert main([str(part) for part in argv]) == 0


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--refresh-tolerance=0.05"], "--refresh-tolerance has no effect, as only refresh auto"),
        (["--refresh-tolerance=0.05", "--refresh=2"], "give --refresh auto"),
        (["--backend=onnxruntime", "--no-cuda-graph"], "--no-cuda-graph has no effect"),
        (["--backend=onnxruntime", "--memory-limit=9"], "give --backend tensorrt or tensorrt_rtx"),
        (["--out-dir=each", "--columns=2"], "--columns has no effect, as each image"),
        (["--gam=8"], "--gamma has no effect"),  # as argparse has abbreviations
        (["--mode=draft", "--head=speculative", "--head-tolerance=1"], "--head-tolerance has no"),
    ],
)
def test_other_options_are_refused_too(argv, said, tiny_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert said in failure(main, [tiny_bundle, "--labels=1,2", *FAST, *argv], capsys)
    assert leftovers(tmp_path) == []


def test_a_value_out_of_range_is_said_first(tiny_bundle, capsys):
    assert "gamma is 0" in failure(main, [tiny_bundle, "--labels=1", "--gamma=0"], capsys)


def test_latents_alone_have_no_pictures(make_bundle, tmp_path, monkeypatch, capsys):
    bundle = make_bundle(lambda values: values["graphs"].pop("decoder"))
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    argv = [bundle, "--labels=1", *FAST, "--save-latents=x.npy"]
    for option in ("--out=x.png", "--out-dir=each", "--captions", "--columns=1"):
        said = failure(main, [*argv, option], capsys)
        assert said.startswith(f"{option.split('=')[0]} has no effect, as this bundle has no")
    assert leftovers(tmp_path / "out") == []


def test_a_tolerance_counts_exactly_where_the_parallel_sampler_may_be_taken():
    effect = next(e for e in decoding_effects(Names()) if "head_tolerance" in e.options)
    for mode in MODES:
        for head in HEADS:
            if mode == "csd" and head == "solver":
                continue  # refused
            taken = {
                sampler_kind(head, steps, CallCosts(row, 0.0), aligned=aligned)
                for steps in (2, 100) for row in (0.001, 10.0)
                for aligned in ((False, True) if mode == "csd" else (False,))
            }  # fmt: skip
            options = dataclasses.replace(DEFAULTS, mode=mode, head=head)
            assert effect.when(options) == ("parallel" in taken), (mode, head)


def test_the_tables_name_options_that_there_are():
    dests = {action.dest for action in build_parser()._actions}
    for effect in (*decoding_effects(Names()), *MACHINE, *PICTURES):
        assert set(effect.options) <= dests
    assert [name for name in BACKENDS if MACHINE[0].when(name)] == ["tensorrt", "tensorrt_rtx"]


def test_what_was_given_is_known_whatever_its_value():
    parser = build_parser()
    args = parser.parse_args(["b", "--labels", "1", "--gamma", "8", "--cap", "--cfg=1"])
    assert args.given == {
        "labels": "--labels", "gamma": "--gamma", "captions": "--captions", "cfg": "--cfg"
    }  # fmt: skip
    assert parser.parse_args(["b", "--labels", "1"]).gamma == 8  # defaults are as they were


def test_one_situation_with_an_effect_is_enough():
    effect = Effect[int](("x", "y"), lambda number: number > 2, "it is small", "give 3")
    refuse_without_effect({"y": "-y"}, [effect], [1, 3])
    refuse_without_effect({"z": "-z"}, [effect], [1])
    with pytest.raises(OptionError, match="-y has no effect, as it is small: give 3, or leave out"):
        refuse_without_effect({"y": "-y"}, [effect], [1, 2])
