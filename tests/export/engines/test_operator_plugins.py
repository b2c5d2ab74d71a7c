"""Engines of operators are built with the plugins where their library is found."""

from __future__ import annotations

import json
import sys

import pytest

from csd.export.cli import main
from csd.export.engines import builder as tensorrt_builder
from csd.export.engines import condition
from csd.plugins.operators import OPERATOR_OF
from csd.runtime import Bundle
from csd.runtime.backends.tensorrt.plugins import VARIABLE
from csd.runtime.bundle.folder import PLUGIN_LIBRARY
from csd.runtime.device import DeviceInfo, current_platform

from ...helpers import failure
from ...vendor.tensorrt.builder import FakeLibrary

ORIN = DeviceInfo("Orin", "8.7", current_platform(), "12.6", 8 << 30)
CREATORS = sorted(OPERATOR_OF.values())


@pytest.fixture
def tensorrt(monkeypatch):
    """Install a stand-in for TensorRT of some version, on a device."""

    def install(version="10.9.0", name="tensorrt"):
        library = FakeLibrary(name, version)
        monkeypatch.setitem(sys.modules, name, library)
        for module in (condition, tensorrt_builder):
            monkeypatch.setattr(module, "find_device", lambda: ORIN)
        return library

    return install


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    path = tmp_path / "built" / PLUGIN_LIBRARY
    path.parent.mkdir()
    path.write_text(json.dumps(CREATORS))
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def argv_of(bundle, backend="tensorrt"):
    return ["--rebuild", str(bundle), "--backend", backend, "--precision", "fp32"]


def built_from_functions(library):
    return {name: build["creators"] for build in library.builds for name in build["functions"]}


@pytest.mark.parametrize("version", ["10.3.0", "10.7.0", "10.15.1", "11.0.0"])
def test_the_plugins_are_registered_once_and_taken(version, tensorrt, plugins, gpu_copy):
    library = tensorrt(version)
    assert main(argv_of(gpu_copy)) == 0
    assert library.registry.libraries == [str(plugins)]
    functions = built_from_functions(library)
    if version == "10.3.0":  # its parser would take the functions
        assert functions == {}
    else:
        assert functions == dict.fromkeys(CREATORS, CREATORS)
    Bundle.open(gpu_copy)


def test_a_library_in_the_bundle_is_taken_once_its_manifest_names_it(
    tensorrt, plugins, gpu_copy, monkeypatch, capsys
):
    monkeypatch.delenv(VARIABLE)
    there = plugins.rename(gpu_copy / PLUGIN_LIBRARY)
    library = tensorrt()
    assert f"csd-export --seal {gpu_copy}" in failure(main, argv_of(gpu_copy), capsys)
    assert not library.registry.libraries
    assert main(["--seal", str(gpu_copy)]) == 0
    assert main(argv_of(gpu_copy)) == 0
    assert library.registry.libraries == [str(there)]


def test_without_a_library_functions_are_taken(tensorrt, gpu_copy, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    library = tensorrt("10.3.0")
    assert main(argv_of(gpu_copy)) == 0
    assert built_from_functions(library) == {name: [] for name in CREATORS}


def test_tensorrt_for_rtx_takes_functions_in_any_case(tensorrt, plugins, gpu_copy):
    library = tensorrt("1.7.1.116", "tensorrt_rtx")
    assert main(argv_of(gpu_copy, "tensorrt_rtx")) == 0
    assert set(built_from_functions(library)) == set(CREATORS)
    assert not library.registry.libraries


def test_another_library_builds_the_operators_again(
    tensorrt, plugins, gpu_copy, monkeypatch, capsys
):
    tensorrt()

    def changed():
        capsys.readouterr()
        assert main(argv_of(gpu_copy)) == 0
        lines = capsys.readouterr().out.splitlines()
        return {line.split(" ")[0] for line in lines if "the builder's options changed" in line}

    assert changed() == set()
    assert changed() == set()
    plugins.write_text(json.dumps([*CREATORS, "CsdAnother"]))
    assert changed() == set(OPERATOR_OF)
    monkeypatch.delenv(VARIABLE)
    assert changed() == set(OPERATOR_OF)


def test_plugins_that_cannot_be_taken_are_one_line(
    tensorrt, plugins, gpu_copy, monkeypatch, capsys
):
    library, argv = tensorrt("10.3.0"), argv_of(gpu_copy)

    def refuse(path):
        raise RuntimeError("undefined symbol: getLogger")

    monkeypatch.setattr(library.registry, "load_library", refuse)
    message = failure(main, argv, capsys)
    assert f"cannot load the plugins of {plugins} (undefined symbol: getLogger)" in message
    assert message.endswith(f"or unset {VARIABLE} and move {plugins} away")
    monkeypatch.undo()
    library = tensorrt("10.3.0")
    monkeypatch.setenv(VARIABLE, str(plugins))
    monkeypatch.setitem(sys.modules, "onnx", None)
    message = failure(main, argv, capsys)
    assert f"to take the plugins of {plugins}" in message
    assert "onnx is not installed" in message
    assert "pip install onnx" in message
    monkeypatch.setenv(VARIABLE, "/nowhere/x.so")
    assert "names /nowhere/x.so, which is not there" in failure(main, argv, capsys)
    assert not Bundle.open(gpu_copy).manifest.engines
