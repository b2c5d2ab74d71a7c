"""When engines are built, kept and dropped, with a stand-in for the library."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from csd.export.cli import main
from csd.export.destination import new_bundle
from csd.export.engines import builder as tensorrt_builder
from csd.export.engines import condition
from csd.export.engines import update as engines
from csd.export.engines.fingerprint import PARTS, fingerprint, first_difference, short_name
from csd.export.engines.update import key_of
from csd.runtime import Bundle
from csd.runtime.bundle.manifest import (
    SCHEMA_VERSION,
    GraphSpec,
    Manifest,
    TensorSpec,
    file_sha256,
)
from csd.runtime.command.files import only_writer
from csd.runtime.device import DeviceInfo, current_platform
from csd.runtime.errors import ExportError

from ...helpers import edit_manifest, failure, leftovers, run_python
from ...vendor.tensorrt.builder import FakeLibrary

NETWORKS = ["target.backbone", "target.head_modulation", "target.head_step", "target.head_chain",
            "decoder"]  # fmt: skip
OPERATORS = ["ops.accept", "ops.resample", "ops.verify_window", "ops.transition"]
ORIN = DeviceInfo("Orin", "8.7", current_platform(), "12.6", 8 << 30)


@pytest.fixture
def library(monkeypatch):
    library = FakeLibrary("tensorrt_rtx", "1.7.1.116")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
    return library


@pytest.fixture
def rebuild(gpu_copy, library, capsys):
    """Run `csd-export --rebuild` on a copy of the bundle and return its lines."""

    def run(*options):
        capsys.readouterr()
        argv = ["--rebuild", gpu_copy, "--backend", "tensorrt_rtx", *options]
        assert main([str(part) for part in argv]) == 0
        *lines, last = capsys.readouterr().out.splitlines()
        assert last == f"engines written to {gpu_copy}"
        return lines

    return run


def lines_with(lines, word):
    return sorted(line.split(" for ")[0] for line in lines if word in line)


def test_a_rebuild_adds_an_engine_for_every_graph(rebuild, gpu_copy):
    before = Bundle.open(gpu_copy).manifest
    lines = rebuild()
    bundle = Bundle.open(gpu_copy)
    assert dataclasses.replace(bundle.manifest, engines=()) == before
    made = {engine.graph: engine for engine in bundle.manifest.engines}
    assert list(made) == NETWORKS + OPERATORS
    assert len(lines) == len(made)
    assert all(line.endswith("built: new") for line in lines)
    for graph, engine in made.items():
        precision = "fp32" if graph in OPERATORS else "fp16"
        assert (engine.backend, engine.precision) == ("tensorrt_rtx", precision)
        assert engine.file.startswith(f"engines/tensorrt_rtx/portable/{graph}.{precision}.")
        assert engine.file.endswith(".engine")
        assert engine.library == "1.7.1.116"
        assert engine.compute_capabilities == ("8.0", "8.6", "8.9", "12.0")
        assert engine.platform.startswith(sys.platform)
        assert engine.size == (gpu_copy / engine.file).stat().st_size
        assert set(engine.fingerprint) == set(PARTS)
        assert engine.build_seconds >= 0
    assert Manifest.from_json(bundle.manifest.to_json()) == bundle.manifest
    assert leftovers(gpu_copy / "engines" / "tensorrt_rtx" / "portable") == sorted(
        engine.file.rsplit("/", 1)[1] for engine in made.values()
    )


def test_a_second_rebuild_keeps_everything(rebuild, gpu_copy, library):
    rebuild()
    before = (gpu_copy / "manifest.json").read_bytes()
    built = len(library.builds)
    lines = rebuild()
    assert all(line.endswith(": kept") for line in lines)
    assert len(library.builds) == built
    assert (gpu_copy / "manifest.json").read_bytes() == before


def test_a_change_of_each_part_builds_again_and_says_why(rebuild, gpu_copy, library, monkeypatch):
    rebuild()
    library.__version__ = "1.8"
    lines = rebuild()
    assert len(lines) == 9
    assert all(line.endswith("built: the library version changed") for line in lines)
    assert {e.library for e in Bundle.open(gpu_copy).manifest.engines} == {"1.8"}

    lines = rebuild("--profile", "head_step.R=1:16:64")
    assert lines_with(lines, "built: the profile changed") == ["target.head_step [fp16]"]
    assert len(lines_with(lines, ": kept")) == 8
    assert library.builds[-1]["shapes"][0]["x"] == [[1, 16], [16, 16], [64, 16]]
    manifest = Bundle.open(gpu_copy).manifest
    assert manifest.graphs["target.head_step"].profile["R"] == (1, 16, 64)
    assert manifest.variants["bf16"]["target.head_step"].profile["R"] == (1, 16, 64)
    assert all(line.endswith(": kept") for line in rebuild()), "the profile stays"

    monkeypatch.setattr(engines, "OPTIONS", {"strongly_typed": True, "tf32": True})
    assert len(lines_with(rebuild(), "built: the builder's options changed")) == 9

    path = gpu_copy / "target_head_modulation.fp16.onnx"
    path.write_bytes(path.read_bytes().replace(b"node_unsqueeze", b"node_UNSQUEEZE"))
    edit_manifest(
        gpu_copy,
        lambda values: values["variants"]["fp16"]["target.head_modulation"].update(
            files={
                **values["variants"]["fp16"]["target.head_modulation"]["files"],
                path.name: file_sha256(path),
            }
        ),
    )
    changed = lines_with(rebuild(), "built: the graph changed")
    assert changed == ["target.head_modulation [fp16]"]

    monkeypatch.setattr(engines, "current_platform", lambda: "linux-aarch64")
    assert len(lines_with(rebuild(), "built: new")) == 9, "engines of another platform are others"
    assert len(Bundle.open(gpu_copy).manifest.engines) == 18
    assert len(list((gpu_copy / "engines").rglob("*.engine"))) == 18


BASE = {
    "spec": GraphSpec({"a.onnx": "0" * 64}, (TensorSpec("x", "float32", ("R", 16)),), (),
                      {"R": (1, 2, 3)}),
    "precision": "fp16", "target": ("linux-x86_64", "8.6"), "library": "tensorrt_rtx 1.7",
    "options": {"tf32": False},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"spec": dataclasses.replace(BASE["spec"], files={"a.onnx": "1" * 64})}, "onnx"),
        ({"spec": dataclasses.replace(BASE["spec"], profile={"R": (1, 2, 4)})}, "profile"),
        (
            {"spec": dataclasses.replace(BASE["spec"], inputs=(TensorSpec("x", "int64", ("R",)),))},
            "profile",
        ),
        ({"precision": "bf16"}, "precision"),
        ({"target": ("linux-x86_64", "8.9")}, "target"),
        ({"target": ("linux-aarch64", "8.6")}, "target"),
        ({"library": "tensorrt_rtx 1.8"}, "library"),
        ({"options": {"tf32": True}}, "options"),
    ],
)
def test_a_fingerprint_has_a_part_for_each_thing_an_engine_is_built_from(change, part):
    before, after = fingerprint(**BASE), fingerprint(**{**BASE, **change})
    assert set(before) == set(PARTS)
    assert {name for name in PARTS if before[name] != after[name]} == {part}
    assert first_difference(before, after) == PARTS[part]
    assert first_difference(before, dict(before)) is None
    assert short_name(before) != short_name(after)


def test_other_targets_and_precisions_stay_and_are_renewed_when_they_are_stale(
    rebuild, gpu_copy, library
):
    rebuild()
    rebuild("--sm", "86,120", "--precision", "fp32,bf16")
    manifest = Bundle.open(gpu_copy).manifest
    count = {}
    for engine in manifest.engines:
        target = engine.file.split("/")[2]
        count[target, engine.precision] = count.get((target, engine.precision), 0) + 1
    assert count == {
        ("portable", "fp16"): 5, ("portable", "fp32"): 4,
        ("sm86", "fp32"): 9, ("sm86", "bf16"): 5, ("sm120", "fp32"): 9, ("sm120", "bf16"): 5,
    }  # fmt: skip
    built = len(library.builds)
    lines = rebuild("--sm", "86", "--precision", "bf16", "--profile", "decoder.B=1:1:2")
    assert sorted(line.split(": ")[0] for line in lines if "the profile changed" in line) == [
        f"decoder [{precision}] for tensorrt_rtx {target}"
        for precision, target in (
            ("bf16", "sm120"), ("bf16", "sm86"), ("fp16", "portable"), ("fp32", "sm120"),
            ("fp32", "sm86"),
        )
    ]  # fmt: skip
    assert not lines_with(lines, "dropped")
    assert all(build["shapes"][0]["latents"][2][0] == 2 for build in library.builds[built:])
    assert {build["capabilities"][0] for build in library.builds[built:]} == {
        "SM80", "SM86", "SM120",
    }  # fmt: skip
    after = Bundle.open(gpu_copy).manifest
    assert {key_of(engine) for engine in after.engines} == {
        key_of(engine) for engine in manifest.engines
    }
    assert all(
        line.endswith(": kept") for line in rebuild("--sm", "86,120", "--precision", "fp32,bf16")
    )


def moved(graph, **changes):
    """A change of a manifest: the engine of a graph was built elsewhere."""

    def change(values):
        for engine in values["engines"]:
            if engine["graph"] == graph:
                engine.update(changes)

    return change


@pytest.mark.parametrize(
    ("elsewhere", "where"),
    [
        (
            {"platform": "linux-other", "compute_capabilities": ["8.6"]},
            "with TensorRT-RTX on a linux-other machine: csd-export --rebuild {} "
            "--backend tensorrt_rtx --precision fp16 --sm 86",
        ),
        (
            {"backend": "tensorrt", "platform": "linux-aarch64", "compute_capabilities": ["8.7"]},
            "with TensorRT on a linux-aarch64 machine of sm_87: csd-export --rebuild {} "
            "--backend tensorrt --precision fp16",
        ),
        (
            {"backend": "tensorrt", "compute_capabilities": ["8.9"]},
            "with TensorRT on a {platform} machine of sm_89: csd-export --rebuild {} "
            "--backend tensorrt --precision fp16",
        ),
    ],
)
def test_engines_that_cannot_be_built_here_are_dropped_with_the_command_that_makes_them(
    elsewhere, where, rebuild, gpu_copy, library, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    rebuild()
    for graph in ("decoder", "target.head_step"):
        edit_manifest(gpu_copy, moved(graph, **elsewhere))
    rebuild()
    assert len(Bundle.open(gpu_copy).manifest.engines) == 11, "nothing is out of date yet"
    lines = rebuild("--profile", "decoder.B=1:1:2")
    assert [line for line in lines if "dropped" in line] == [
        next(line for line in lines if line.startswith("engines/") and "/decoder.fp16." in line),
        "to build what was dropped, " + where.format(gpu_copy, platform=current_platform()),
    ]
    left = Bundle.open(gpu_copy).manifest.engines
    assert [engine.graph for engine in left].count("decoder") == 1
    assert [engine.graph for engine in left].count("target.head_step") == 2


def test_engines_of_another_library_are_built_again_where_it_builds_for_this_device(
    rebuild, gpu_copy, monkeypatch
):
    other = FakeLibrary("tensorrt", "10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", other)
    monkeypatch.setattr(tensorrt_builder, "find_device", lambda: ORIN)
    argv = ["--rebuild", gpu_copy, "--backend", "tensorrt"]
    assert main([str(part) for part in argv]) == 0
    built = len(other.builds)
    lines = rebuild("--profile", "decoder.B=1:1:2")
    assert lines_with(lines, "built: the profile changed") == ["decoder [fp16]"]
    assert len(other.builds) == built + 1
    assert other.builds[-1]["shapes"][0]["latents"][2][0] == 2


def test_a_damaged_engine_that_was_not_asked_for_is_built_again(rebuild, gpu_copy):
    rebuild("--precision", "bf16")
    engine = next(e for e in Bundle.open(gpu_copy).manifest.engines if e.graph == "decoder")
    (gpu_copy / engine.file).unlink()
    assert lines_with(rebuild(), "built: its file is missing") == ["decoder [bf16]"]
    Bundle.open(gpu_copy)


def test_an_engine_whose_graph_is_gone_is_dropped_without_a_command(rebuild, gpu_copy):
    rebuild("--precision", "bf16")
    edit_manifest(gpu_copy, lambda values: values["variants"].pop("bf16"))
    lines = [line for line in rebuild("--precision", "fp16") if "dropped" in line]
    assert len(lines) == 5
    assert all(line.endswith("dropped: its graph is gone") for line in lines)


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_damaged_engine_is_built_again(damage, rebuild, gpu_copy):
    rebuild()
    engine = next(e for e in Bundle.open(gpu_copy).manifest.engines if e.graph == "decoder")
    path = gpu_copy / engine.file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    assert lines_with(rebuild(), f"its file {'is missing' if damage == 'missing' else 'was'}") == [
        "decoder [fp16]"
    ]
    Bundle.open(gpu_copy)


UNLOADABLE = "built: the library cannot load it (the engine is of another build)"


@pytest.fixture
def on_device(monkeypatch):
    """Give this machine a device."""

    def make(capability):
        device = dataclasses.replace(ORIN, compute_capability=capability)
        for module in (condition, tensorrt_builder):
            monkeypatch.setattr(module, "find_device", lambda: device)

    return make


def test_an_intact_engine_that_its_library_cannot_load_is_built_again(
    rebuild, gpu_copy, library, on_device
):
    on_device("8.9")
    rebuild()
    assert not library.loaded, "what was just built is not tried"
    assert all(line.endswith(": kept") for line in rebuild())
    assert len(library.loaded) == 9
    library.build = "b"  # of the same version
    lines = rebuild()
    assert len(lines_with(lines, UNLOADABLE)) == 9
    assert all(line.endswith(": kept") for line in rebuild())
    Bundle.open(gpu_copy)


@pytest.fixture
def failing_after(monkeypatch):
    """Let builds fail after some."""

    def make(count):
        plain, left = tensorrt_builder.EngineBuilder.build, [count]

        def build(self, path, spec, target, label, *others):
            left[0] -= 1
            if left[0] < 0:
                raise ExportError(f"{label} cannot be built (no memory)")
            return plain(self, path, spec, target, label, *others)

        monkeypatch.setattr(tensorrt_builder.EngineBuilder, "build", build)

    return make


def test_what_was_refused_stays_until_all_is_built(
    rebuild, gpu_copy, library, on_device, failing_after, capsys
):
    on_device("8.9")
    rebuild()
    before = {p: p.read_bytes() for p in gpu_copy.rglob("*") if p.is_file()}
    library.build = "b"
    failing_after(3)
    message = failure(main, ["--rebuild", gpu_copy, "--backend", "tensorrt_rtx"], capsys)
    assert message.endswith("cannot be built (no memory)")
    assert {p: p.read_bytes() for p in gpu_copy.rglob("*") if p.is_file()} == before
    Bundle.open(gpu_copy)


def test_what_was_not_asked_for_may_fail(rebuild, gpu_copy, library, failing_after):
    rebuild("--precision", "bf16")
    rebuild("--precision", "fp16")
    failing_after(1)
    lines = rebuild("--precision", "fp16", "--profile", "decoder.B=1:1:2")
    assert lines_with(lines, "built: the profile changed") == ["decoder [fp16]"]
    (line,) = [line for line in lines if "dropped" in line]
    assert line.startswith(
        "decoder [bf16] for tensorrt_rtx portable: dropped (the profile changed)"
    )
    assert line.endswith("cannot be built (no memory)")
    kept = {(e.graph, e.precision) for e in Bundle.open(gpu_copy).manifest.engines}
    assert {("decoder", "fp16"), ("target.head_step", "bf16")} <= kept
    assert ("decoder", "bf16") not in kept


def test_an_engine_that_was_not_asked_for_is_tried_too(rebuild, library, on_device):
    on_device("8.9")
    rebuild("--precision", "bf16")
    library.build = "b"
    lines = rebuild("--precision", "fp16")
    assert lines_with(lines, UNLOADABLE) == sorted(
        [f"{name} [bf16]" for name in NETWORKS] + [f"{name} [fp32]" for name in OPERATORS]
    )


@pytest.mark.parametrize("case", ["no device", "another device", "it does not start"])
def test_where_nothing_can_be_tried_the_recorded_version_decides(case, rebuild, library, on_device):
    if case != "no device":
        on_device("7.5" if case == "another device" else "8.9")
    library.starts = case != "it does not start"
    rebuild()
    library.build = "b"
    assert all(line.endswith(": kept") for line in rebuild())
    assert not library.loaded
    library.__version__ = "1.8"
    assert len(lines_with(rebuild(), "built: the library version changed")) == 9


def test_an_engine_that_may_need_a_plugin_is_not_tried(gpu_copy, monkeypatch, on_device, capsys):
    on_device("8.7")
    other = FakeLibrary("tensorrt", "10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", other)
    argv = ["--rebuild", str(gpu_copy), "--backend", "tensorrt"]
    assert main(argv) == main(argv) == 0
    assert len(other.loaded) == len(NETWORKS)
    capsys.readouterr()
    other.build = "b"
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines_with(lines, UNLOADABLE)) == len(NETWORKS)
    assert lines_with(lines, ": kept") == sorted(f"{name} [fp32]" for name in OPERATORS)


def test_a_bundle_of_schema_1_gets_engines_with_practical_profiles(rebuild, gpu_copy):
    def as_schema_1(values):
        values["schema_version"] = 1
        del values["variants"], values["engines"]
        for name in OPERATORS:
            del values["graphs"][name]
        values["graphs"]["target.head_step"]["profile"]["R"] = [1, 2, 10**6]

    edit_manifest(gpu_copy, as_schema_1)
    rebuild("--precision", "fp32")
    manifest = Bundle.open(gpu_copy).manifest
    assert manifest.schema_version == SCHEMA_VERSION
    assert [engine.graph for engine in manifest.engines] == NETWORKS
    assert manifest.graphs["target.head_step"].profile["R"][2] == 1024


@pytest.mark.parametrize(
    ("without", "built"), [((), "fp16"), (("fp16",), "bf16"), (("fp16", "bf16"), "fp32")]
)
def test_a_rebuild_takes_the_fastest_precision_that_the_bundle_has(
    without, built, rebuild, gpu_copy
):
    for precision in without:
        edit_manifest(gpu_copy, lambda values, name=precision: values["variants"].pop(name))
    rebuild()
    engines = Bundle.open(gpu_copy).manifest.engines
    assert {e.precision for e in engines if e.graph in NETWORKS} == {built}


def test_a_precision_without_graphs_is_one_line_with_the_export_command(gpu_copy, library, capsys):
    edit_manifest(gpu_copy, lambda values: values["variants"].pop("fp16"))
    argv = ["--rebuild", gpu_copy, "--backend", "tensorrt_rtx", "--precision", "fp16"]
    before = (gpu_copy / "manifest.json").read_bytes()
    message = failure(main, argv, capsys)
    assert message.startswith(
        "the bundle has no fp16 graphs, and --rebuild makes none: run csd-exp"
    )
    assert "--precision fp16 --out BUNDLE --force, or give --precision fp32 or bf16" in message
    assert (gpu_copy / "manifest.json").read_bytes() == before

    edit_manifest(gpu_copy, lambda v: v["sources"]["target"].update(path="zoo:fashion-mnist"))
    message = failure(main, argv, capsys)
    assert "run csd-export --zoo fashion-mnist --precision fp16 --out BUNDLE --force" in message


@pytest.mark.parametrize("change", ["altered", "missing"])
def test_graphs_that_are_not_the_manifests_are_one_line(change, gpu_copy, library, capsys):
    path = gpu_copy / "target_head_step.fp16.onnx"
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    message = failure(main, ["--rebuild", gpu_copy, "--backend", "tensorrt_rtx"], capsys)
    assert f"{path.name}{' was altered' if change == 'altered' else ': export'}" in message
    assert not library.builds
    assert not (gpu_copy / "engines").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rebuild", "gone"], "--rebuild needs --backend: give tensorrt_rtx or tensorrt"),
        (["--rebuild", "gone", "--backend", "tensorrt_rtx"], "no bundle at gone"),
        (["--rebuild", "x", "--backend", "tensorrt_rtx", "--zoo", "y"], "--zoo does not go with"),
        (["--rebuild", "x", "--backend", "tensorrt_rtx", "--max-batch", "3"], "--max-batch does"),
        (["--rebuild", "x", "--backend", "onnxruntime"], "backend has 'onnxruntime': give some"),
        (
            ["--rebuild", "x", "--backend", "tensorrt_rtx", "--sm", "8.6"],
            "sm is '8.6': '8.6' is no number",
        ),
        (
            ["--rebuild", "x", "--backend", "tensorrt_rtx", "--precision", "fp16", "--sm", "87"],
            "sm is 87: tensorrt_rtx",
        ),
        (["--zoo", "fashion-mnist", "--out", "x", "--sm", "86"], "--sm needs --backend"),
        (["--zoo", "fashion-mnist"], "give --out DIRECTORY for the bundle, or --rebuild BUNDLE"),
        (["--rebuild", "x", "--backend", "tensorrt_rtx", "--profile", "R=1"], "profile is 'R=1'"),
        (
            ["--rebuild", "x", "--backend", "tensorrt_rtx", "--precision", "int4"],
            "precision has 'i",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(argv, message, library, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert failure(main, argv, capsys).startswith(message)
    assert leftovers(tmp_path) == []


def test_profiles_outside_the_graphs_range_are_one_line(gpu_copy, library, capsys):
    argv = ["--rebuild", gpu_copy, "--backend", "tensorrt_rtx", "--profile", "backbone.V=0:1:17"]
    assert "V of backbone can be 0 to 16" in failure(main, argv, capsys)
    assert not library.builds


def test_a_build_that_fails_leaves_the_bundle_as_it_was(rebuild, gpu_copy, library, capsys):
    rebuild()
    before = {p: p.read_bytes() for p in gpu_copy.rglob("*") if p.is_file()}
    library.__version__, library.refusal = "1.8", "no memory"
    argv = ["--rebuild", gpu_copy, "--backend", "tensorrt_rtx"]
    message = failure(main, argv, capsys)
    assert message.startswith(
        "target.backbone [fp16] for tensorrt_rtx portable cannot be built (no"
    )
    assert {p: p.read_bytes() for p in gpu_copy.rglob("*") if p.is_file()} == before


def test_a_disk_that_fills_up_leaves_the_bundle_as_it_was(gpu_bundle, library, small_disk, capsys):
    size = sum(path.stat().st_size for path in gpu_bundle.rglob("*")) + (200 << 10)
    subprocess.run(["mount", "-o", f"remount,size={size}", str(small_disk)], check=True)
    bundle = shutil.copytree(gpu_bundle, small_disk / "bundle")
    before = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - (16 << 10)))
    argv = ["--rebuild", bundle, "--backend", "tensorrt_rtx"]
    assert "No space left on device" in failure(main, argv, capsys)
    after = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    assert {p: after[p] for p in before} == before
    Bundle.open(bundle)


def test_a_bundle_that_cannot_be_written_is_found_out_before_anything_is_built(
    gpu_copy, library, capsys, monkeypatch
):
    def refused(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("csd.export.engines.rebuild.check_writable", refused)
    argv = ["--rebuild", gpu_copy, "--backend", "tensorrt_rtx"]
    assert "Permission denied" in failure(main, argv, capsys)
    assert not library.builds


def test_ctrl_c_leaves_the_bundle_as_it_was(rebuild, gpu_copy, library, capsys, monkeypatch):
    rebuild()
    before = {p: p.read_bytes() for p in gpu_copy.rglob("*") if p.is_file()}
    library.__version__ = "1.8"
    builds = []
    build = engines.EngineBuilder.build

    def interrupted(*args):
        builds.append(args)
        if len(builds) == 3:
            raise KeyboardInterrupt
        return build(*args)

    monkeypatch.setattr(engines.EngineBuilder, "build", interrupted)
    argv = ["--rebuild", gpu_copy, "--backend", "tensorrt_rtx"]
    assert failure(main, argv, capsys, code=130) == "interrupted; nothing was left half-written"
    assert {p: p.read_bytes() for p in gpu_copy.rglob("*") if p.is_file()} == before


KILLED = """
import os, signal, sys
from csd.export.cli import main
from csd.export.engines import update as engines
from csd.export.destination import new_bundle
from tests.vendor.tensorrt.builder import FakeLibrary

library = sys.modules["tensorrt_rtx"] = FakeLibrary("tensorrt_rtx", "1.8")
build, count = engines.EngineBuilder.build, [0]

def killed(self, *args):
    count[0] += 1
    if count[0] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return build(self, *args)

engines.EngineBuilder.build = killed
main(sys.argv[1:])
"""


def test_a_killed_rebuild_leaves_a_valid_bundle_and_the_next_one_cleans_up(
    rebuild, gpu_copy, library
):
    from ...helpers import ROOT

    rebuild()
    before = Bundle.open(gpu_copy).manifest
    files = set((gpu_copy / "engines").rglob("*.engine"))
    argv = ["--rebuild", gpu_copy, "--backend", "tensorrt_rtx"]
    done = run_python(KILLED, *argv, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Bundle.open(gpu_copy).manifest == before, "every file has its hash still"
    assert len(set((gpu_copy / "engines").rglob("*.engine")) - files) == 3

    library.__version__ = "1.9"
    rebuild()
    named = {gpu_copy / engine.file for engine in Bundle.open(gpu_copy).manifest.engines}
    assert {p for p in (gpu_copy / "engines").rglob("*") if p.is_file()} == named


def test_an_engine_spec_survives_json(rebuild, gpu_copy):
    rebuild("--sm", "86")
    manifest = Bundle.open(gpu_copy).manifest
    engine = manifest.engines[0]
    assert Manifest.from_json(manifest.to_json()).engines[0] == engine
    assert manifest.file_hashes[engine.file] == engine.sha256


def test_a_bundle_has_one_writer_at_a_time(gpu_copy, library, capsys):
    argv = ["--rebuild", gpu_copy, "--backend", "tensorrt_rtx"]
    before = {p: p.read_bytes() for p in gpu_copy.rglob("*") if p.is_file()}
    with only_writer(gpu_copy) as alone:
        assert alone
        message = failure(main, argv, capsys)
        assert message.startswith(f"another csd-export writes to {gpu_copy}: wait for it")
        export = ["--zoo", "fashion-mnist", "--force", "--out", gpu_copy]
        assert f"another csd-export writes to {gpu_copy}" in failure(main, export, capsys)
        assert not library.builds
    assert {p: p.read_bytes() for p in gpu_copy.rglob("*") if p.is_file()} == before
    assert main([str(part) for part in argv]) == 0


def test_a_bundle_that_is_replaced_takes_no_engines(gpu_copy, library, capsys):
    argv = ["--rebuild", gpu_copy, "--backend", "tensorrt_rtx"]
    with suppress(ZeroDivisionError), new_bundle(gpu_copy, force=True, report=print):
        assert "another csd-export writes to" in failure(main, argv, capsys)
        raise ZeroDivisionError
    assert not library.builds
