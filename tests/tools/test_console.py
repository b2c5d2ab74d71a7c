from __future__ import annotations

from pathlib import Path

import pytest
from rich.table import Table

from csd.tools.console import progress_report, results_console


def wide_table():
    table = Table(title="a title")
    for column in range(30):
        table.add_column(f"column {column}", no_wrap=True)
    table.add_row(*("x" * 10 for _ in range(30)))
    return table


def test_a_table_in_a_pipe_is_whole(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    results_console().print(wide_table())
    text = capsys.readouterr().out
    assert "…" not in text
    assert all(f"column {column}" in text for column in range(30))
    assert max(map(len, text.splitlines())) < 500


def test_who_sets_a_width_gets_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    results_console().print(wide_table())
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


def test_a_window_is_a_bound(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert results_console().width < 1000


def test_without_stdout_nothing_is_said(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", None)
    results_console().print(wide_table())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("output", "stream"), [(None, "out"), (Path("-"), "err")])
def test_what_is_said_does_not_mix_with_an_output_on_stdout(capsys, output, stream):
    results_console(output, None).print("said")
    assert getattr(capsys.readouterr(), stream) == "said\n"


def test_progress_is_on_stderr_in_one_line_as_it_is(capsys):
    line = "[1] " + "long " * 60
    progress_report()(line)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"{line}\n")
