from __future__ import annotations

import pytest

from csd.tools.cli_reference import main, parsers, reference

from .. import nasty
from ..helpers import ROOT

PAGE = ROOT / "docs" / "cli.md"


def test_the_page_is_what_the_parsers_say():
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "docs/cli.md is out of date: python -m csd.tools.cli_reference --out docs/cli.md"
    )


def test_the_page_has_every_command_and_option_with_its_choices():
    sections = reference().split("\n## ")[1:]
    every = list(parsers())
    assert [section.split("\n")[0] for section in sections] == [parser.prog for parser in every]
    for section, parser in zip(sections, every, strict=True):
        for option in nasty.options(parser):
            assert f"`{option}" in section, (parser.prog, option)
        for action in parser._actions:
            for choice in action.choices or ():
                assert str(choice) in section
        for line in section.split("\n"):
            if line.startswith("| `"):
                assert line.replace("\\|", "").count("|") == 4


def test_the_page_is_written_where_it_is_asked_for(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "x.md")]) == 0
    assert (tmp_path / "x.md").read_text(encoding="utf-8") == reference()
    assert str(tmp_path / "x.md") in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--out="])
def test_no_path_is_one_line(option, capsys):
    assert nasty.check(main, [option], capsys) == 2
