from __future__ import annotations

import logging
import re
import subprocess
import sys

import pytest

from csd.runtime import Bundle, GenerateOptions
from csd.runtime.cli import main
from csd.runtime.command.line.logs import logger, shown_logs
from csd.runtime.command.parser import LEVELS

from ....helpers import run_python

FAST = ("--num-iter", 2, "--head-steps", 2, "--quiet")
LINE = re.compile(r"\[ *\d+\.\d{3} s\] (debug|info|warning|error): csd[\w.]*: ")


def lines(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_command_tells_of_its_decisions_where_it_is_asked_to(tiny_bundle, tmp_path, capsys):
    argv = [tiny_bundle, "--labels", "3,7", *FAST, "--out", tmp_path / "x.png"]

    def run(*more: object) -> list[str]:
        assert main([str(part) for part in (*argv, *more)]) == 0
        return lines(capsys)

    assert run() == []
    info = run("--log-level", "info")
    assert all(LINE.match(line) for line in info)
    text = "\n".join(info)
    for what in ("backend onnxruntime", "fp32 graphs", "sampler for 2 head steps", "in 1 parts"):
        assert what in text
    debug = "\n".join(run("--log-level", "debug", "--verify-files", "always"))
    assert "backend tensorrt cannot run this bundle here: " in debug
    for what in ("graph target.backbone opened in ", "hashed in ", "largest call of target."):
        assert what in debug
    assert "debug: " not in text
    again = "\n".join(run("--log-level", "debug", "--verify-files", "never"))
    assert "is not checked" in again
    assert run("--log-level", "error") == []


def test_a_library_configures_nothing_and_is_silent(tiny_bundle, caplog):
    code = (
        "import sys, logging; from csd.runtime import Bundle, GenerateOptions; "
        "Bundle.open(sys.argv[1]).session().generate([1], GenerateOptions(num_iter=1)); "
        "assert logging.root.handlers == [] and logging.root.level == logging.WARNING; "
        "root = logging.getLogger('csd'); "
        "print([type(h).__name__ for h in root.handlers], root.level, root.propagate)"
    )
    done = run_python(code, tiny_bundle)
    assert (done.stderr, done.stdout) == ("", "['NullHandler'] 0 True\n")
    with caplog.at_level(logging.INFO, "csd"), Bundle.open(tiny_bundle).session() as session:
        session.generate([1], GenerateOptions(num_iter=2, head_steps=2))
    assert any("sampler for 2 head steps" in record.getMessage() for record in caplog.records)
    assert {record.name.split(".")[0] for record in caplog.records} == {"csd"}


def test_lines_are_one_line_each_and_the_level_ends_with_the_command(capsys):
    root, log = logging.getLogger("csd"), logger("csd.x")
    before = root.level, list(root.handlers)
    with shown_logs("info"):
        log.info("a\nb\x1b[31m %s", "c\rd")
        log.debug("not shown")
        with shown_logs("debug"):  # of a command that another one runs
            log.debug("nor this")
    assert (root.level, root.handlers) == before
    (line,) = lines(capsys)
    assert line.isprintable()
    assert LINE.match(line)
    log.error("silent again")
    assert lines(capsys) == []


@pytest.mark.parametrize("level", ["", "loud", "DEBUG"])
def test_another_level_is_refused(level, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["b", "--labels", "1", f"--log-level={level}"])
    assert stopped.value.code == 2
    (line,) = lines(capsys)
    assert all(name in line for name in LEVELS)


def test_a_reader_of_the_lines_that_leaves_costs_nothing(tiny_bundle, tmp_path):
    code = "from csd.runtime.entry import main; raise SystemExit(main())"
    argv = [tiny_bundle, "--labels", "3", *FAST, "--out", tmp_path / "x.png", "--log-level=debug"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, argv)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    process.stderr.close()
    assert process.stdout is not None
    assert "1 image in" in process.stdout.read()
    assert process.wait() == 141
    assert (tmp_path / "x.png").is_file()
