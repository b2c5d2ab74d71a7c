"""Quickly deployable plugins, under a stand-in for TensorRT's Python bindings.

The stand-in checks the decorators' signatures as `tensorrt.plugin` does. The vendor's own
`tensorrt.plugin`, of the bindings that are installed, runs as well, over the stand-in for the
compiled part. TENSORRT_PYTHON_DIR names another one's folder, such as
`python/packaging/bindings_wheel/tensorrt` of the public repository NVIDIA/TensorRT.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import os
import re
import struct
import sys
import types
import typing
from pathlib import Path

import numpy as np
import pytest

from csd.plugins import onnx_functions, qdp

from ..helpers import ROOT, run_python
from ..vendor.real import folder_of

DATA_TYPES = ("FLOAT", "HALF", "BF16", "INT32", "BOOL")
KERNELS = ROOT / "plugins" / "kernels" / "kernels.cuh"
# What kernels.cuh calls the dimensions of each operator.
DIMENSIONS = {
    "CsdAccept": {"B": "batch", "K": "tokens", "C": "channels"},
    "CsdResample": {"R": "tries", "N": "tokens", "C": "channels"},
    "CsdVerifyWindow": {"N": "tokens", "K": "window", "C": "channels", "R": "tries"},
    "CsdTransition": {"R": "rows", "C": "channels", "S": "steps"},
}
SIZES = {"B": 5, "K": 3, "C": 20, "N": 130, "R": 7, "S": 100}


class DimensionExpr:
    """A dimension of known size that is a constant, or is not said to be."""

    def __init__(self, value, constant=True):
        self.value, self.constant = value, constant

    def is_constant(self):
        return self.constant

    def get_constant_value(self):
        assert self.constant
        return self.value


class DimensionOperation(enum.Enum):
    SUM, PROD, MAX, MIN, SUB, CEIL_DIV, FLOOR_DIV, EQUAL, LESS = range(9)


class ExprBuilder:
    def constant(self, value):
        return DimensionExpr(value)

    def operation(self, operation, first, second):
        compute = {
            DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
            DimensionOperation.MAX: max,
        }[operation]
        value = compute(first.value, second.value)
        return DimensionExpr(value, first.constant and second.constant)


def bindings(version="10.9.0.34"):
    """The compiled part of the bindings, as far as `tensorrt.plugin` asks for it."""
    trt = types.ModuleType("tensorrt")
    trt.__version__ = version
    trt.DataType = enum.Enum("DataType", DATA_TYPES)
    trt.TensorFormat = enum.Enum("TensorFormat", ["LINEAR", "CHW4"])
    fields = ["INT8", "INT16", "INT32", "INT64", "FLOAT16", "FLOAT32", "FLOAT64", "CHAR", "UNKNOWN"]
    trt.PluginFieldType = enum.Enum("PluginFieldType", fields)
    trt.DimensionOperation, trt.IDimensionExpr = DimensionOperation, DimensionExpr
    trt.QuickPluginCreationRequest = enum.Enum("QuickPluginCreationRequest", ["STRICT_AOT"])
    trt.PluginArgType = enum.Enum("PluginArgType", ["INT"])
    trt.PluginArgDataType = enum.Enum("PluginArgDataType", ["INT32", "INT16", "INT8"])
    trt.Dims = type("Dims", (tuple,), {"MAX_DIMS": 8})
    interfaces = (
        "ITensor IPluginV3 IPluginV3OneCore IPluginV3OneBuild IPluginV3OneBuildV2 "
        "IPluginV3OneRuntime IPluginV3QuickCore IPluginV3QuickBuild IPluginV3QuickRuntime "
        "IPluginV3QuickAOTBuild IPluginCreatorV3Quick ISymExpr DynamicPluginTensorDesc"
    )
    for name in interfaces.split():
        setattr(trt, name, type(name, (), {"__init__": lambda self: None}))
    trt.PluginTensorDesc = type("PluginTensorDesc", (), {})
    trt.PluginField = lambda *arguments: arguments
    trt.PluginFieldCollection = list
    trt.Logger = type("Logger", (), {"WARNING": 0, "log": lambda *arguments: None})
    creators = {}
    registry = types.SimpleNamespace(
        register_creator=lambda creator, namespace: creators.update({creator.name: creator}),
        get_creator=lambda name, version, namespace: creators.get(name),
    )
    trt.get_plugin_registry = lambda: registry
    return trt


def stand_in(trt):
    """`tensorrt.plugin` with the checks that its decorators make."""
    plugin = types.ModuleType("tensorrt.plugin")

    class SymInt32:
        builder = None

        def __init__(self, value=None):
            self._expr = getattr(value, "_expr", value)
            if isinstance(self._expr, int):
                self._expr = DimensionExpr(self._expr)

        @property
        def is_constant(self):
            return self._expr.is_constant()

        def constant_value(self):
            return self._expr.get_constant_value()

    def operate(operation):
        def run(first, second):
            first, second = SymInt32(first), SymInt32(second)
            return SymInt32(ExprBuilder().operation(operation, first._expr, second._expr))

        return run

    class TensorDesc:
        def __init__(self, shape_expr=None, dtype=None):
            self.shape_expr, self.dtype = shape_expr, dtype

    class KernelLaunchParams:
        grid_x = grid_y = grid_z = block_x = block_y = block_z = 1

        def __setattr__(self, name, value):
            assert hasattr(self, name)
            self.__dict__[name] = SymInt32(value)

    class SymExprs(list):
        def __init__(self, length):
            super().__init__([None] * length)

    class AutoTuneCombination:
        def __init__(self, io_types):
            self.io_types = [part.strip() for part in io_types.split(",")]

    plugin.registry = {}

    def parameters(function):
        return {n: p.annotation for n, p in inspect.signature(function).parameters.items()}

    def register(identifier):
        def decorate(function):
            names = parameters(function)
            tensors = [name for name, a in names.items() if issubclass(a, TensorDesc)]
            assert list(names)[: len(tensors)] == tensors, "tensors come first"
            attributes = {name: a for name, a in names.items() if name not in tensors}
            assert set(attributes.values()) <= {int, float, bytes, bool, str}
            assert not {"outputs", "stream", "tactic"} & set(attributes)
            returned = inspect.signature(function).return_annotation
            assert typing.get_origin(returned) is tuple
            assert identifier not in plugin.registry
            plugin.registry[identifier] = types.SimpleNamespace(
                register_func=function, input_tensor_names=tensors, input_attrs=attributes,
                num_outputs=len(typing.get_args(returned)),
            )  # fmt: skip
            return function

        return decorate

    def autotune(identifier):
        def decorate(function):
            definition = plugin.registry[identifier]
            assert list(parameters(function)) == [*definition.input_tensor_names, "outputs"]
            returned = inspect.signature(function).return_annotation
            assert returned == list[AutoTuneCombination]
            definition.autotune_func = function
            return function

        return decorate

    def aot_impl(identifier):
        def decorate(function):
            definition, found = plugin.registry[identifier], parameters(function)
            attributes = definition.input_attrs
            names = [*definition.input_tensor_names, *attributes, "outputs", "tactic"]
            assert list(found) == names
            assert {name: found[name] for name in attributes} == attributes
            returned = typing.get_args(inspect.signature(function).return_annotation)
            assert returned == (str, bytes, KernelLaunchParams, SymExprs)
            definition.aot_impl_func = function
            return function

        return decorate

    plugin.TensorDesc, plugin.KernelLaunchParams = TensorDesc, KernelLaunchParams
    plugin.SymExprs = plugin.SymIntExprs = SymExprs
    plugin.SymInt32 = plugin.ShapeExpr = SymInt32
    plugin.AutoTuneCombination = AutoTuneCombination
    plugin.cdiv, plugin.max = operate(DimensionOperation.CEIL_DIV), operate(DimensionOperation.MAX)
    plugin.from_shape_expr = TensorDesc
    plugin.register, plugin.autotune, plugin.aot_impl = register, autotune, aot_impl
    trt.plugin = plugin
    return plugin


def installed(monkeypatch, version="10.9.0.34"):
    for name in [n for n in sys.modules if n == "tensorrt" or n.startswith("tensorrt.")]:
        monkeypatch.delitem(sys.modules, name)
    trt = bindings(version)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    return trt


@pytest.fixture(params=["stand-in", "public sources"])
def plugin(request, monkeypatch):
    trt = installed(monkeypatch)
    if request.param == "stand-in":
        module = stand_in(trt)
        monkeypatch.setitem(sys.modules, "tensorrt.plugin", module)
        yield module
        return
    folder = os.environ.get("TENSORRT_PYTHON_DIR")
    if not folder:
        folder = str(folder_of("tensorrt_bindings"))
    trt.__path__ = [folder]
    module = importlib.import_module("tensorrt.plugin")
    lib = importlib.import_module("tensorrt.plugin._lib")
    tensor = importlib.import_module("tensorrt.plugin._tensor")
    monkeypatch.setattr(tensor.SymIntExpr, "_exprBuilder", ExprBuilder())
    module.registry = lib.QDP_REGISTRY
    yield module
    for name in [n for n in sys.modules if n.startswith("tensorrt.")]:
        del sys.modules[name]


@pytest.fixture
def registered(plugin, tmp_path):
    path = tmp_path / "csd_kernels.compute_75.ptx"
    path.write_bytes(b"// PTX")
    assert qdp.register(tmp_path) == tuple(f"csd::{name}" for name in onnx_functions.OPERATORS)
    return plugin


def described(plugin, operator, dtype="HALF", unknown=()):
    """The inputs of a node, with sizes of SIZES."""
    data_type = sys.modules["tensorrt"].DataType
    kinds = {"T": dtype, "float": "FLOAT", "int32": "INT32", "bool": "BOOL"}
    inputs = []
    for tensor in operator.inputs:
        shape = tuple(
            plugin.ShapeExpr(DimensionExpr(SIZES.get(d, d), d not in unknown)) for d in tensor.shape
        )
        inputs.append(plugin.from_shape_expr(shape, data_type[kinds[tensor.dtype]]))
    return inputs


@pytest.mark.parametrize("name", list(onnx_functions.OPERATORS))
def test_registration_describes_the_outputs(registered, name):
    operator = onnx_functions.OPERATORS[name]
    definition = registered.registry[f"csd::{name}"]
    assert definition.input_tensor_names == [t.name for t in operator.inputs]
    assert definition.num_outputs == len(operator.outputs)
    assert definition.input_attrs == {k: type(v) for k, v in operator.attributes.items()}
    outputs = definition.register_func(*described(registered, operator), **operator.attributes)
    kinds = {"T": "HALF", "float": "FLOAT", "int32": "INT32", "bool": "BOOL"}
    for output, tensor in zip(outputs, operator.outputs, strict=True):
        assert output.dtype.name == kinds[tensor.dtype]
        sizes = [e._expr.get_constant_value() for e in output.shape_expr]
        assert sizes == [SIZES[d] for d in tensor.shape]


@pytest.mark.parametrize("name", list(onnx_functions.OPERATORS))
def test_every_element_type_is_offered(registered, name):
    operator = onnx_functions.OPERATORS[name]
    definition = registered.registry[f"csd::{name}"]
    (combination,) = definition.autotune_func(*described(registered, operator), ())
    wanted = {"T": "FP32|FP16|BF16", "float": "FP32", "int32": "INT32", "bool": "BOOL"}
    tensors = (*operator.inputs, *operator.outputs)
    assert combination.io_types == [wanted[t.dtype] for t in tensors]
    if hasattr(combination, "_get_combinations"):
        found = combination._get_combinations()
        assert {c.types[0].name for c in found} == {"FLOAT", "HALF", "BF16"}
        assert {layout.name for c in found for layout in c.layouts} == {"LINEAR"}
        assert len(found) == 3


def kernel_parameters(stem):
    """Types and names of a kernel's parameters in kernels.cuh."""
    text = KERNELS.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.search(rf"{stem}_##type\((.*?)\)\s*{{", text)
    assert found
    parts = [re.sub(r"const|__restrict__", "", p).split() for p in found[1].split(",")]
    return [(" ".join(part[:-1]), part[-1]) for part in parts]


@pytest.mark.parametrize("name", list(onnx_functions.OPERATORS))
def test_the_kernel_takes_its_arguments_in_that_order(registered, name):
    operator, kernel = onnx_functions.OPERATORS[name], qdp.KERNELS[name]
    names = [t.name for t in operator.inputs]
    names += [DIMENSIONS[name].get(n, n) for n in kernel.numbers]
    names += [t.name for t in operator.outputs]
    parameters = kernel_parameters(kernel.stem)
    assert [n for _, n in parameters] == names
    pointers = {"T": "T*", "float": "float*", "int32": "int32_t*", "bool": "uint8_t*"}
    types_of = {t.name: pointers[t.dtype] for t in (*operator.inputs, *operator.outputs)}
    values = {"int": "int32_t", "float": "float"}
    types_of |= {k: values[type(v).__name__] for k, v in operator.attributes.items()}
    for written, parameter in parameters:
        assert written.replace(" ", "") == types_of.get(parameter, "int32_t")


@pytest.mark.parametrize("name", list(onnx_functions.OPERATORS))
@pytest.mark.parametrize("dtype", ["FLOAT", "HALF", "BF16"])
def test_the_launch_has_the_kernel_its_grid_and_its_numbers(registered, name, dtype):
    operator = onnx_functions.OPERATORS[name]
    definition = registered.registry[f"csd::{name}"]
    given = {k: 1 if isinstance(v, int) else 0.75 for k, v in operator.attributes.items()}

    def launch(unknown=()):
        inputs = described(registered, operator, dtype, unknown)
        outputs = definition.register_func(*inputs, **given)
        return definition.aot_impl_func(*inputs, *given.values(), outputs, 0)

    kernel, ptx, params, numbers = launch()
    element = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}[dtype]
    assert kernel == f"{qdp.KERNELS[name].stem}_{element}"
    assert ptx == b"// PTX"
    # 20 channels need a warp of lanes, and 128 threads are four warps.
    blocks = {"CsdAccept": 5, "CsdResample": 33, "CsdVerifyWindow": 33, "CsdTransition": 2}
    assert params.grid_x._expr.value == blocks[name]
    assert params.block_x._expr.value == 128
    found = [number._expr.value for number in numbers]
    bits = struct.unpack("<i", np.float32(0.75).tobytes())[0]
    values = {k: v if isinstance(v, int) else bits for k, v in given.items()}
    assert found == [{**SIZES, **values}[n] for n in qdp.KERNELS[name].numbers]
    assert all(isinstance(number, registered.SymInt32) for number in numbers)

    _, _, dynamic, _ = launch(unknown=("B", "N", "R", "C"))
    assert dynamic.grid_x._expr.value == blocks[name]
    assert not dynamic.grid_x._expr.is_constant()


def test_few_channels_share_a_warp_and_no_rows_are_one_block(registered, monkeypatch):
    operator = onnx_functions.OPERATORS["CsdTransition"]
    definition = registered.registry["csd::CsdTransition"]
    for channels, rows, blocks in ((3, 64, 2), (1, 129, 2), (16, 0, 1), (64, 8, 2)):
        monkeypatch.setitem(SIZES, "C", channels)
        monkeypatch.setitem(SIZES, "R", rows)
        inputs = described(registered, operator)
        _, _, params, _ = definition.aot_impl_func(*inputs, 1.0, (), 0)
        assert params.grid_x._expr.value == blocks


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    installed(monkeypatch, "10.8.0.43")
    with pytest.raises(
        qdp.QdpError, match=r"TensorRT 10.8.0.43 has no ahead-of-time .* C\+\+ plug"
    ):
        qdp.register(tmp_path)
    trt = installed(monkeypatch, "11.1.0")
    trt.__path__ = [str(tmp_path)]
    with pytest.raises(qdp.QdpError, match=r"TensorRT 11.1.0 lacks tensorrt.plugin"):
        qdp.register(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", stand_in(trt))
    with pytest.raises(qdp.QdpError, match=r"no PTX in .*csd.plugins.build --out .* --ptx"):
        qdp.register(tmp_path)
    for arch in (75, 87):
        (tmp_path / f"csd_kernels.compute_{arch}.ptx").write_text("", encoding="utf-8")
    with pytest.raises(qdp.QdpError, match="name one of them"):
        qdp.find_ptx(tmp_path)
    assert qdp.find_ptx(tmp_path / "csd_kernels.compute_87.ptx").is_file()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(qdp.QdpError, match="tensorrt cannot be imported"):
        qdp.register(tmp_path)


def test_importing_the_module_brings_no_tensorrt():
    done = run_python("import sys, csd.plugins.qdp; print('tensorrt' in sys.modules)")
    assert done.stdout.split() == ["False"], done.stderr


@pytest.mark.slow
def test_the_ptx_holds_every_kernel(tmp_path):
    from csd.plugins import build

    try:
        nvcc = build.find_nvcc()
    except build.BuildError as error:
        pytest.skip(str(error))
    path = build.build_ptx(Path(tmp_path) / "csd_kernels.compute_75.ptx", 75, nvcc)
    text = qdp.find_ptx(tmp_path).read_text(encoding="utf-8")
    for kernel in qdp.KERNELS.values():
        for element in qdp.ELEMENTS.values():
            assert f".entry {kernel.stem}_{element}(" in text
    print(f"{path.name}: {path.stat().st_size} bytes")
