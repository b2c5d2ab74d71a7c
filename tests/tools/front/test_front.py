from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import entry_points

import pytest

from csd.runtime.version import VERSION
from csd.tools.front.cli import build_parser, main
from csd.tools.front.commands import GROUPS, SUBCOMMANDS

from ...helpers import run_python

ENTRY = "from csd.tools.front.entry import main; raise SystemExit(main())"


def shown(argv, capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_the_manual_has_every_subcommand_and_commands_that_can_be_run(capsys):
    text = shown(["--help"], capsys)
    for command in SUBCOMMANDS:
        assert re.search(rf"^  {command.name} +{re.escape(command.about)}$", text, re.M)
        assert command.group in GROUPS
    places = [text.index(f"csd {name} ") for name in ("export", "generate", "bench")]
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 100
    # Each line of the usual path is one that its command takes.
    for line in re.findall(r"^  csd ((?:export|generate|bench) .*)$", text, re.M):
        name, *argv = line.split()
        module = next(c.module for c in SUBCOMMANDS if c.name == name)
        assert import_module(module).build_parser().parse_args(argv)


def test_every_subcommand_is_there_by_a_name_of_its_own():
    scripts = {script.name for script in entry_points(group="console_scripts")}
    assert {"csd", *(f"csd-{command.name}" for command in SUBCOMMANDS)} <= scripts


@pytest.mark.parametrize(
    ("argv", "prog"),
    [
        (["generate"], "csd generate"), (["bench"], "csd bench"), (["export"], "csd export"),
        (["eval"], "csd eval"), (["eval", "run"], "csd eval run"),
    ],
)  # fmt: skip
def test_help_and_errors_have_the_name_that_was_typed(argv, prog, capsys):
    text = shown([*argv, "--help"], capsys)
    assert text.startswith(f"usage: {prog} ")
    assert re.search(r"\bcsd-(?!eval\.db)[a-z]", text) is None
    assert f"example: {prog} " in " ".join(text.split())
    assert shown([*argv, "--version"], capsys) == f"{prog} {VERSION}\n"
    with pytest.raises(SystemExit) as stopped:
        main([*argv, "--wat"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{prog}: error: ")
    assert line.endswith(f": see {prog} --help")


def test_names_are_those_of_before_outside_of_the_front_door(capsys):
    shown(["generate", "--help"], capsys)
    assert import_module("csd.runtime.cli").build_parser().prog == "csd-generate"
    assert build_parser().prog == "csd"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["generat"], "did you mean generate?"), (["Bench"], "did you mean bench?"),
        (["eval", "rn"], "did you mean run?"),
        (["xyzzy"], "give export, generate, demo, bench, eval, inspect or doctor"),
        ([], "the following arguments are required: command"),
    ],
)  # fmt: skip
def test_a_command_that_is_not_there_is_one_line_with_the_nearest(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_an_error_of_the_work_has_the_name_that_was_typed(tmp_path, capsys):
    argv = ["generate", tmp_path / "gone", "--labels", "1", "--out", tmp_path / "x.png"]
    assert main([str(part) for part in argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("csd generate: error: ")


def test_a_whole_run_needs_neither_torch_nor_what_tools_need(tiny_bundle, tmp_path):
    code = (
        "import sys; absent = ('torch', 'onnx', 'matplotlib', 'argcomplete', 'scipy'); "
        "sys.modules.update(dict.fromkeys(absent)); "
        "sys.argv[0] = 'csd'; " + ENTRY
    )
    argv = ["generate", tiny_bundle, "--labels", "3", "--num-iter", "2", "--head-steps", "2"]
    done = run_python(code, *argv, "--quiet", "--out", tmp_path / "x.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1 image in")
    assert (tmp_path / "x.png").is_file()


def test_the_manual_imports_nothing_heavy_and_no_command():
    code = (
        "import sys; from csd.tools.front.cli import build_parser; build_parser().format_help(); "
        "heavy = {'numpy', 'torch', 'onnxruntime', 'PIL', 'argcomplete', 'logging'}; "
        "print(*sorted(heavy & set(sys.modules)), "
        "*(n for n in sys.modules if n in ('csd.runtime.cli', 'csd.tools.bench', 'csd.export')))"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
