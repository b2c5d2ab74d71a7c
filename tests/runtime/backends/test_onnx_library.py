"""ONNX Runtime's import: silent, and with a reason where it cannot be."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from csd.runtime import BackendError
from csd.runtime.backends.onnx_library import TELEMETRY, check_cuda_provider, load_onnxruntime
from csd.runtime.command.memory_errors import is_memory_error, out_of_memory

from ...helpers import run_python

GENERATE = "from csd.runtime.cli import main; raise SystemExit(main())"
LOAD = """
from csd.runtime.backends.onnx_library import load_onnxruntime
try:
    load_onnxruntime()
except Exception as error:
    print(type(error).__name__, error, sep=": ")
"""


def environment(home: Path | str, **changes: str) -> dict[str, str]:
    """A user's environment, in which nothing else turns the events off."""
    dropped = ("CI", TELEMETRY, "XDG_CACHE_HOME", "ORT_RUNNING_UNIT_TESTS")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", **changes}


def has_telemetry() -> bool:
    major, minor = load_onnxruntime().__version__.split(".")[:2]
    return (int(major), int(minor)) >= (1, 29)


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_a_run_leaves_a_fresh_home_empty(tiny_bundle, home, tmp_path):
    argv = [tiny_bundle, "--labels", 3, "--num-iter", 2, "--head-steps", 2, "--quiet"]
    done = run_python(GENERATE, *argv, "--out", tmp_path / "x.png", env=environment(home))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(home.rglob("*")) == []


def test_a_home_that_cannot_be_written_is_not_mentioned(tiny_bundle, tmp_path):
    argv = [tiny_bundle, "--labels", 3, "--num-iter", 2, "--head-steps", 2, "--quiet"]
    done = run_python(GENERATE, *argv, "--out", tmp_path / "x.png", env=environment("/proc"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1 image in")


def test_who_wants_the_events_gets_them(home):
    if not has_telemetry():
        pytest.skip("this onnxruntime has no telemetry")
    run_python(LOAD, env=environment(home, **{TELEMETRY: "0"}))
    assert list(home.rglob("*")) != []  # so the two tests above can fail


def test_an_empty_variable_is_no_choice(home):
    run_python(LOAD, env=environment(home, **{TELEMETRY: ""}))
    assert list(home.rglob("*")) == []


def test_the_events_of_a_library_that_was_there_before_are_stopped(monkeypatch):
    library, stopped = load_onnxruntime(), []
    monkeypatch.setattr(library, "disable_telemetry_events", lambda: stopped.append(True))
    monkeypatch.setenv(TELEMETRY, "0")
    load_onnxruntime()
    assert stopped == []
    monkeypatch.delenv(TELEMETRY)
    load_onnxruntime()
    assert stopped == [True]


def reason(body: str, tmp_path: Path, before: str = "") -> str:
    """What is said about a package whose `__init__.py` is `body`."""
    package = tmp_path / "onnxruntime"
    package.mkdir()
    (package / "__init__.py").write_text(body, encoding="utf-8")
    environ = environment(tmp_path, PYTHONPATH=str(tmp_path))
    done = run_python(before + LOAD, env=environ)
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    kind, said = line.split(": ", 1)
    assert kind in ("BackendError", "OutOfMemoryError")
    assert "not installed" not in said
    return said


@pytest.mark.parametrize(
    ("body", "why", "remedy"),
    [
        (
            "raise ImportError('libcudart.so.12: cannot open shared object file')",
            "(libcudart.so.12: cannot open shared object file)",
            "install the CUDA and cuDNN that it was built for, or run on the CPU: pip uninstall",
        ),
        (
            "raise ImportError('libodd.so.1: cannot open shared object file')",
            "(libodd.so.1: cannot open shared object file)", "then pip install onnxruntime",
        ),
        (
            "import sys\nsys.stderr.write('pages about _ARRAY_API')\n"
            "raise ImportError('numpy.core.multiarray failed to import')",
            "was built for another NumPy than", "pip install --upgrade onnxruntime",
        ),
        ("raise RuntimeError('strange')", "(strange)", "then pip install onnxruntime"),
        ("from . import capi", "installed in part", "then pip install onnxruntime"),
        ("import onnxruntime.capi", "(No module named 'onnxruntime.capi')", "uninstall -y"),
        ("", "installed in part", "pip uninstall -y onnxruntime onnxruntime-gpu, then pip"),
        ("raise MemoryError", "not enough memory", "close other programs"),
        (
            "raise ImportError('x.so: failed to map segment from shared object')",
            "not enough memory", "close other programs",
        ),
    ],
)  # fmt: skip
def test_each_cause_has_its_own_reason_and_remedy(body, why, remedy, tmp_path):
    said = reason(body, tmp_path)
    assert why in said
    assert remedy in said


ABSENT = """
import importlib.metadata, sys
sys.path[:] = [p for p in sys.path if 'site-packages' not in p] + sys.path
def none(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.version = none
"""


def test_a_module_of_another_kind_is_named(tmp_path):
    said = reason("x = 1", tmp_path, before=ABSENT)
    assert f"{tmp_path / 'onnxruntime' / '__init__.py'} is not onnxruntime and hides it" in said


def test_a_package_that_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"not installed .*: pip install onnxruntime "):
        load_onnxruntime()


def test_both_packages_are_named_where_one_hides_the_others_cuda(monkeypatch):
    both = {"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.30.0"}
    monkeypatch.setattr("csd.runtime.backends.onnx_library.installed_packages", lambda _: both)
    remedy = "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"
    with pytest.raises(BackendError, match=f"onnxruntime-gpu are both installed.*{remedy}"):
        check_cuda_provider("NoExecutionProvider")


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (MemoryError(), "a request was refused"),
        (MemoryError("Unable to allocate 3.00 GiB for an array"), "Unable to allocate 3.00 GiB"),
        (
            RuntimeError("Failed to allocate memory for requested buffer of size 1048576"),
            "1,024 KiB",
        ),
        (RuntimeError("std::bad_alloc"), "a request was refused"),
    ],
)
def test_a_lack_of_memory_says_what_was_asked_for(error, asked):
    assert is_memory_error(error)
    said = str(out_of_memory("graphs cannot be loaded", error))
    assert said.startswith("not enough memory: graphs cannot be loaded (")
    assert asked in said
    assert not is_memory_error(RuntimeError("invalid shape"))
