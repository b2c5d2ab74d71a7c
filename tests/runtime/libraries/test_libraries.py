"""What is said of packages that are not whole: each raises what the real one was seen to raise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from csd.runtime.command import permissions
from csd.runtime.command.frame import run_framed
from csd.runtime.errors import WriteRefusedError
from csd.runtime.libraries.causes import explain_missing
from csd.runtime.libraries.packages import outdated

from ...helpers import run_python

LOAD = """
import sys
from csd.runtime.libraries.imports import import_library, need
try:
    need("it", *sys.argv[2:]) if sys.argv[2:] else import_library(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error, sep=": ")
"""
NUMPY = """
import sys
sys.stderr.write("A module that was compiled using NumPy 1.x cannot be run in\\nNumPy 2.4.6")
raise ImportError("numpy.core.multiarray failed to import")
"""


def shared(name: str) -> str:
    return f"raise ImportError('{name}: cannot open shared object file: No such file or directory')"


def write(place: Path, module: str, body: str | None, package: str, *requires: str) -> None:
    """Install a package: its module, unless there is none, and what pip knows of it."""
    if body is not None:
        folder = place.joinpath(*module.split("."))
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(body, encoding="utf-8")
    version = "0.1" if package == "onnxscript" else "99.1"  # only that one is too old
    about = place / f"{package.replace('-', '_')}-{version}.dist-info"
    about.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {package}", f"Version: {version}"]
    lines += [f"Requires-Dist: {line}" for line in requires]
    (about / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")


def said(place: Path, *argv: str) -> str:
    path = str(place)
    done = run_python(LOAD, *argv, env={**os.environ, "PYTHONPATH": path})
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    kind, text = line.split(": ", 1)
    assert kind == "CsdError"
    return text


@pytest.mark.parametrize(
    ("module", "package", "requires", "body", "why", "remedy"),
    [
        (  # the metapackage of NVIDIA's alone
            "tensorrt_rtx", "tensorrt-rtx", ("tensorrt_rtx_cu99==1.7.1",),
            "raise ModuleNotFoundError(\"No module named 'tensorrt_rtx'\", name='tensorrt_rtx')",
            "tensorrt-rtx 99.1 is installed without tensorrt-rtx-cu99, which it needs",
            "pip install --extra-index-url=https://pypi.nvidia.com tensorrt-rtx-cu99==1.7.1",
        ),
        (  # its bindings without its libraries
            "tensorrt_rtx", "tensorrt-rtx", ("tensorrt_rtx_cu99_libs==1.7.1",),
            shared("libtensorrt_rtx.so.1"), "(libtensorrt_rtx.so.1: cannot open",
            "cu99-libs==1.7.1",
        ),
        (
            "cuda.bindings", "cuda-bindings", ("other", "cuda-pathfinder9>=1; os_name == 'posix'"),
            "raise ModuleNotFoundError('no', name='cuda.pathfinder9')",
            "cuda-bindings 99.1 is installed without cuda-pathfinder9",
            "pip install cuda-pathfinder9 other",
        ),
        (
            "matplotlib", "matplotlib", ("absent",), NUMPY,
            "matplotlib 99.1 was built for another NumPy than",
            "pip install --upgrade matplotlib, or pip install 'numpy<2'",
        ),
        (
            "torch", "torch", (), shared("libcudart.so.13"), "(libcudart.so.13: cannot open",
            "install the CUDA and cuDNN that it was built for, or pip install --force-reinstall",
        ),
        (
            "torch", "torch", (), "raise OSError('libgomp.so.1: cannot open shared object file')",
            "torch cannot be loaded (libgomp.so.1", "package of your system that has it",
        ),
        (
            "PIL", "pillow", (), "raise ImportError(\"cannot import name '_imaging' from 'PIL'\")",
            "Pillow is installed in part", "pip install --force-reinstall pillow",
        ),
        (
            "PIL", "pillow", (), "raise ImportError('/x/_imaging.so: cannot read file data')",
            "Pillow cannot be loaded", "pip install --no-cache-dir --force-reinstall pillow",
        ),
        (
            "onnx", "onnx", (), "raise ImportError(\"version `GLIBC_2.38' not found (by x.so)\")",
            "onnx cannot be loaded", "has no GLIBC_2.38: pip install 'onnx<99.1'",
        ),
        (
            "safetensors", "safetensors", (),
            "raise PermissionError(13, 'Permission denied', __file__)",
            "safetensors may not be read (Permission denied: ", "chmod a+r ",
        ),
        (
            "onnxscript", "onnxscript", (),
            "raise ModuleNotFoundError('No module named x', name='onnxscript.x')",
            "onnxscript lacks what csd asks for", "onnxscript 0.1 is too old, pip install",
        ),
        (
            "rich", "rich", ("markdown-it-py; extra == 'x'",), "raise ValueError('strange')",
            "rich cannot be loaded (strange)", "pip install --force-reinstall rich",
        ),
    ],
)  # fmt: skip
def test_each_cause_has_its_own_reason_and_remedy(
    module, package, requires, body, why, remedy, tmp_path
):
    write(tmp_path, module, body, package, *requires)
    line = said(tmp_path, module)
    assert why in line
    assert remedy in line
    assert "not installed" not in line


def test_all_that_is_absent_is_named_at_once(tmp_path):
    assert said(tmp_path, "", "absent_one", "json", "absent_two.part") == (
        "it needs absent_one and absent_two.part, which are not installed: "
        "pip install absent-one absent-two"
    )


def test_an_import_that_nobody_foresaw_is_explained_where_the_library_is_known(capsys):
    def body() -> int:
        raise ModuleNotFoundError("No module named 'torch'", name="torch.absent")

    assert run_framed("command", body) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "torch" in line
    assert "pip install" in line
    for name in ("csd.runtime.absent", "somewhere"):  # a fault of our own, or of a stranger
        assert explain_missing(ModuleNotFoundError("x", name=name)) is None


def test_what_is_new_enough_is_not_blamed():
    assert outdated("numpy", "pillow", "rich") is None


def test_a_file_that_may_not_be_read_has_another_remedy_than_one_to_write(
    tmp_path, monkeypatch, capsys
):
    path = tmp_path / "weights.pth"
    path.touch()
    monkeypatch.setattr(permissions, "_may", lambda where, _: Path(where) != path)
    for kind, remedy in (
        (PermissionError, f"chmod a+r {path}, or run as its owner"),
        (WriteRefusedError, "choose a path that you may write to"),
    ):

        def body(kind=kind) -> int:
            raise kind(13, "Permission denied", str(path))

        assert run_framed("command", body) == 2
        assert capsys.readouterr().err == f"command: error: Permission denied: {path}: {remedy}\n"
    monkeypatch.setattr(permissions, "_may", lambda where, _: Path(where) != tmp_path)
    assert permissions.readable(path) == f"chmod a+x {tmp_path}, or run as its owner"
