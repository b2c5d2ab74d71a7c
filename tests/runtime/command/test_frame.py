from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from csd.runtime import CsdError
from csd.runtime.command.frame import run_framed
from csd.runtime.command.parser import Parser, make_console, run_command
from csd.runtime.command.text import MAX_MESSAGE, one_line

from ...helpers import run_python

FRAMED = "import sys, os, time; from csd.runtime.command.frame import run_framed\n"


def framed(body) -> int:
    return run_framed("command", body, lower="--size")


def raising(error: BaseException):
    def body() -> int:
        raise error

    return body


@pytest.fixture
def reports(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CSD_REPORT_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (CsdError("it is\nso: mend it"), "it is so: mend it", 2),
        (MemoryError(), "out of memory: lower --size", 2),
        (MemoryError("Unable to allocate 8 TiB"), "out of memory (Unable to allocate 8 TiB): lower "
         "--size", 2),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory (Default", 2),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "out of memory ([Errno 12] Cannot", 2),
        (FileNotFoundError(errno.ENOENT, "Not there", "x"), "Not there: x: check the path", 2),
        (KeyboardInterrupt(), "interrupted; nothing was left half-written", 130),
    ],
)  # fmt: skip
def test_errors_that_a_user_can_mend_are_one_line(error, message, code, reports, capsys):
    assert framed(raising(error)) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"command: error: {message}")
    assert os.listdir(reports) == []


def test_an_error_that_nobody_foresaw_is_one_line_that_names_its_traceback(reports, capsys):
    assert framed(raising(ValueError("\x1b[31ma\x1b[0m\nb\x07"))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(r"command: error: unforeseen ValueError: a b\x07; its traceback is")
    (report,) = reports.iterdir()
    assert str(report) in line
    text = report.read_text(encoding="utf-8")
    for part in ("Traceback (most recent call last)", "in body", "command: ", "csd: ", "python: "):
        assert part in text


def test_a_report_that_cannot_be_written_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CSD_REPORT_DIR", str(tmp_path / "gone"))
    assert framed(raising(ZeroDivisionError())) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "unforeseen ZeroDivisionError; its traceback could not be written (No such file" in line
    assert "CSD_REPORT_DIR" in line


def test_too_deep_a_recursion_is_one_line(reports, capsys):
    def body() -> int:
        return body()

    assert framed(body) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nested too deeply: check the JSON files" in line
    assert str(next(reports.iterdir())) in line


def test_an_error_without_text_is_answered(reports, capsys):
    class Mute(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise ValueError

    assert framed(raising(Mute())) == 1
    assert "unforeseen Mute; " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\n  b\tc\x85d", "a b c d"),
        ("\x1b[2J\x07\x9b", r"\x1b[2J\x07\x9b"),
        ("\u202eabc\u200b\ufeff", r"\u202eabc\u200b\ufeff"),
        ("\udcff", r"\udcff"),
        ("é × Σ", "é × Σ"),
    ],
)
def test_a_message_is_one_line_without_control_characters(text, line):
    assert one_line(text) == line
    assert one_line(line) == line


def test_a_message_is_bounded_and_keeps_its_cause_and_its_remedy():
    text = "cause " + "x y\x00 " * 10_000 + " remedy"
    line = one_line(text)
    assert len(line) <= MAX_MESSAGE
    assert line.startswith("cause x")
    assert line.endswith(" remedy")
    assert one_line(line) == line


def test_the_message_of_a_bad_command_line_is_bounded(capsys):
    parser = Parser("command", "does", "command")
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda _: 0, parser, [f"--{'x' * 100_000}\x1b"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) <= MAX_MESSAGE
    assert line.endswith(": see command --help")


SLEEPS = (
    FRAMED + "from csd.runtime.command.files import write_atomically; from pathlib import Path\n"
    "def body():\n"
    " with write_atomically(Path(sys.argv[1])) as stream:\n"
    "  stream.write(b'half'); stream.flush(); print('ready', flush=True)\n"
    "  while True: time.sleep(0.01)\n"
    "raise SystemExit(run_framed('command', body, last=True))"
)


def _start(code: str, *argv: object, **kwargs) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, argv)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("number", "code", "cause"),
    [(signal.SIGINT, 130, ""), (signal.SIGTERM, 143, " by SIGTERM"),
     (signal.SIGHUP, 129, " by SIGHUP")],
)  # fmt: skip
def test_signals_tidy_up(number, code, cause, tmp_path):
    with _start(SLEEPS, tmp_path / "x") as process:
        process.stdout.readline()
        assert len(os.listdir(tmp_path)) == 1
        for _ in range(3):  # a shell and a supervisor may each send it
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err == f"command: error: interrupted{cause}; nothing was left half-written\n"
    assert os.listdir(tmp_path) == []


def test_a_signal_that_the_caller_ignores_stays_ignored(tmp_path):
    # As under nohup.
    with _start(
        SLEEPS, tmp_path / "x", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_signal_within_a_finaliser_is_not_lost(tmp_path):
    code = FRAMED + (
        "import signal\n"
        "class Lost:\n"
        " def __del__(self): os.kill(os.getpid(), signal.SIGINT); time.sleep(0.05)\n"
        "def body():\n"
        " Lost()\n"
        " time.sleep(30); return 0\n"
        "raise SystemExit(run_framed('command', body))"
    )
    began = time.monotonic()
    done = run_python(code)
    assert time.monotonic() - began < 25
    assert done.returncode == 130
    assert done.stderr == "command: error: interrupted; nothing was left half-written\n"


def test_an_error_that_an_import_makes_of_ctrl_c_is_ctrl_c():
    code = FRAMED + (
        "import signal\n"
        "def body():\n"
        " try: os.kill(os.getpid(), signal.SIGINT); time.sleep(5)\n"
        " except KeyboardInterrupt: raise ImportError('multiarray failed to import')\n"
        "raise SystemExit(run_framed('command', body))"
    )
    done = run_python(code)
    assert (done.returncode, len(done.stderr.splitlines())) == (130, 1)


def test_a_frame_within_a_frame_leaves_ctrl_c_to_the_outer_one(capsys):
    after = []

    def outer() -> int:
        run_framed("inner", raising(KeyboardInterrupt()))
        after.append("the command within was interrupted, and this goes on")
        return 0

    assert framed(outer) == 130
    assert after == []
    assert capsys.readouterr().err.startswith("command: error: interrupted")
    assert framed(lambda: run_framed("inner", raising(CsdError("so")))) == 2
    assert capsys.readouterr().err == "inner: error: so\n"


def test_handlers_and_streams_are_given_back():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    streams = sys.stdout, sys.stderr
    assert framed(lambda: 3) == 3
    with pytest.raises(SystemExit):
        framed(raising(SystemExit(4)))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert (sys.stdout, sys.stderr) == streams


CHATTY = FRAMED + (
    "from pathlib import Path\n"
    "def body():\n"
    " for k in range(2000): print('line', k, 'x' * 100, flush=k % 2 == 0)\n"
    " Path(sys.argv[1]).write_text('done')\n"
    " return 0\n"
    "raise SystemExit(run_framed('command', body))"
)


@pytest.mark.parametrize("lines", [0, 1])
def test_a_reader_that_goes_away_stops_no_work_and_is_no_error(lines, tmp_path):
    with _start(CHATTY, tmp_path / "x") as process:
        for _ in range(lines):
            process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 128 + signal.SIGPIPE
    assert (tmp_path / "x").read_text() == "done"


def test_a_help_that_nobody_reads_is_no_error():
    code = (
        "import sys; from csd.runtime.command.parser import *; time = __import__('time')\n"
        "time.sleep(0.5)\n"
        "raise SystemExit(run_command(lambda _: 0, Parser('command', 'does', 'x'), ['--help']))"
    )
    with _start(code) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) in (0, 128 + signal.SIGPIPE)


def test_a_full_disk_under_stdout_is_one_line():
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", FRAMED + "raise SystemExit(run_framed('command', lambda: "
             "print('x') or 0))"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("command: error: No space left on device")


def test_a_path_that_is_no_text_can_be_printed():
    code = FRAMED + "run_framed('command', lambda: print('\\udcff') or 0)"
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("\\udcff\n", "")


def test_a_command_without_stdout_and_stderr_runs():
    code = FRAMED + (
        "def body():\n raise ValueError\n"
        "raise SystemExit(run_framed('command', lambda: print('x') or 0) + 10 * "
        "run_framed('command', body))"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, code], check=False,
        env={**os.environ, "CSD_REPORT_DIR": "/nowhere"},
    )  # fmt: skip
    assert done.returncode == 10


def test_every_command_shows_its_version(capsys):
    from csd.export.arguments import build_parser as export
    from csd.runtime.cli import build_parser as generate

    for build in (export, generate):
        with pytest.raises(SystemExit) as stopped:
            build().parse_args(["--version"])
        assert stopped.value.code == 0
        shown = capsys.readouterr().out
        assert re.fullmatch(r"csd-(generate|export) \d+\.\d+\.\d+\S*\n", shown)


def test_the_help_shows_the_default_of_every_option():
    from csd.export.arguments import build_parser as export
    from csd.runtime.cli import build_parser as generate

    for build in (export, generate):
        parser = build()
        for action in parser._actions:
            if action.option_strings and not action.required and action.default != "==SUPPRESS==":
                shown = parser.formatter_class("x")._get_help_string(action)
                assert "(default: " in shown, action.option_strings
    text = " ".join(generate().format_help().split())
    assert "one seed gives one set of images (default: 0)" in text


def test_the_entry_of_a_command_imports_nothing_heavy():
    code = (
        "import sys, csd.runtime.entry as e, csd.runtime.command.frame, csd.export.entry;"
        "import csd.tools.entry;"
        "print(*sorted({'numpy', 'argparse', 'rich', 'PIL', 'onnxruntime', 'torch'} "
        "& set(sys.modules)))"
    )
    assert run_python(code).stdout == "\n"


@pytest.mark.parametrize("room", [8, 40, 70, 100])
def test_too_little_memory_for_numpy_is_one_line_with_its_remedy(room):
    code = """
import resource, sys
from csd.runtime import entry
from csd.runtime.command import frame, memory_errors
lines = open("/proc/self/status").read().splitlines()
used = int(next(line for line in lines if line.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[1]) << 20), -1))
raise SystemExit(entry.enter("command", lambda: __import__("numpy") and 0))
"""
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    done = run_python(code, room, env=env)
    if done.returncode == 0:
        pytest.skip("this NumPy takes less")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "memory" in line
    assert "(ulimit -v)" in line


def test_a_closed_stderr_is_nobodys_file(tmp_path):
    """What a library prints must not come into the next file that is opened."""
    code = (
        "import os, sys; from csd.runtime.command.frame import run_framed\n"
        "def body():\n"
        f" with open({str(tmp_path / 'x')!r}, 'wb') as stream:\n"
        "  sys.stderr.write('warning'); sys.stderr.flush(); os.write(2, b'of a library')\n"
        "  stream.write(b'content')\n"
        " return 0\n"
        "sys.exit(run_framed('x', body))"
    )
    assert run_python(code, preexec_fn=lambda: os.close(2)).returncode == 0
    assert (tmp_path / "x").read_bytes() == b"content"


def test_a_long_value_is_cut_before_the_message_is():
    line = one_line(f"seed is {'9' * 5000}: give a whole number from 0 to 2**64 - 1")
    assert line.endswith("9: give a whole number from 0 to 2**64 - 1")
    assert len(line) < 250
    path = f"/{'a' * 150}"
    assert one_line(f"{path} {path} {path}: give another") == f"{path} {path} {path}: give another"


MODULES = (
    "csd.tools.demo", "csd.tools.random_model", "csd.tools.gpu_check", "csd.models.training",
    "csd.models.training.evaluate",
    *(f"csd.tools.measure.{name}"
      for name in ("backbone_times", "head_curve", "head_fidelity", "option_sets", "profile",
                   "stream", "zoo_eval")),
)  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_a_module_that_runs_is_within_its_frame_before_anything_heavy(module):
    """An import that Ctrl-C interrupts is one line: NumPy's stands for all of them."""
    code = (
        "import sys, runpy\n"
        "class Interrupt:\n"
        " def find_spec(self, name, *_):\n"
        "  if name in ('numpy', 'torch', 'argparse', 'rich'): raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    done = run_python(code)
    assert done.returncode == 130
    assert done.stderr == (
        f"python -m {module}: error: interrupted; nothing was left half-written\n"
    )


def test_tables_in_pipes_are_not_cut(capsys, monkeypatch):
    from rich.table import Table

    monkeypatch.delenv("COLUMNS", raising=False)  # what runs the tests may set it
    table = Table("a" * 90, "b" * 90)
    make_console().print(table)
    shown = capsys.readouterr().out
    assert "a" * 90 in shown
    assert "b" * 90 in shown
