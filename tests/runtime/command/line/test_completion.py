"""Completion as a shell asks for it: argcomplete's protocol, on descriptor 8 and in-process."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys

import pytest

from csd.export.arguments import build_parser as export_parser
from csd.runtime.bundle import offers
from csd.runtime.cli import build_parser as generate_parser
from csd.runtime.command.line.completion import listed, next_command
from csd.tools.bench.cli import build_parser as bench_parser

from ....helpers import ROOT

CLASSES = [f"class{k}" for k in range(10)]
# What argcomplete's function for bash runs: answers on descriptor 8, everything else to nowhere.
BASH = '"$@" 8>&1 9>/dev/null 1>/dev/null 2>/dev/null'


def asked_by_bash(line: str, *python: str, module: str = "csd.tools.front.entry") -> list[str]:
    """What comes on descriptor 8 of a command, for a line with the cursor at its end."""
    code = f"from {module} import main; raise SystemExit(main())"
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line,
        "COMP_POINT": str(len(line.encode())), "COMP_TYPE": "9", "_ARGCOMPLETE_COMP_WORDBREAKS":
        " \t\n\"'><=;|&(:", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", f"exec {BASH}", "bash", sys.executable, "-c", "\n".join([*python, code])],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    return [word.strip() for word in done.stdout.split("\n") if word]


def asked(parser, line: str, monkeypatch) -> list[str]:
    """What argcomplete's own finder has for a line."""
    pytest.importorskip("argcomplete")
    from argcomplete.finders import CompletionFinder

    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setenv("_ARGCOMPLETE_IFS", "\n")
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line.encode())))
    answered = io.StringIO()
    # It would take descriptor 9 for what it says of itself: here that is somebody else's.
    monkeypatch.setattr(CompletionFinder, "_init_debug_stream", lambda _: None)
    CompletionFinder()(
        parser, exit_method=lambda *_: None, output_stream=answered, always_complete_options=False
    )
    return [word.strip() for word in answered.getvalue().split("\n") if word]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("csd ", {"export", "generate", "bench", "eval", "inspect", "doctor", "demo"}),
        ("csd ge", {"generate"}),
        ("csd eval ", {"run", "compare", "gate", "history", "tune", "certify", "merge"}),
        ("csd eval run b --name x --mode ", {"target", "draft", "csd"}),
        ("csd generate b --labels 1 --inner", {"--inner-temperature"}),
    ],
)
def test_a_shell_is_answered_through_the_front_door(line, words):
    pytest.importorskip("argcomplete")
    assert set(asked_by_bash(line)) == words


def test_a_command_by_its_own_name_is_answered_too():
    pytest.importorskip("argcomplete")
    line = "csd-generate b --labels 1 --verify "
    assert set(asked_by_bash(line, module="csd.runtime.entry")) == {"block", "prefix"}


def test_without_argcomplete_nothing_is_completed_and_nothing_runs():
    absent = "import sys; sys.modules['argcomplete'] = None"
    assert asked_by_bash("csd ge", absent) == []
    assert asked_by_bash("csd generate b --mo", absent) == []


def test_what_a_bundle_holds_is_completed(make_bundle, monkeypatch):
    bundle = make_bundle(lambda values: values.update(class_names=CLASSES))
    given = shlex.quote(str(bundle))
    found = asked(generate_parser(), f"csd-generate {given} --labels ", monkeypatch)
    assert set(found) == {*CLASSES, "all"}
    found = asked(generate_parser(), f"csd-generate {given} --labels class3,cl", monkeypatch)
    assert set(found) == {f"class3,{name}" for name in CLASSES if name != "class3"}
    found = asked(export_parser(), f"csd-export --rebuild {given} --profile target.b", monkeypatch)
    assert found == ["target.backbone"]


def test_bundles_are_completed_and_folders_on_the_way(tmp_path, tiny_bundle, monkeypatch):
    (tmp_path / "there").symlink_to(tiny_bundle)
    (tmp_path / "other" / "more").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert set(asked(generate_parser(), "csd-generate ", monkeypatch)) == {"there", "other/"}
    assert asked(generate_parser(), "csd-generate other/", monkeypatch) == ["other/more/"]
    assert set(asked(bench_parser(), f"csd-bench {tmp_path}/t", monkeypatch)) == {
        f"{tmp_path}/there"
    }


def test_presets_zoo_lists_and_choices_are_completed(tmp_path, monkeypatch):
    (tmp_path / "manifest.json").write_text('{"presets": {"tuned": {}, "bad\\u001b": {}}}')
    line = f"csd-generate {tmp_path} --labels 1 --preset "
    assert asked(generate_parser(), line, monkeypatch) == ["tuned"]
    assert asked(export_parser(), "csd-export --zoo ", monkeypatch) == ["fashion-mnist"]
    assert "mar_base" in asked(export_parser(), "csd-export --target-config mar", monkeypatch)
    found = asked(bench_parser(), "csd-bench b --modes target,c", monkeypatch)
    assert set(found) == {"target,csd", "target,compile"}
    assert "speculative" in asked(generate_parser(), "csd-generate b --head ", monkeypatch)


@pytest.mark.parametrize("content", ["", "[]", '{"class_names": 3, "presets": [1]}', "\xff"])
def test_a_manifest_that_is_none_offers_nothing(content, tmp_path):
    (tmp_path / "manifest.json").write_text(content)
    args = type("Args", (), {"bundle": tmp_path})()
    assert list(offers.class_names("", args)) == ["all"]
    assert list(offers.presets("", args)) == []
    assert list(offers.graphs("", type("Args", (), {"bundle": tmp_path / "gone"})())) == []


def test_lists_go_on_with_what_they_do_not_have():
    assert listed("a,b", ["a", "b", "c"]) == ["a,b", "a,c"]
    assert listed("", ["a"]) == ["a"]


@pytest.mark.parametrize(
    ("line", "point", "found"),
    [
        ("csd generate b", None, "generate"), ("csd generate", None, None),
        ("csd wat ", None, None),
        ("csd generate b", 5, None), ("csd é generate ", None, None), ("csd ", 99, None),
    ],
)  # fmt: skip
def test_a_command_counts_when_it_stands_whole_before_the_cursor(line, point, found, monkeypatch):
    pytest.importorskip("argcomplete")
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line.encode()) if point is None else point))
    assert next_command(["generate", "bench"]) == found
    assert os.environ["_ARGCOMPLETE"] == ("2" if found else "1")
