"""Every numeric option of every tool at its ends: what cannot be done is refused before work."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from csd.runtime.session import Session
from csd.tools import demo, option_values, random_model
from csd.tools.bench import cli as bench
from csd.tools.gpu_check import __main__ as gpu_check
from csd.tools.load import Load
from csd.tools.measure import (
    backbone_times,
    frame,
    head_curve,
    head_fidelity,
    option_sets,
    profile,
    stream,
    zoo_eval,
)
from csd.tools.measure.local_steps import __main__ as local_steps
from csd.tools.measure.models import __main__ as models
from csd.tools.option_values import real_number_reader, whole_number_reader

from ..helpers import failure, leftovers, run_python

ENDS = ("0", "-1", "1000000000", "nan", "inf")
HUGE = ("1000000000",)
# What another module reads, tests and bounds: it may take this end or refuse it, in one line.
EITHER = ("0", "1000000000")


class Worked(BaseException):
    """Something was begun that takes time."""


@dataclass(frozen=True)
class Tool:
    """A command and which of `ENDS` its options take; it refuses the others.

    Attributes:
        module: with `build_parser` and `main`.
        argv: that comes before the option.
        options: numbers, and lists of them, by option: the ends that are taken.
        shared: options that another module's tests hold to its bounds.
    """

    module: ModuleType
    argv: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    shared: tuple[str, ...] = ()


SEED_ENDS = ("0", *HUGE)
MEASURED = {"--threads": (), "--cfg": (), "--seed": SEED_ENDS}
TOOLS = {
    "backbone_times": Tool(backbone_times, ("{zoo}",), {**MEASURED, "--rounds": ()}),
    "csd-bench": Tool(
        bench, ("{zoo}", "--modes", "target,csd", "--num-iter", "2", "--head-steps", "2"),
        {
            "--batch": (), "--repeats": (), "--warm-ups": ("0",), "--seed": SEED_ENDS,
            "--quality-images": ("0",), "--threads": (), "--gammas": (), "--temperatures": (),
            "--fewer-steps": ("0",), "--refresh": (),
        },
        ("--inner-temperature", "--prefill", "--num-iter", "--head-steps", "--head-tolerance",
         "--cfg", "--temperature", "--memory-limit", "--refresh-tolerance"),
    ),
    "demo": Tool(demo, ("--out", "{out}"), {"--repeats": (), "--threads": ()}),
    "random_model": Tool(
        random_model, ("--config", "mar_base", "--out", "{out}"),
        {"--roughness": ("0",), "--seed": SEED_ENDS},
    ),
    "gpu_check": Tool(
        gpu_check, ("{zoo}", "--out", "{out}"), {"--repeats": (), "--cfg": ()},
    ),
    "head_curve": Tool(head_curve, ("{zoo}",), {**MEASURED, "--tokens": (), "--batch": ()}),
    "head_fidelity": Tool(
        head_fidelity, ("{zoo}",),
        {**MEASURED, "--images": (), "--gamma": (), "--tolerances": ("0",)},
    ),
    "local_steps": Tool(
        local_steps, ("{zoo}", "--refresh", "1", "--num-iters", "2"),
        {
            "--threads": (), "--seed": SEED_ENDS, "--images": (), "--batch": (), "--num-iters": (),
            "--scales": (), "--refresh": (), "--refresh-tolerances": (), "--fewer": (),
            "--head-steps": (), "--reference": (), "--bootstraps": (),
        },
    ),
    "models": Tool(models, ("--work", "{work}"), {"--threads": ()}),
    "option_sets": Tool(option_sets, ("{zoo}",), {"--threads": (), "--seed": SEED_ENDS}),
    "profile": Tool(profile, ("{zoo}",), {**MEASURED, "--images": ()}),
    "stream": Tool(stream, ("{zoo}",), {**MEASURED, "--images": ()}),
    "zoo_eval": Tool(
        zoo_eval, ("{zoo}",),
        {"--threads": (), "--seed": SEED_ENDS, "--images": (), "--scales": ()},
    ),
}  # fmt: skip

CASES = [
    (name, option, end)
    for name, tool in TOOLS.items()
    for option in (*tool.options, *tool.shared)
    for end in ENDS
]


@pytest.fixture
def at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that takes time raises."""

    def work(*_: object, **__: object) -> None:
        raise Worked

    monkeypatch.setattr(Session, "generate", work)
    for module in (bench, demo, frame):
        monkeypatch.setattr(module, "idle_load", lambda: Load(None, None))
    monkeypatch.setattr(demo, "export", work)
    monkeypatch.setattr(random_model, "random_model", work)
    monkeypatch.setattr(gpu_check, "_guarded", work)
    monkeypatch.setattr(models, "count_parameters", work)
    # The data set is not part of the repository.
    monkeypatch.setattr(zoo_eval, "_real_images", lambda _: None)
    monkeypatch.setattr(zoo_eval, "_figures", work)
    monkeypatch.setattr(local_steps, "real_images", lambda *_: None)
    monkeypatch.setattr(local_steps, "_figures", work)
    monkeypatch.setattr(backbone_times, "_figures", work)


def whole_argv(tool: Tool, bundle: Path, tmp_path: Path, *more: str) -> list[str]:
    places = {"{zoo}": str(bundle), "{out}": str(tmp_path / "out"), "{work}": str(tmp_path)}
    return [places.get(part, part) for part in (*tool.argv, *more)]


@pytest.mark.parametrize(("name", "option", "end"), CASES)
def test_an_end_is_taken_or_refused_before_work_in_one_line(
    name, option, end, zoo_bundle, tmp_path, monkeypatch, capsys, at_work
):
    tool = TOOLS[name]
    monkeypatch.chdir(tmp_path)
    argv = whole_argv(tool, zoo_bundle, tmp_path, f"{option}={end}")
    taken = tool.options.get(option, EITHER)
    try:
        message = failure(tool.module.main, argv, capsys)
    except Worked:
        assert end in taken
        return
    assert end not in taken or option in tool.shared, message
    assert leftovers(tmp_path) == []
    assert option.strip("-").rstrip("s") in message


@pytest.mark.parametrize("name", TOOLS)
def test_the_table_names_every_number(name):
    tool, readers = TOOLS[name], {int, float}
    for action in tool.module.build_parser()._actions:
        made_here = getattr(action.type, "__module__", "") == option_values.__name__
        if action.type in readers or made_here:
            assert {*tool.options, *tool.shared} & set(action.option_strings), action


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_takes_its_usual_arguments(name, zoo_bundle, tmp_path, at_work):
    """So that the refusals above are of the option's value and of nothing else."""
    tool = TOOLS[name]
    with pytest.raises(Worked):
        tool.module.main(whole_argv(tool, zoo_bundle, tmp_path))


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_tells_its_version_and_every_default(name, capsys):
    module = TOOLS[name].module
    with pytest.raises(SystemExit) as stopped:
        module.main(["--version"])
    assert stopped.value.code == 0
    assert module.build_parser().prog in capsys.readouterr().out
    parser = module.build_parser()
    for action in parser._actions:
        if action.option_strings and not action.required and action.dest not in ("help", "version"):
            shown = parser._get_formatter()._expand_help(action)
            assert "(default" in shown, action.option_strings


@pytest.mark.parametrize(
    ("name", "argv", "message"),
    [
        ("gpu_check", ["--precision", "fp8"], "precision has 'fp8': give some of"),
        ("gpu_check", ["--parts", "kernels,warp"], "parts has 'warp': give some of machine"),
        ("gpu_check", ["--parts", ""], "parts is empty: give at least one"),
        ("gpu_check", ["--out", "{zoo}/out"], "belongs to the bundle"),
        ("head_fidelity", ["--gamma", "33"], "gamma is 33: this bundle takes 1 to 32"),
        ("head_fidelity", ["--tolerances", "x"], "tolerances is 'x': 'x' is not a number from 0"),
        ("zoo_eval", ["--scales", "1,x"], "scales is '1,x': 'x' is not a number above 0"),
        ("zoo_eval", ["--head", "none"], "invalid choice: 'none'"),
        ("zoo_eval", ["--json", "a", "--samples", "a"], "are one file: give two"),
        ("profile", ["--json", "{zoo}/manifest.json"], "belongs to the bundle"),
        ("head_curve", ["--json", "gone/x.json"], "check the path"),
        ("local_steps", ["--refresh", "2"], "csd-export --local-steps, or give --refresh 1"),
        ("local_steps", ["--images", "1"], "images or reference is 1"),
        ("local_steps", ["--plot", "x.txt"], "give a file that ends in .png"),
        ("models", ["--json", "gone/x.json"], "check the path"),
    ],
)
def test_other_bad_values_are_refused_too(
    name, argv, message, zoo_bundle, tmp_path, monkeypatch, capsys, at_work
):
    monkeypatch.chdir(tmp_path)
    before = leftovers(zoo_bundle)
    argv = [part.replace("{zoo}", str(zoo_bundle)) for part in argv]
    argv = whole_argv(TOOLS[name], zoo_bundle, tmp_path, *argv)
    assert message in failure(TOOLS[name].module.main, argv, capsys)
    assert (leftovers(tmp_path), leftovers(zoo_bundle)) == ([], before)


NEEDING_TORCH = [
    name for name in TOOLS if name in ("demo", "local_steps", "random_model", "zoo_eval")
]


@pytest.mark.parametrize("name", NEEDING_TORCH)
def test_a_tool_that_needs_pytorch_says_so_in_one_line(name, zoo_bundle, tmp_path):
    tool = TOOLS[name]
    code = (
        f"import sys; sys.modules['torch'] = None; from {tool.module.__name__} import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    done = run_python(code, *whole_argv(tool, zoo_bundle, tmp_path))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "needs torch, which is not installed: pip install torch" in line
    assert leftovers(tmp_path) == []


def test_class_accuracy_needs_no_pytorch(zoo_bundle, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; from csd.tools.bench.cli import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    argv = ["--modes", "target", "--num-iter", 2, "--head-steps", 2, "--repeats", 1]
    argv += ["--threads", 1, "--quality-images", 2]
    done = run_python(code, zoo_bundle, *argv)
    assert done.returncode == 0, done.stderr
    assert "of 2" in done.stdout


def test_readers_say_what_they_take():
    whole, real = whole_number_reader(1, 5), real_number_reader(0, 2, above=True)
    assert [whole(text) for text in ("1", " 5", "3")] == [1, 5, 3]
    assert real("2") == 2
    refused: list[tuple[Callable[[str], object], str]] = [
        (whole, "0"), (whole, "6"), (whole, "1.0"), (whole, ""), (real, "0"), (real, "2.01"),
        (real, "nan"), (real, "-inf"), (real, "x"), (real_number_reader(0, 1), "-0.1"),
    ]  # fmt: skip
    for reader, text in refused:
        with pytest.raises(argparse.ArgumentTypeError, match="is not a"):
            reader(text)
    assert real_number_reader(0, 1)("0") == 0
