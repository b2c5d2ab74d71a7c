from __future__ import annotations

import json

import pytest

from csd.tools.measure import frame
from csd.tools.measure.frame import Figures, figures_table, measuring_parser, run_script

from ...helpers import failure, leftovers


def script(argv, measure, check=lambda *_: None):
    parser = measuring_parser("mine", "Measures nothing.", "--json x.json")
    return run_script(parser, [str(part) for part in argv], check=check, measure=measure)


def measured(session, args):
    table = figures_table("mine", ("what", "figure"), [("a", "1")])
    return Figures([table], {"results": [session.bundle.manifest.name]})


def test_every_script_says_what_it_ran_on_and_how_busy_the_machine_was(
    tiny_bundle, tmp_path, capsys
):
    path = tmp_path / "x.json"
    assert script([tiny_bundle, "--cfg", 2, "--threads", 1, "--json", path], measured) == 0
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["bundle"]["name"] == report["results"][0]
    assert report["options"] == {
        "cfg": 2.0, "seed": 0, "threads": 1, "verify_files": "once",
    }  # fmt: skip
    assert report["threads"] == 1
    assert isinstance(report["host_library"], bool)
    assert report["backend"]["name"] == "onnxruntime"
    assert report["machine"]["cores"] >= 1
    assert {"cores", "before", "during", "warning"} == set(report["load"])
    shown = capsys.readouterr().out
    assert "figure" in shown
    assert "other processes:" in shown


def test_figures_on_stdout_are_all_that_is_there(tiny_bundle, capsys):
    assert script([tiny_bundle, "--json", "-"], measured) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["results"]
    assert "other processes:" in captured.err


def test_a_busy_machine_is_said_before_the_measurement(tiny_bundle, monkeypatch, capsys):
    monkeypatch.setattr(frame, "busy_warning", lambda *_: "much is going on")

    def measure(session, args):
        assert capsys.readouterr().err == "warning: much is going on\n"
        return measured(session, args)

    assert script([tiny_bundle], measure) == 0


def test_what_is_refused_is_refused_before_the_measurement(tiny_bundle, tmp_path, capsys):
    def main(argv):
        return script(argv, lambda *_: pytest.fail("measured"))

    assert "no bundle at" in failure(main, [tmp_path / "gone"], capsys)
    argv = [tiny_bundle, "--json", tiny_bundle / "manifest.json"]
    assert "belongs to the bundle" in failure(main, argv, capsys)
    assert leftovers(tmp_path) == []
