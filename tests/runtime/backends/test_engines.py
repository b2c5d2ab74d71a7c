from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path

import pytest

from csd.runtime import BackendError
from csd.runtime.backends.engines import (
    EngineChoice,
    Machine,
    choose_engines,
    graph_spec,
    renewal_command,
)
from csd.runtime.bundle.manifest import (
    EngineSpec,
    GraphSpec,
    Manifest,
    TensorSpec,
    needed_graphs,
)
from csd.runtime.device import DeviceInfo, current_platform, find_device, find_devices

from ...helpers import tiny_config

FOLDER = Path("there")
ORIN = DeviceInfo("Orin", "8.7", "linux-aarch64", "12.6", 8 << 30)
HERE = Machine("tensorrt", "10.3.0", ORIN)
SPEC = GraphSpec({"x.onnx": "0"}, (), (TensorSpec("mods", "float32", ("S",)),), {"S": (1, 2, 3)})
HEAD = ("head_modulation", "head_step", "backbone")


def engine(graph, precision="fp16", **changes):
    values = EngineSpec(
        graph, "tensorrt", precision, f"{graph}.{precision}", "0", 1, "10.3.0", "linux-aarch64",
        ("8.7",), 1.0, {},
    )  # fmt: skip
    return dataclasses.replace(values, **changes)


def bundle(engines, models=("target",), decoder=False):
    graphs = {f"{role}.{name}": SPEC for role in models for name in HEAD}
    return Manifest(
        "x", {role: tiny_config(role) for role in models}, 20, 8, 32,
        {**graphs, "decoder": SPEC} if decoder else graphs,
        variants={"fp16": {"target.backbone": SPEC}}, engines=tuple(engines),
    )  # fmt: skip


def model(precision, role="target", **changes):
    return [engine(f"{role}.{name}", precision, **changes) for name in HEAD]


def choose(engines, precision=None, machine=HERE, **kwargs):
    manifest = bundle(engines, **kwargs)
    return choose_engines(manifest, FOLDER, needed_graphs(manifest), machine, precision)


def refused(*args, **kwargs):
    with pytest.raises(BackendError) as error:
        choose(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_graph_that_is_opened_besides_has_the_precision_of_its_model():
    besides = [engine("target.head_chain", precision) for precision in ("fp16", "fp32")]
    manifest = bundle([*model("fp32"), *besides])
    chain = {**manifest.graphs, "target.head_chain": SPEC}
    manifest = dataclasses.replace(manifest, graphs=chain)
    for precision in (None, "fp32"):
        choice = EngineChoice(manifest, FOLDER, HERE, precision)
        choice.require(["target.backbone", "target.head_modulation", "target.head_step"])
        assert choice.of("target.head_chain").precision == "fp32"
        assert choice.chosen["target.backbone"].precision == "fp32"
    alone = EngineChoice(manifest, FOLDER, HERE)
    assert alone.of("target.head_chain").precision == "fp16"


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (("fp32", "bf16", "fp16"), "fp16"),
        (("fp32", "bf16"), "bf16"),
        (("fp32",), "fp32"),
    ],
)
def test_the_fastest_precision_is_taken(there, chosen):
    found = choose([one for precision in there for one in model(precision)])
    assert set(found) == {f"target.{name}" for name in HEAD}
    assert {one.precision for one in found.values()} == {chosen}


def test_a_model_is_run_in_one_precision():
    engines = [*model("fp16")[:2], *model("fp32")]
    assert {one.precision for one in choose(engines).values()} == {"fp32"}
    assert "not of one precision: csd-export --rebuild there" in refused(
        [*model("fp16")[:2], *model("fp32")[2:]]
    )


def test_models_and_the_decoder_may_differ_in_precision():
    engines = [*model("fp16"), *model("fp32", "draft"), engine("decoder", "fp32")]
    found = choose(engines, models=("target", "draft"), decoder=True)
    assert found["target.head_step"].precision == "fp16"
    assert {found["draft.head_step"].precision, found["decoder"].precision} == {"fp32"}


def test_a_precision_that_was_asked_for_is_kept_by_the_models():
    engines = [*model("fp16"), *model("fp32"), engine("decoder", "fp16")]
    found = choose(engines, "fp32", decoder=True)
    assert found["target.backbone"].precision == "fp32"
    assert found["decoder"].precision == "fp16"
    assert refused(engines, "bf16", decoder=True) == (
        "bundle there has no bf16 engines of target for this machine: give --precision fp16, or "
        "csd-export --rebuild there --backend tensorrt --precision bf16"
    )


def test_a_mismatch_names_both_sides_and_the_command():
    said = refused(model("fp16", library="11.4.1", compute_capabilities=("8.9", "12.0")))
    assert said == (
        "engine of target.backbone built by TensorRT 11.4.1 for sm_89, sm_120; this machine has "
        "10.3.0 on sm_87: csd-export --rebuild there --backend tensorrt"
    )
    said = refused(model("fp16", platform="linux-x86_64"))
    assert "for sm_87 on linux-x86_64; this machine has 10.3.0 on sm_87, linux-aarch64" in said


@pytest.mark.parametrize(
    "change",
    [
        {"library": "10.3.1"}, {"platform": "linux-x86_64"}, {"compute_capabilities": ("8.6",)},
        {"backend": "tensorrt_rtx"},
    ],
)  # fmt: skip
def test_an_engine_of_another_machine_is_passed_over(change):
    engines = [*model("fp16", **change), *model("fp32")]
    assert {one.precision for one in choose(engines).values()} == {"fp32"}


def test_the_mismatch_that_is_named_is_of_the_nearest_engine():
    far = model("fp32", library="9.0.0", compute_capabilities=("7.5",))
    near = model("fp32", library="10.2.0")
    assert "built by TensorRT 10.2.0 for sm_87; this machine has 10.3.0" in refused([*far, *near])


@pytest.mark.parametrize("own_first", [True, False])
def test_an_engine_for_fewer_devices_is_preferred(own_first):
    own, portable = model("fp16"), model("fp16", compute_capabilities=("8.6", "8.7", "12.0"))
    found = choose([*own, *portable] if own_first else [*portable, *own])
    assert {one.compute_capabilities for one in found.values()} == {("8.7",)}
    faster = choose([*model("fp32"), *portable])
    assert {one.precision for one in faster.values()} == {"fp16"}


def test_the_command_keeps_the_precision_that_was_asked_for():
    assert refused(model("fp32", library="9.0"), "fp32").endswith(
        "csd-export --rebuild there --backend tensorrt --precision fp32"
    )
    assert refused(model("fp32")[:2], "fp32").endswith("--backend tensorrt --precision fp32")


def test_an_engine_is_built_again_in_its_precision_and_operators_in_any():
    command = "csd-export --rebuild there --backend tensorrt"
    assert renewal_command(FOLDER, engine("decoder", "bf16")) == f"{command} --precision bf16"
    assert renewal_command(FOLDER, engine("ops.accept", "fp32")) == command


def test_commands_for_rtx_name_a_device_that_the_portable_engine_may_lack():
    one = engine("decoder", "fp16", backend="tensorrt_rtx", compute_capabilities=("7.5",))
    assert renewal_command(FOLDER, one).endswith("tensorrt_rtx --precision fp16 --sm 75")
    both = dataclasses.replace(one, compute_capabilities=("8.6", "8.9"))
    assert renewal_command(FOLDER, both).endswith("tensorrt_rtx --precision fp16")
    rtx = Machine("tensorrt_rtx", "1.7", dataclasses.replace(ORIN, compute_capability="12.1"))
    there = {"backend": "tensorrt_rtx", "library": "1.7", "compute_capabilities": ("8.6", "12.0")}
    assert refused(model("fp16", **there), machine=rtx).endswith("tensorrt_rtx --sm 121")
    old = {**there, "library": "1.6", "compute_capabilities": ("12.1",)}
    assert refused(model("fp16", **old), machine=rtx).endswith("tensorrt_rtx --sm 121")
    old["compute_capabilities"] = ("12.0", "12.1")
    assert refused(model("fp16", **old), machine=rtx).endswith("--backend tensorrt_rtx")


def test_engines_that_are_not_there_are_asked_for():
    none = "bundle there has no TensorRT engines: csd-export --rebuild there --backend tensorrt"
    assert refused([]) == none
    assert refused(model("fp16", backend="tensorrt_rtx")) == none
    assert "no TensorRT engine of target.backbone: csd-export" in refused(model("fp16")[:2])
    rtx = Machine("tensorrt_rtx", "1.7", ORIN)
    assert "no TensorRT-RTX engines: csd-export --rebuild there --backend tensorrt_rtx" in refused(
        model("fp16"), machine=rtx
    )


def test_the_graph_of_an_engine_is_that_of_its_precision():
    manifest = bundle([])
    other = dataclasses.replace(SPEC, profile={"S": (1, 1, 1)})
    manifest = dataclasses.replace(manifest, variants={"fp16": {"target.backbone": other}})
    assert graph_spec(manifest, "target.backbone", "fp16") is other
    assert graph_spec(manifest, "target.backbone", "fp32") is SPEC
    assert graph_spec(manifest, "target.head_step", "fp16") is SPEC


class Driver:
    """A driver's library, as ctypes sees it."""

    def __init__(self, devices=1, status=0):
        self.devices, self.status = devices, status

    def cuInit(self, flags):  # noqa: N802
        assert flags == 0
        return self.status

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = self.devices
        return 0

    def cuDeviceGet(self, handle, ordinal):  # noqa: N802
        handle._obj.value = 7
        return 0 if ordinal < self.devices else 101

    def cuDeviceGetName(self, name, size, handle):  # noqa: N802
        assert (size, handle.value) == (256, 7)
        name.value = b"Orin (nvgpu)"
        return 0

    def cuDeviceGetAttribute(self, value, attribute, handle):  # noqa: N802
        value._obj.value = {75: 8, 76: 7}[attribute]
        return 0

    def cuDeviceTotalMem_v2(self, size, handle):  # noqa: N802
        assert isinstance(size._obj, ctypes.c_size_t)
        size._obj.value = 16 << 30
        return 0

    def cuDriverGetVersion(self, version):  # noqa: N802
        version._obj.value = 12060
        return 0


def test_the_driver_tells_what_the_device_is():
    found = find_device(lambda name: Driver())
    assert found == DeviceInfo("Orin (nvgpu)", "8.7", current_platform(), "12.6", 16 << 30)
    assert found.architecture == "sm_87"


def test_the_driver_tells_of_every_device():
    assert find_devices(lambda name: Driver(devices=3)) == (find_device(lambda name: Driver()),) * 3


@pytest.mark.parametrize("find", [find_device, find_devices])
def test_a_machine_without_a_driver_or_a_device_says_so(find):
    def none(name):
        raise OSError("not found")

    with pytest.raises(BackendError, match=r"no CUDA driver here .*: install NVIDIA's driver"):
        find(none)
    for driver in (Driver(devices=0), Driver(status=100)):
        with pytest.raises(BackendError, match=r"finds no device \(error 10\d\): check nvidia-smi"):
            find(lambda name, driver=driver: driver)


@pytest.mark.gpu
def test_the_device_of_this_machine_is_found():
    try:
        found = find_device()
    except BackendError as error:
        pytest.skip(str(error))
    major, minor = found.compute_capability.split(".")
    assert int(major) >= 5
    assert 0 <= int(minor) <= 9
    assert found.memory > 1 << 28
