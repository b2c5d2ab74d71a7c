"""The C++ plugins, compiled against TensorRT's headers (see `headers`).

`tensorrt_probe.cpp` stands in for TensorRT and for the launch functions, so nothing here needs a
device. Several folders of headers, separated as in PATH, are tested one after the other.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from csd.plugins import onnx_functions

from ..helpers import ROOT
from . import headers
from .test_onnx_functions import build_with_rtx, rtx_python

SOURCES = ROOT / "plugins" / "tensorrt"
HEADERS = headers.tensorrt_headers()
EVERY_TYPE = {"float", "float16", "bfloat16"}
# What the launch functions call the dimensions that they are given.
NAME = {"float": "float", "int32": "int32", "bool": "bool", "T": "float16"}

pytestmark = pytest.mark.skipif(not HEADERS, reason=headers.summary())


def cuda_include() -> Path:
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    if nvcc:
        done = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-"], input="", capture_output=True,
                              text=True, check=False)  # fmt: skip
        tops = [line.split("=", 1)[1] for line in done.stderr.splitlines() if "TOP=" in line]
        places += [str(Path(nvcc).resolve().parent.parent), *(top.strip() for top in tops)]
    for place in filter(None, places):
        for folder in (Path(place) / "include", *Path(place).glob("targets/*/include")):
            if (folder / "cuda_runtime_api.h").is_file():
                return folder
    pytest.skip("no cuda_runtime_api.h: install the CUDA toolkit or set CUDA_HOME")


@pytest.fixture(scope="module", params=HEADERS, ids=str)
def answers(request, tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    binary = tmp_path_factory.mktemp("probe") / "probe"
    sources = [
        Path(__file__).with_name("tensorrt_probe.cpp"),
        *(SOURCES / f"{name}.cpp" for name in ("plugin", "operators", "entry_points")),
    ]
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
    system = ["-isystem", request.param, "-isystem", cuda_include()]
    command = [compiler, *flags, *sources, *system, "-o", binary]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    probed = subprocess.run([str(binary)], capture_output=True, text=True, check=False)
    assert probed.returncode == 0, probed.stderr
    return {entry["name"]: entry for entry in json.loads(probed.stdout)}


@pytest.mark.parametrize("name", list(onnx_functions.OPERATORS))
def test_the_plugin_has_the_operators_name_fields_types_and_shapes(answers, name):
    operator, found = onnx_functions.OPERATORS[name], answers[name]
    assert (found["namespace"], found["version"]) == ("csd", "1")
    fields = [
        [key, "int" if isinstance(value, int) else "float", None]
        for key, value in operator.attributes.items()
    ]
    assert found["fields"] == fields
    counts = {len(operator.inputs_given(True)), len(operator.inputs_given(False))}
    assert {len(form["inputs"]) for form in found["forms"]} == counts
    for form in found["forms"]:
        given = operator.inputs_given(len(form["inputs"]) == len(operator.inputs))
        assert form["inputs"] == ["".join(map(str, t.shape)) for t in given]
        assert form["outputs"] == ["".join(map(str, t.shape)) for t in operator.outputs]
        assert form["output_types"] == [NAME[t.dtype] for t in operator.outputs]
        assert form["status"] == [0, 0, 0, 0]
        tensors = (*given, *operator.outputs)
        assert set(form["types"][0]) == EVERY_TYPE
        assert form["types"][1:] == [[NAME[t.dtype]] for t in tensors[1:]]
        assert not form["vectorised"]
        assert form["refused"] != 0, "sizes that do not fit each other are refused"


@pytest.mark.parametrize("name", list(onnx_functions.OPERATORS))
def test_a_launch_gets_every_buffer_size_and_attribute(answers, name):
    operator = onnx_functions.OPERATORS[name]
    for form in answers[name]["forms"]:
        given = operator.inputs_given(len(form["inputs"]) == len(operator.inputs))
        wanted = {t.name: 0 for t in operator.inputs}
        wanted |= {t.name: 1000 + i for i, t in enumerate(given)}
        wanted |= {t.name: 2000 + i for i, t in enumerate(operator.outputs)}
        letters = {d for t in given for d in t.shape if isinstance(d, str)}
        wanted |= {letter: 100 + ord(letter) for letter in letters}
        wanted |= {
            key: 1 if isinstance(value, int) else 0.5 for key, value in operator.attributes.items()
        }
        assert form["call"] == {**wanted, "type": 1, "stream": 3000}


@pytest.mark.parametrize("name", list(onnx_functions.OPERATORS))
def test_fields_survive_serialisation_and_wrong_ones_are_refused(answers, name):
    found, attributes = answers[name], onnx_functions.OPERATORS[name].attributes
    for form in found["forms"]:
        assert [field[2] for field in form["fields"]] == [
            1 if isinstance(value, int) else 0.5 for value in attributes.values()
        ]
    assert [field[2] for field in found["wide"]] == [
        1 if isinstance(value, int) else 0.25 for value in attributes.values()
    ]
    assert found["bare"], "attributes have defaults"
    assert found["wrong_kind"] == ("kind" not in attributes)
    assert found["wrong_real"] == all(isinstance(v, int) for v in attributes.values())


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if not (shutil.which("cmake") and shutil.which("nvcc")):
        pytest.skip("no cmake or no nvcc")
    folder = tmp_path_factory.mktemp("build")
    nvcc = cuda_include().parent / "bin" / "nvcc"
    for command in (
        ["cmake", "-S", SOURCES, "-B", folder, "-DCMAKE_CUDA_ARCHITECTURES=87",
         f"-DCMAKE_CUDA_COMPILER={nvcc if nvcc.is_file() else 'nvcc'}",
         f"-DTENSORRT_INCLUDE_DIR={HEADERS[0]}"],
        ["cmake", "--build", folder],
    ):  # fmt: skip
        done = subprocess.run(
            [str(c) for c in command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "libcsd_plugins.so"


@pytest.mark.slow
def test_the_library_has_tensorrts_entry_points(library):
    loaded = ctypes.CDLL(str(library))
    count = ctypes.c_int32(0)
    loaded.getCreators.restype = ctypes.c_void_p
    assert loaded.getCreators(ctypes.byref(count))
    assert count.value == len(onnx_functions.OPERATORS)
    loaded.setLoggerFinder(None)
    print(f"{library.name}: {library.stat().st_size} bytes for one architecture")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(onnx_functions.OPERATORS))
def test_experimental_tensorrt_rtx_builds_an_engine_with_the_plugin(name, library, tmp_path):
    """Plugins are not supported there, and its wheel lacks a name that they make it look up."""
    where = subprocess.run(
        [rtx_python(), "-c", "import tensorrt_rtx_libs as l; print(l.__path__[0])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    real = next(Path(where).glob("libtensorrt_rtx.so.*"))
    (tmp_path / "libtensorrt_rtx.so").symlink_to(real)
    path = f"{tmp_path}{os.pathsep}{os.environ.get('LD_LIBRARY_PATH', '')}"

    def built(model):
        return build_with_rtx(model, tmp_path, library, LD_LIBRARY_PATH=path)

    model = onnx_functions.operator_model(name)
    assert built(model) == "plugin", "a registered plugin is preferred to the function"
    node = model.graph.node[0]
    kept = [a for a in node.attribute if not a.name.startswith("plugin_")]
    del node.attribute[:]
    node.attribute.extend(kept)
    assert built(model) == "function", "without plugin_namespace the function is preferred"
    onnx_functions.remove_functions(model)
    assert built(model) == "plugin", "the domain names the plugin where there is no function"
