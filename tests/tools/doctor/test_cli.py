"""`csd-doctor` as its users run it."""

from __future__ import annotations

import json
import sys

import pytest

from csd.tools.doctor import cli
from csd.tools.doctor.check import NOTE, OK, PROBLEM, Check, report_lines, split_message
from csd.tools.doctor.cli import main
from csd.tools.doctor.software.packages import Package

from ...helpers import failure, leftovers, run_python

DOCTOR = "import sys; from csd.tools.doctor.entry import main; sys.exit(main())"


def test_a_run_tells_of_the_machine_and_of_a_bundle(tiny_bundle, tmp_path):
    done = run_python(DOCTOR, tiny_bundle, "--json", "found.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    for heading in ("Python and csd", "packages", "processor", "memory and disk", "GPU", "bundle"):
        assert f"\n{heading}\n" in f"\n{done.stdout}"
    assert done.stdout.splitlines()[-1].startswith("this machine runs the bundle: 0 problems, ")
    values = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert (values["schema"], values["kind"], values["fit"]) == (1, "doctor", True)
    assert values["bundle"] == str(tiny_bundle)
    assert sum(values["counts"].values()) == len(values["checks"])
    by_name = {row["name"]: row for row in values["checks"]}
    assert by_name["a short run"]["state"] == by_name["onnxruntime"]["state"] == OK
    assert by_name["Python"]["finding"].endswith(sys.executable)
    assert {tuple(row) for row in values["checks"]} == {
        ("area", "name", "state", "finding", "reason", "remedy")
    }
    for row in values["checks"]:
        assert f"{row['state']:7}  {row['name']} " in done.stdout


def test_the_machine_alone_and_without_a_run(tiny_bundle, known_packages, capsys):
    assert main([]) == 0
    alone = capsys.readouterr().out
    assert alone.splitlines()[-1].startswith("csd runs here: 0 problems")
    assert "\nbundle\n" not in alone
    assert main([str(tiny_bundle), "--no-run"]) == 0
    assert "a short run" not in capsys.readouterr().out


def test_json_takes_stdout_for_itself(known_packages, capsys):
    assert main(["--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["bundle"] is None
    assert main(["--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "doctor"


def test_a_problem_of_the_machine_is_exit_code_1(monkeypatch, known_packages, capsys):
    broken = Package("numpy", True, "9", "numpy cannot be loaded (x)", "pip install numpy")
    monkeypatch.setattr(cli, "find_packages", lambda: {**known_packages, "numpy": broken})
    assert main([]) == 1
    out = capsys.readouterr().out
    assert "because numpy cannot be loaded (x)" in out
    assert "mend it: pip install numpy" in out
    assert out.splitlines()[-1].startswith("csd does not run here: 1 problem, ")


def test_what_is_no_bundle_is_refused_before_any_look(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "find_packages", lambda: pytest.fail("it looked"))
    (tmp_path / "empty").mkdir()
    for name in ("gone", "empty"):
        line = failure(main, [tmp_path / name], capsys)
        assert line.startswith(f"no bundle at {tmp_path / name} (it has no manifest.json): give ")
    line = failure(main, ["--json", tmp_path / "gone" / "x"], capsys)
    assert line.startswith("No such file or directory")


def test_output_into_the_bundle_is_refused(tiny_bundle, capsys):
    line = failure(main, [tiny_bundle, "--json", tiny_bundle / "x.json"], capsys)
    assert "belongs to the bundle" in line
    assert "x.json" not in leftovers(tiny_bundle)


@pytest.mark.parametrize(
    ("line", "reason", "remedy"),
    [
        ("bundle b lacks x: export it again", "bundle b lacks x", "export it again"),
        ("bundle b: x is odd (a: b): use c", "bundle b: x is odd (a: b)", "use c"),
        (
            "it cannot be loaded (lib.so: no): install CUDA, or run on the CPU: pip install x",
            "it cannot be loaded (lib.so: no)", "install CUDA, or run on the CPU: pip install x",
        ),
        ("it is so", "it is so", ""),
        ('say "a: b" there: do c', 'say "a: b" there', "do c"),
        ("", "", ""),
    ],
)  # fmt: skip
def test_a_line_comes_apart_into_reason_and_remedy(line, reason, remedy):
    assert split_message(line) == (reason, remedy)


def test_text_of_strangers_stays_one_line_each():
    check = Check("a", "b", NOTE, "x\ny\x1b[31m", "r\rs", "m" * 3000)
    lines = [*report_lines([check, Check("a", "longer", OK, "z"), Check("c", "d", PROBLEM, "")])]
    assert all(line.isprintable() and len(line) < 900 for line in lines)
    assert lines[:2] == ["a", "  note     b       x y"]
    assert lines[5:] == ["", "c", "  problem  d       "]


def test_help_names_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "exit code 0: no problem, 1: a problem" in text
    assert "example: csd-doctor bundle" in text
