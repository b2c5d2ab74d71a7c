"""What the product uses of the vendor's packages, and what the stand-ins have, is in the real ones.

| package | looked at as | by |
| --- | --- | --- |
| `tensorrt_rtx` | itself | `describe` |
| `tensorrt` | `tensorrt_bindings`, linked against empty libraries | `describe` |
| `cuda.bindings.runtime` | itself | `inspect` |
| `cuda.core` | itself | `inspect` |

No device is needed. In continuous integration a package that is missing is a failure.
"""

from __future__ import annotations

import ast
import inspect
import re

import pytest

from csd.runtime.backends.tensorrt import binding

from . import cuda_bindings, cuda_core, real, uses
from .tensorrt import builder, common, runtime

BACKENDS = ("tensorrt", "tensorrt_rtx")
# What one of TensorRT's two packages has and the other has not, and the product knows of.
RTX_ONLY = {
    ("", "ComputeCapability"),
    ("", "DynamicShapesKernelSpecializationStrategy"),
    ("BuilderFlag", "REQUIRE_USER_ALLOCATION"),
    ("DynamicShapesKernelSpecializationStrategy", "EAGER"),
    ("DynamicShapesKernelSpecializationStrategy", "LAZY"),
    ("DynamicShapesKernelSpecializationStrategy", "NONE"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("IExecutionContext", "is_stream_capturable"),
    ("IRuntimeCache", "deserialize"),
    ("IRuntimeCache", "serialize"),
    ("IRuntimeConfig", "create_runtime_cache"),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
    ("IRuntimeConfig", "set_runtime_cache"),
}
# What only releases of TensorRT have that are older than the ones looked at.
FORMER = {("ICudaEngine", "device_memory_size")}
STAND_INS = {
    kind.__name__: kind
    for module in (common, runtime, builder)
    for kind in vars(module).values()
    if inspect.isclass(kind) and kind.__module__ == module.__name__
}
# Classes of the stand-ins that are no class of the vendor's.
NOT_THE_VENDORS = {
    "FakeTensorRT", "FakeLibrary", "OldContext", "RtxContext", "RtxConfig", "Severity",
}  # fmt: skip
# Expressions in the files of `uses.TENSORRT` whose type says nothing, and that are not TensorRT's.
NOT_TENSORRTS = {"stream"}


def everything():
    return {backend: real.described(backend) for backend in BACKENDS}


def member(described, holder, name):
    """Overloads of a member (None where it is no function), or a KeyError."""
    if holder == uses.MODULE and name in described:
        return described[name].get("__init__")
    return described[holder][name]


def is_there(described, holder, name):
    try:
        member(described, holder, name)
    except KeyError:
        return False
    return True


def takes(overload, positional, keywords):
    names = overload["parameters"]
    free = names[positional:]
    return (
        positional <= len(names)
        and set(keywords) <= set(free)
        and positional + len(keywords) >= overload["required"]
    )


def tensorrt_uses():
    described = everything()
    return list(uses.tensorrt_uses({name for one in described.values() for name in one}))


def test_tensorrt_has_all_names_that_the_product_uses():
    described, seen = everything(), tensorrt_uses()
    assert len(seen) > 80
    for use in seen:
        wanted = {"tensorrt_rtx"} if (use.holder, use.name) in RTX_ONLY else set(BACKENDS)
        if (use.holder, use.name) in FORMER:
            wanted = set()
        found = {b for b in BACKENDS if is_there(described[b], use.holder, use.name)}
        assert found == wanted, use
    print(f"{len(seen)} uses of {len({(u.holder, u.name) for u in seen})} names")


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensorrt_takes_the_arguments_that_the_product_gives(backend):
    described, counted = real.described(backend), 0
    for use in tensorrt_uses():
        if use.positional is None or not is_there(described, use.holder, use.name):
            continue
        overloads = member(described, use.holder, use.name)
        if overloads is None:  # a type of Python's own
            continue
        counted += 1
        assert any(takes(o, use.positional, use.keywords) for o in overloads), (use, overloads)
    assert counted > 20


def test_no_file_uses_tensorrt_besides_those_that_are_read():
    known = set(uses.TENSORRT) | {"plugins/qdp.py"}
    assert uses.files_that_import("tensorrt") | uses.files_that_import("tensorrt_rtx") <= known
    for name, holders in uses.TENSORRT.items():
        assert set(uses.untyped(name)) <= set(holders) | NOT_TENSORRTS, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", sorted(STAND_INS))
def test_a_stand_in_of_tensorrt_has_no_name_and_no_parameter_that_the_vendor_s_has_not(
    backend, name
):
    kind, described = STAND_INS[name], real.described(backend)
    if name in NOT_THE_VENDORS:
        kind = next((base for base in kind.__mro__ if base.__name__ in described), None)
        if kind is None:
            return
    elif (uses.MODULE, name) in RTX_ONLY or name == "IRuntimeCache":
        assert name in real.described("tensorrt_rtx")
        if backend == "tensorrt":
            return
    for own, value in vars(STAND_INS[name]).items():
        if own.startswith("_") or (backend == "tensorrt" and (kind.__name__, own) in RTX_ONLY):
            continue
        if (kind.__name__, own) in FORMER or own in PRESENT_NOWHERE:
            continue
        assert own in described[kind.__name__], f"{backend}.{kind.__name__} has no {own}"
        overloads = described[kind.__name__][own]
        if inspect.isfunction(value) and overloads is not None:
            given = [p for p in inspect.signature(value).parameters if p != "self"]
            assert any(
                o["parameters"][: len(given)] == given and o["required"] <= len(given)
                for o in overloads
            ), (own, given, overloads)


# A member of an execution context that newer releases hide: the stand-in of an old one has it.
PRESENT_NOWHERE = {"device_memory"}


def test_the_vendor_s_base_classes_take_ours():
    trt = real.package("tensorrt_rtx")
    log = binding._make_log(trt)
    log.logger.log(trt.ILogger.ERROR, "first\nline")
    log.logger.log(trt.ILogger.ERROR, "second")
    assert log.take() == "first line"
    assert binding.Binding("tensorrt_rtx").version == trt.__version__


def test_cuda_bindings_have_all_functions_and_members_that_the_product_uses():
    cuda, seen = real.package("cuda.bindings.runtime"), list(uses.cuda_uses())
    assert len(seen) > 40
    for use in seen:
        holder = cuda if use.holder == uses.MODULE else getattr(cuda, use.holder)
        assert hasattr(holder, use.name), use
        if use.positional is not None:
            assert len(inspect.signature(getattr(holder, use.name)).parameters) == use.positional, (
                use
            )


@pytest.mark.parametrize("stand_in", [cuda_bindings.FakeCuda, cuda_bindings.ImmediateCuda])
def test_the_stand_ins_of_cuda_bindings_take_what_cuda_bindings_take(stand_in):
    cuda = real.package("cuda.bindings.runtime")
    for name in cuda_bindings.functions(stand_in):
        given = list(inspect.signature(getattr(stand_in, name)).parameters)[1:]
        assert len(given) == len(inspect.signature(getattr(cuda, name)).parameters), name


def test_the_enumerations_of_cuda_bindings_have_these_values():
    cuda = real.package("cuda.bindings.runtime")
    for name, stand_in in cuda_bindings.ENUMERATIONS.items():
        for item in stand_in:
            assert getattr(getattr(cuda, name), item.name).value == item.value, item
    assert cuda.cudaStreamNonBlocking == cuda_bindings.STREAM_NON_BLOCKING


def test_cuda_core_has_all_names_that_the_product_uses():
    core = real.package("cuda.core")
    classes = {name for name in dir(core) if inspect.isclass(getattr(core, name))}
    seen = list(uses.cuda_core_uses(classes))
    assert len(seen) > 8
    for use in seen:
        if use.name == "experimental":  # where the names were in its first versions
            continue
        holder = core if use.holder == uses.MODULE else getattr(core, use.holder)
        assert hasattr(holder, use.name), use
        held = getattr(holder, use.name)
        if use.positional is None or inspect.isclass(held):
            continue
        signature = inspect.signature(held)
        bound = holder is not core and not isinstance(
            inspect.getattr_static(holder, use.name), staticmethod
        )
        signature.bind(*[None] * (use.positional + bound), **dict.fromkeys(use.keywords))
    text = inspect.getdoc(core.LaunchConfig)
    for name in ("grid", "block"):
        assert re.search(rf"\b{name}: ", text.splitlines()[0])


@pytest.mark.parametrize("name", ["Device", "ObjectCode", "LaunchConfig", "Kernel"])
def test_the_stand_in_of_cuda_core_has_no_name_that_cuda_core_has_not(name):
    core, stand_in = real.package("cuda.core"), getattr(cuda_core, name)
    vendor = getattr(core, name)
    for own, value in vars(stand_in).items():
        if own.startswith("_"):
            continue
        assert hasattr(vendor, own), own
        if inspect.isfunction(value):
            wanted = list(inspect.signature(getattr(vendor, own)).parameters)
            assert list(inspect.signature(value).parameters) == wanted, own


def test_tensorrt_s_python_plugins_have_all_names_that_the_product_uses():
    described = real.described("tensorrt.plugin")
    tree = ast.parse((uses.ROOT / "plugins" / "qdp.py").read_text(encoding="utf-8"))
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "plugin"
    }
    assert len(names) > 10
    assert names <= set(described) | set(described[""])
    params = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "launch"
    }
    assert params <= set(described["KernelLaunchParams"]) | {"grid_x", "block_x"}
