"""Engines that TensorRT for RTX really builds, without a GPU. None of them is run."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
import torch

from csd.export.cli import main
from csd.export.engines.builder import open_builder
from csd.export.onnx.graphs import model_graphs
from csd.export.onnx.precision import write_variant
from csd.export.onnx.to_onnx import export_onnx
from csd.export.profiles import Limits, default_profiles
from csd.export.progress import silent
from csd.models import MAR
from csd.runtime import Bundle, MARConfig
from csd.runtime.bundle.manifest import GraphSpec, TensorSpec
from csd.runtime.config import PRESETS
from csd.runtime.errors import ExportError

from ...helpers import failure, run_python
from ...kept import exported_once
from ...vendor import real
from ...vendor.tensorrt.files import broken_copy

tensorrt_rtx = real.package("tensorrt_rtx", whole_file=True)

# Every device, with the graphs that are left out for it: backbones take a second or two each.
_BACKBONES = {"target.backbone", "draft.backbone"}
TARGETS = {
    75: set(),
    80: _BACKBONES,
    86: {"target.backbone"},
    89: _BACKBONES,
    120: {"draft.backbone"},
    121: _BACKBONES,
}


def build(builder, path, spec, target, label):
    with silent(label) as step:
        engine = builder.build(path, spec, target, label, step)
    print(f"{label} for {target.name}: {memoryview(engine).nbytes / 1e6:.2f} MB")
    assert memoryview(engine).nbytes > 10_000
    return engine


@pytest.fixture(scope="module")
def zoo_variants(zoo_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("variants")
    graphs = Bundle.open(zoo_bundle).manifest.graphs
    files = {
        name: write_variant(
            zoo_bundle / spec.onnx_file, folder / f"{name}.fp16.onnx", "fp16"
        )[0]
        for name, spec in graphs.items()
    }  # fmt: skip
    return {name: (files[name], spec) for name, spec in graphs.items()}


@pytest.mark.parametrize("sm", TARGETS)
def test_graphs_of_the_zoo_build_for_each_device_of_rtx(sm, zoo_variants):
    builder = open_builder("tensorrt_rtx", [sm], ["fp16"])
    (target,) = builder.targets
    assert TARGETS[sm] < set(zoo_variants)
    for name in set(zoo_variants) - TARGETS[sm]:
        path, spec = zoo_variants[name]
        build(builder, path, spec, target, f"{name} [fp16]")


@pytest.fixture(scope="module")
def built_bundle(gpu_bundle, tmp_path_factory):
    """The bundle with portable engines, built where PyTorch and ONNX cannot be imported."""

    def make(folder):
        bundle = shutil.copytree(gpu_bundle, folder / "bundle")
        blocked = ("torch", "onnx", "onnxscript", "onnxruntime")
        code = (
            f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); "
            "from csd.export.cli import main; raise SystemExit(main())"
        )
        done = run_python(code, "--rebuild", bundle, "--backend", "tensorrt_rtx")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        (folder / "export.printed").write_text(done.stdout, encoding="utf-8")

    folder = exported_once(tmp_path_factory, "built", make)
    return folder / "bundle", (folder / "export.printed").read_text(encoding="utf-8")


def test_a_bundle_gets_engines_of_all_its_graphs_without_pytorch(built_bundle):
    bundle, shown = built_bundle
    manifest = Bundle.open(bundle).manifest
    print(shown)
    assert {engine.graph for engine in manifest.engines} == set(manifest.graphs)
    assert len(shown.splitlines()) == 10
    for engine in manifest.engines:
        assert engine.library == tensorrt_rtx.__version__
        assert f"{engine.graph} [{engine.precision}] for tensorrt_rtx portable: " in shown
        assert engine.size > 10_000


def test_the_library_finds_the_engines_well_formed(built_bundle):
    bundle, _ = built_bundle

    class Quiet(tensorrt_rtx.ILogger):  # that there is no device is no news
        def log(self, severity, message):
            del severity, message

    runtime = tensorrt_rtx.Runtime(Quiet())
    malformed = tensorrt_rtx.EngineInvalidityDiagnostics.MALFORMED_ENGINE
    for engine in Bundle.open(bundle).manifest.engines:
        content = (bundle / engine.file).read_bytes()
        assert not runtime.get_engine_validity(content)[1] & int(malformed), engine.file
        assert runtime.get_engine_validity(content[100:])[1] & int(malformed)


def test_a_second_rebuild_keeps_what_the_library_built(built_bundle, capsys):
    bundle, _ = built_bundle
    before = (bundle / "manifest.json").read_bytes()
    assert main(["--rebuild", str(bundle), "--backend", "tensorrt_rtx"]) == 0
    *lines, _ = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert all(line.endswith(": kept") for line in lines)
    assert (bundle / "manifest.json").read_bytes() == before


def test_bf16_and_fp32_engines_build(gpu_copy, capsys):
    argv = ["--rebuild", gpu_copy, "--backend", "tensorrt_rtx", "--precision", "fp32,bf16"]
    assert main([str(part) for part in [*argv, "--sm", "120"]]) == 0
    print(capsys.readouterr().out)
    engines = Bundle.open(gpu_copy).manifest.engines
    assert [e.precision for e in engines].count("bf16") == 5
    assert [e.precision for e in engines].count("fp32") == 9
    assert {e.compute_capabilities for e in engines} == {("12.0",)}


def test_a_wider_profile_renews_the_engines_of_other_targets_and_precisions(gpu_copy, capsys):
    argv = ["--rebuild", str(gpu_copy), "--backend", "tensorrt_rtx"]
    assert main([*argv, "--precision", "bf16", "--sm", "86"]) == 0
    before = Bundle.open(gpu_copy).manifest.engines
    capsys.readouterr()
    assert main([*argv, "--precision", "fp16", "--profile", "decoder.B=1:1:2"]) == 0
    shown = capsys.readouterr().out
    print(shown)
    lines = [line for line in shown.splitlines() if line.startswith("decoder ")]
    assert len(lines) == 2
    assert lines[0].startswith("decoder [fp16] for tensorrt_rtx portable: ")
    assert lines[1].startswith("decoder [bf16] for tensorrt_rtx sm86: ")
    assert lines[1].endswith("built: the profile changed")
    after = {(e.graph, e.precision): e for e in Bundle.open(gpu_copy).manifest.engines}
    for engine in before:
        renewed = after[engine.graph, engine.precision]
        assert (renewed == engine) == (engine.graph != "decoder")
        assert renewed.compute_capabilities == ("8.6",)


@pytest.mark.slow
def test_the_graphs_of_mar_base_build_at_its_widths_with_one_block_each(tmp_path):
    """All blocks of a part are alike; at full depth (not tested) only the export takes long."""
    shape = {"encoder_depth": 1, "decoder_depth": 1, "diffloss_d": 1}
    config = MARConfig.from_dict({**PRESETS["mar_base"].to_dict(), **shape})
    torch.manual_seed(0)
    model = MAR(config).eval()
    for weight in model.parameters():  # equal ones would become one in the file
        torch.nn.init.normal_(weight, std=0.02)
    builder = open_builder("tensorrt_rtx", [120], ["fp16"])
    graphs = model_graphs("target", model, head_chain=True)
    dimensions = {graph.name: graph.dimensions for graph in graphs}
    profiles = default_profiles(dimensions, {"target": model.config}, Limits(8, 32, 100))
    assert len(graphs) == 4
    for graph in graphs:
        path = export_onnx(graph, tmp_path / f"{graph.name}.onnx")[0]
        typed, *_ = write_variant(path, tmp_path / f"{graph.name}.fp16.onnx", "fp16")
        inputs = tuple(TensorSpec(name, "", shape) for name, shape in graph.inputs.items())
        spec = GraphSpec({typed.name: ""}, inputs, (), profiles[graph.name])
        engine = build(builder, typed, spec, builder.targets[0], f"{graph.name} [fp16]")
        assert memoryview(engine).nbytes > 0.9 * typed.stat().st_size


def test_a_node_that_the_parser_does_not_read_is_named(tiny_bundle, tmp_path):
    builder = open_builder("tensorrt_rtx", [86], ["fp16"])
    spec = Bundle.open(tiny_bundle).manifest.graphs["target.head_step"]
    bad = broken_copy(tiny_bundle / spec.onnx_file, tmp_path / "bad.onnx")
    with pytest.raises(ExportError) as error:
        build(builder, bad, spec, builder.targets[0], "target.head_step [fp16] for sm86")
    print(error.value)
    assert "target.head_step [fp16] for sm86 cannot be read at node find_places" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_graph_is_one_line(tiny_bundle, tmp_path):
    builder = open_builder("tensorrt_rtx", [86], ["fp16"])
    spec = Bundle.open(tiny_bundle).manifest.graphs["target.head_step"]
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes((tiny_bundle / spec.onnx_file).read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"head_step cannot be read \(.+\): give another --prec"):
        build(builder, damaged, spec, builder.targets[0], "target.head_step")


def test_ctrl_c_stops_a_build_of_the_library(tiny_bundle, capfd):
    builder = open_builder("tensorrt_rtx", [86], ["fp32"])
    spec = Bundle.open(tiny_bundle).manifest.graphs["target.backbone"]
    told = []

    def press(*progress):
        told.append(progress)
        os.kill(os.getpid(), signal.SIGINT)

    path = tiny_bundle / spec.onnx_file
    with pytest.raises(KeyboardInterrupt):
        builder.build(path, spec, builder.targets[0], "target.backbone", press)
    assert told
    assert capfd.readouterr().err == ""


def test_bf16_for_turing_would_fail_and_is_refused_before(gpu_bundle, tmp_path, capsys):
    """The check that `open_builder` makes is the library's own limit."""
    builder = open_builder("tensorrt_rtx", [75], ["fp16"])
    spec = Bundle.open(gpu_bundle).manifest.variants["bf16"]["target.head_step"]
    with pytest.raises(ExportError, match=r"cannot be built \(.*sm75.*b16"):
        build(builder, gpu_bundle / spec.onnx_file, spec, builder.targets[0], "head_step [bf16]")
    argv = ["--rebuild", gpu_bundle, "--backend", "tensorrt_rtx", "--sm", "86,75"]
    message = failure(main, [*argv, "--precision", "bf16"], capsys)
    assert message.startswith("bf16 needs compute capability 8.0 or later with tensorrt_rtx, sm75")


@pytest.mark.parametrize("sm", ["87", "90", "86,110"])
def test_devices_that_rtx_lacks_are_one_line_with_those_it_has(sm, gpu_bundle, capsys):
    argv = ["--rebuild", gpu_bundle, "--backend", "tensorrt_rtx", "--sm", sm]
    message = failure(main, argv, capsys)
    wrong = sm.split(",")[-1]
    assert f"sm is {wrong}: tensorrt_rtx {tensorrt_rtx.__version__} builds for 75, 80," in message
