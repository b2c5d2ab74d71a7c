from __future__ import annotations

import importlib
import io
import os
import signal
import sys

import pytest
from rich.console import Console

from csd.export.engines import builder as tensorrt_builder
from csd.export.engines.builder import open_builder
from csd.export.progress import shown_progress, silent
from csd.runtime import Bundle
from csd.runtime.command.frame import run_framed
from csd.runtime.device import DeviceInfo, current_platform
from csd.runtime.errors import BackendError, ExportError

from ...vendor.tensorrt.builder import FakeLibrary
from ...vendor.tensorrt.files import broken_copy


def be_device(monkeypatch, capability):
    device = DeviceInfo("GPU", capability, current_platform(), "12.6", 8 << 30)
    monkeypatch.setattr(tensorrt_builder, "find_device", lambda: device)


@pytest.fixture
def orin(monkeypatch):
    be_device(monkeypatch, "8.7")


def install(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library.__name__, library)
    return library


def build(builder, bundle, graph="target.head_step", path=None, step=None):
    spec = Bundle.open(bundle).manifest.graphs[graph]
    path = bundle / spec.onnx_file if path is None else path
    with silent(graph) as quiet:
        return builder.build(path, spec, builder.targets[0], graph, step or quiet)


@pytest.mark.parametrize(
    ("version", "flag", "flags"), [("10.3.0", True, 2), ("11.1.0", True, 2), ("12.0", False, 0)]
)
def test_tensorrt_builds_strongly_typed_for_its_own_device(
    version, flag, flags, tiny_bundle, monkeypatch, orin
):
    library = install(monkeypatch, FakeLibrary("tensorrt", version, flag=flag))
    builder = open_builder("tensorrt", (), ["fp16", "bf16"])
    assert builder.version == version
    assert [(t.name, t.compute_capabilities) for t in builder.targets] == [("sm87", ("8.7",))]
    assert bytes(build(builder, tiny_bundle))
    (made,) = library.builds
    assert made["flags"] == flags
    assert made["cleared"] == ["TF32"]
    assert made["set"] == []
    assert made["capabilities"] == []
    (shapes,) = made["shapes"]
    profile = Bundle.open(tiny_bundle).manifest.graphs["target.head_step"].profile
    rows, steps, count = (profile[d] for d in ("R", "S", "N"))
    assert shapes["x"] == [[n, 16] for n in rows]
    assert shapes["step"] == [[n] for n in rows]
    assert shapes["mods"] == [[s, n, 11 * 96] for s, n in zip(steps, count, strict=True)]


def test_tensorrt_rtx_builds_one_portable_engine_or_one_for_each_device(tiny_bundle, monkeypatch):
    library = install(monkeypatch, FakeLibrary("tensorrt_rtx", "1.7.1.116"))
    portable = open_builder("tensorrt_rtx", (), ["fp16"])
    assert [t.name for t in portable.targets] == ["portable"]
    assert portable.targets[0].compute_capabilities == ("8.0", "8.6", "8.9", "12.0")
    build(portable, tiny_bundle)
    assert library.builds[0]["capabilities"] == ["SM80", "SM86", "SM89", "SM120"]
    named = open_builder("tensorrt_rtx", (75, 121, 75), ["fp16"])
    assert [(t.name, t.compute_capabilities) for t in named.targets] == [
        ("sm75", ("7.5",)), ("sm121", ("12.1",)),
    ]  # fmt: skip
    build(named, tiny_bundle)
    assert library.builds[1]["capabilities"] == ["SM75"]


@pytest.mark.parametrize("sm", [87, 90, 110, 8])
def test_a_device_that_rtx_does_not_know_is_one_line_with_those_it_knows(sm, monkeypatch):
    install(monkeypatch, FakeLibrary("tensorrt_rtx", "1.7"))
    message = f"sm is {sm}: tensorrt_rtx 1.7 builds for 75, 80, 86, 89, 120, 121"
    with pytest.raises(ExportError, match=message):
        open_builder("tensorrt_rtx", (86, sm), ["fp16"])


def test_tensorrt_builds_for_no_other_device(monkeypatch, orin):
    install(monkeypatch, FakeLibrary())
    assert open_builder("tensorrt", (87,), ["fp16"]).targets[0].name == "sm87"
    with pytest.raises(ExportError, match=r"sm is 89: tensorrt builds for the device .* here 87"):
        open_builder("tensorrt", (89,), ["fp16"])


def test_precisions_that_turing_lacks_are_one_line(monkeypatch):
    install(monkeypatch, FakeLibrary("tensorrt_rtx"))
    for precision in ("bf16", "fp32"):
        with pytest.raises(ExportError) as error:
            open_builder("tensorrt_rtx", (86, 75), ["fp16", precision])
        assert str(error.value) == (
            f"{precision} needs compute capability 8.0 or later with tensorrt_rtx, sm75 is 7.5: "
            "give --precision fp16, or leave it out of --sm"
        )
    open_builder("tensorrt_rtx", (75,), ["fp16"])
    install(monkeypatch, FakeLibrary())
    be_device(monkeypatch, "7.5")
    open_builder("tensorrt", (), ["fp32"])
    with pytest.raises(ExportError, match=r"bf16 needs .* sm75 is 7\.5"):
        open_builder("tensorrt", (), ["bf16"])


@pytest.mark.parametrize(
    ("backend", "remedy"),
    [
        ("tensorrt_rtx", "tensorrt-rtx cuda-bindings cuda-core"),
        ("tensorrt", "pip install tensorrt cuda-bindings cuda-core"),
    ],
)
def test_a_missing_library_is_one_line_with_what_installs_it(backend, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(ExportError) as error:
        open_builder(backend, (), ["fp16"])
    assert str(error.value).startswith(f"{backend} is not installed (")
    assert remedy in str(error.value)


def test_a_library_that_lacks_a_shared_library_says_which(monkeypatch):
    def broken(name):
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ExportError, match=r"cannot be loaded \(libcudart\.so\.13.*tensorrt-rtx"):
        open_builder("tensorrt_rtx", (), ["fp16"])


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_what_a_parser_does_not_read_names_graph_node_and_reason(
    name, tiny_bundle, tmp_path, monkeypatch, orin
):
    install(monkeypatch, FakeLibrary(name))
    builder = open_builder(name, (), ["fp16"])
    bad = broken_copy(tiny_bundle / "target_head_step.onnx", tmp_path / "bad.onnx")
    with pytest.raises(ExportError) as error:
        build(builder, tiny_bundle, path=bad)
    assert str(error.value).startswith(
        "target.head_step cannot be read at node find_places, NonZero (Assertion failed: no imp"
    )
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes((tiny_bundle / "target_head_step.onnx").read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"head_step cannot be read \(Failed to parse ONNX model"):
        build(builder, tiny_bundle, path=damaged)


def test_what_a_builder_does_not_build_has_its_first_error(tiny_bundle, monkeypatch):
    refusal = "Error Code 1: Myelin (Cannot\ncompile for sm86)"
    install(monkeypatch, FakeLibrary("tensorrt_rtx", refusal=refusal))
    with pytest.raises(ExportError) as error:
        build(open_builder("tensorrt_rtx", (86,), ["fp16"]), tiny_bundle)
    assert str(error.value).startswith(
        "target.head_step cannot be built (Error Code 1: Myelin (Cannot compile for sm86)): give "
    )


def test_a_builder_without_a_device_says_why(tiny_bundle, monkeypatch, orin):
    install(monkeypatch, FakeLibrary(device=False))
    builder = open_builder("tensorrt", (), ["fp16"])
    with pytest.raises(ExportError, match=r"cannot be started \(CUDA initialization failure"):
        build(builder, tiny_bundle)


def test_inputs_that_are_not_the_manifests_are_one_line(tiny_bundle, monkeypatch):
    install(monkeypatch, FakeLibrary("tensorrt_rtx"))
    builder = open_builder("tensorrt_rtx", (), ["fp16"])
    with pytest.raises(ExportError, match=r"its inputs are \['latents'\], the manifest's \['x', "):
        build(builder, tiny_bundle, path=tiny_bundle / "decoder.onnx")


@pytest.mark.parametrize("loops", [False, True])
def test_engines_without_loops_allocate_nothing_so_that_calls_can_be_recorded(
    loops, tiny_bundle, monkeypatch
):
    library = install(monkeypatch, FakeLibrary("tensorrt_rtx", loops=loops))
    build(open_builder("tensorrt_rtx", (), ["fp16"]), tiny_bundle)
    assert library.builds[0]["set"] == ([] if loops else ["REQUIRE_USER_ALLOCATION"])


@pytest.mark.parametrize("monitor", [True, False])
def test_progress_is_told_where_the_library_tells_it(monitor, tiny_bundle, monkeypatch):
    install(monkeypatch, FakeLibrary("tensorrt_rtx", monitor=monitor))
    seen = []
    builder = open_builder("tensorrt_rtx", (), ["fp16"])
    build(builder, tiny_bundle, step=lambda *told: seen.append(told))
    told = [("Building Engine", 0, 2), ("Building Engine", 1, 2)]
    assert seen == (told if monitor else [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_build_and_is_told_as_what_it_was(
    number, tiny_bundle, monkeypatch, capsys
):
    library = install(monkeypatch, FakeLibrary("tensorrt_rtx"))
    builder = open_builder("tensorrt_rtx", (), ["fp16"])
    during = []

    def stop(*_):
        during.append(signal.getsignal(number))
        os.kill(os.getpid(), number)

    def body():
        before = signal.getsignal(number)
        try:
            build(builder, tiny_bundle, step=stop)
        finally:
            assert signal.getsignal(number) is before
            assert during[0] is not before

    assert run_framed("csd-export", body) == 128 + number
    assert "interrupted" in capsys.readouterr().err
    assert len(library.builds) == 1


def test_a_machine_without_a_device_is_told_to_build_there(monkeypatch):
    def missing():
        raise BackendError("no CUDA driver here (libcuda.so.1 is not found): install it")

    install(monkeypatch, FakeLibrary())
    monkeypatch.setattr(tensorrt_builder, "find_device", missing)
    message = r"none is here \(no CUDA driver here \(libcuda.so.1 is not found\)\): copy the bundle"
    with pytest.raises(ExportError, match=message):
        open_builder("tensorrt", (), ["fp16"])


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_shown_on_a_terminal_only(terminal):
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=terminal)
    with shown_progress(console)("head_step [fp16]") as step:
        step("Building Engine", 1, 2)
    assert ("head_step [fp16]: Building Engine" in out.getvalue()) == terminal
    assert bool(out.getvalue()) == terminal
