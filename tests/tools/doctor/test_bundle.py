"""A bundle on this machine: files, backends, memory, a short run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from csd.runtime.device import DeviceInfo, current_platform
from csd.tools.doctor.bundle import backends, files
from csd.tools.doctor.bundle.backends import backend_checks, trial_check
from csd.tools.doctor.bundle.estimate import TOLERANCE, of_engines, of_graphs
from csd.tools.doctor.bundle.files import look_at
from csd.tools.doctor.bundle.trial import AR_STEPS
from csd.tools.doctor.check import NOTE, OK, PROBLEM, Check
from csd.tools.doctor.child import run_child
from csd.tools.doctor.cli import main

TRIAL = "csd.tools.doctor.bundle.trial"
ENGINE = {
    "graph": "target.backbone", "backend": "tensorrt", "precision": "fp32",
    "file": "engines/x.engine", "sha256": "0" * 64, "size": 3, "library": "10.3.0",
    "platform": current_platform(), "compute_capabilities": ["8.7"], "build_seconds": 1.0,
    "fingerprint": {},
}  # fmt: skip


def problems(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks if check.state == PROBLEM}


def backends_of(bundle: Path, **given: object) -> tuple[dict[str, Check], str | None]:
    found = look_at(bundle)
    assert found.manifest is not None
    arguments = {"threads": 2, "available": None, "ending": {}, **given}
    checks, best = backend_checks(bundle, found.manifest, found.sizes, **arguments)
    return {check.name: check for check in checks}, best


def test_a_whole_bundle_has_its_files_and_runs(tiny_bundle):
    found = look_at(tiny_bundle)
    assert found.sound
    assert [check.name for check in found.checks] == ["manifest", "files"]
    assert sum(found.sizes.values()) == sum(
        path.stat().st_size for path in tiny_bundle.iterdir() if path.name != "manifest.json"
    )
    checks, best = backends_of(tiny_bundle)
    assert best == "onnxruntime"
    assert checks["onnxruntime"].state == OK
    assert checks["tensorrt"].state == NOTE
    assert checks["tensorrt"].remedy == f"csd-export --rebuild {tiny_bundle} --backend tensorrt"
    check = trial_check(tiny_bundle, best, 1)
    assert check.state == OK, check
    assert f"one image of {AR_STEPS} AR steps on onnxruntime" in check.finding


def test_every_damaged_file_is_named(make_bundle):
    bundle = make_bundle()
    content = bytearray((bundle / "target_head_step.onnx.data").read_bytes())
    content[100] ^= 1
    (bundle / "target_head_step.onnx.data").write_bytes(content)
    (bundle / "decoder.onnx").unlink()
    os.truncate(bundle / "calibration.npz", 10)
    found = problems(look_at(bundle).checks)
    assert set(found) == {"target_head_step.onnx.data", "decoder.onnx", "calibration.npz"}
    assert "was altered (its SHA-256 is not the manifest's)" in found["calibration.npz"].reason
    assert "lacks decoder.onnx" in found["decoder.onnx"].reason
    assert found["decoder.onnx"].remedy == "export it again with csd-export"


def test_hashes_are_compared_whatever_the_cache_remembers(make_bundle, monkeypatch):
    bundle = make_bundle()
    read: list[str] = []
    real = files.FileCheck.__call__
    monkeypatch.setattr(
        files.FileCheck, "__call__",
        lambda self, names: (read.append(self.policy), real(self, names))[1],
    )  # fmt: skip
    look_at(bundle)
    assert set(read) == {"always"}


def test_a_damaged_manifest_is_a_problem_and_the_rest_is_told(make_bundle, known_packages, capsys):
    bundle = make_bundle(lambda values: values.pop("head_steps"))
    assert main([str(bundle)]) == 1
    out = capsys.readouterr().out
    assert "problem  manifest" in out
    assert "head_steps is None" in out
    assert "mend it: export the bundle again" in out
    assert "this bundle does not run here" in out
    assert "a short run" not in out


def test_a_graph_that_is_not_what_the_manifest_says_is_a_problem(make_bundle):
    bundle = make_bundle(
        lambda values: values["graphs"]["decoder"]["files"].pop("decoder.onnx.data")
    )
    found = problems(look_at(bundle).checks)
    assert "takes weights from 'decoder.onnx.data'" in found["graphs"].reason


def test_engines_for_other_machines_are_a_note_where_graphs_run(make_bundle, monkeypatch):
    bundle = make_bundle(lambda values: values.update(engines=[ENGINE]))
    (bundle / "engines").mkdir()
    (bundle / "engines/x.engine").write_bytes(b"abc")
    checks, best = backends_of(bundle)
    assert best == "onnxruntime"
    assert checks["tensorrt"].state == NOTE
    assert checks["tensorrt"].reason
    # Its file is not what the manifest says, and its own command makes it again.
    found = problems(look_at(bundle).checks)
    assert found["engines/x.engine"].remedy == (
        f"csd-export --rebuild {bundle} --backend tensorrt --precision fp32"
    )


def test_where_nothing_runs_what_was_wanted_is_the_problem(make_bundle):
    def engines_only(values):
        values["engines"] = [
            {**ENGINE, "graph": name, "file": f"engines/{name}.engine"} for name in values["graphs"]
        ]
        for graph in values["graphs"].values():
            graph["files"] = {}

    checks, best = backends_of(make_bundle(engines_only))
    assert best is None
    assert [name for name, check in checks.items() if check.state == PROBLEM] == ["tensorrt"]
    assert "has no graphs that onnxruntime runs" in checks["onnxruntime"].reason


def test_a_library_that_ends_python_is_not_touched(tiny_bundle, monkeypatch):
    monkeypatch.setattr(backends, "obstacle", lambda *_: pytest.fail("it was tried"))
    why = ("Python was ended by SIGILL", "pip install x")
    ending = dict.fromkeys(("onnxruntime", "tensorrt", "cuda.bindings"), why)
    checks, best = backends_of(tiny_bundle, ending=ending)
    assert best is None
    assert (checks["onnxruntime"].reason, checks["onnxruntime"].remedy) == why
    assert checks["tensorrt_rtx"].reason == why[0]


def test_too_little_memory_is_a_problem_with_both_figures(tiny_bundle):
    checks, _ = backends_of(tiny_bundle, available=50_000_000)
    assert checks["onnxruntime"].state == PROBLEM
    assert checks["onnxruntime"].reason == "50 MB of memory are available"
    assert "close other programs" in checks["onnxruntime"].remedy


def test_a_run_that_fails_or_ends_python_is_a_problem(make_bundle, monkeypatch):
    bundle = make_bundle()
    os.truncate(bundle / "target_head_step.onnx.data", 4)
    check = trial_check(bundle, "onnxruntime", 1)
    assert check.state == PROBLEM
    assert "was cut off" in check.remedy
    from csd.tools.doctor.child import Ended

    monkeypatch.setattr(backends, "run_child", lambda *_: Ended((), "Python was ended by SIGILL"))
    check = trial_check(bundle, "onnxruntime", 1)
    assert (check.state, check.reason) == (PROBLEM, "Python was ended by SIGILL")


def test_a_parity_that_failed_is_told(make_bundle):
    bundle = make_bundle(lambda values: values["parity"][0].update(passed=False))
    found = {check.name: check for check in look_at(bundle).checks}
    assert found["parity"].state == NOTE
    assert "target.backbone" in found["parity"].finding


@pytest.mark.parametrize("name", ["tiny_bundle", "zoo_bundle"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_peak_of_a_run_is_within_the_tolerance_of_the_estimate(name, threads, request):
    bundle = request.getfixturevalue(name)
    found = look_at(bundle)
    estimated = of_graphs(found.manifest, found.sizes, "fp32", threads, ar_steps=AR_STEPS).host
    arguments = {"bundle": str(bundle), "backend": "onnxruntime", "threads": threads}
    (run,) = run_child(TRIAL, arguments, 300).values
    peak = run["peak_bytes"]
    print(f"{name}, {threads} threads: peak {peak / 1e6:.0f} MB, estimated {estimated / 1e6:.0f}")
    assert abs(peak - estimated) <= TOLERANCE * estimated


def test_the_estimate_of_a_model_of_mar_bs_shape_is_that_of_its_measurement(tiny_bundle):
    """docs/measurements/models-cpu.json: 829.5 MB of graphs, one image in 1104 MB resident."""
    import dataclasses

    from csd.runtime.config import PRESETS

    found = look_at(tiny_bundle)
    manifest = dataclasses.replace(
        found.manifest, models={"target": PRESETS["mar_base"]}, head_steps=100,
        graphs={n: g for n, g in found.manifest.graphs.items() if not n.startswith("draft")},
    )  # fmt: skip
    sizes = {"target_backbone.onnx.data": 700_000_000, "decoder.onnx.data": 129_500_000}
    memory = of_graphs(manifest, sizes, "fp32", 2)
    assert memory.weights == 829_500_000
    assert abs(1_104_351_232 - memory.host) <= TOLERANCE * memory.host
    device = of_graphs(manifest, sizes, "fp32", 2, device=True)
    assert device.device is not None
    assert device.device > device.weights


def test_engines_are_counted_by_their_files(tiny_bundle, make_bundle):
    bundle = make_bundle(lambda v: v.update(engines=[{**ENGINE, "size": 1_000_000_000}]))
    manifest = look_at(bundle).manifest
    memory = of_engines(manifest, manifest.engines)
    assert memory.weights == 1_000_000_000
    assert memory.device is not None
    assert memory.device > memory.weights


def test_a_device_too_small_for_the_engines_is_a_problem(tiny_bundle, monkeypatch):
    small = DeviceInfo("Small", "8.7", current_platform(), "12.6", 1 << 20)
    monkeypatch.setattr(backends, "find_device", lambda: small)
    monkeypatch.setattr(
        backends, "_obstacle", lambda name, *_: None if "cuda" in name else ("", "")
    )
    checks, best = backends_of(tiny_bundle)
    assert best == "onnxruntime_cuda"
    assert checks["onnxruntime_cuda"].state == PROBLEM
    assert checks["onnxruntime_cuda"].remedy == "use --backend onnxruntime"


def test_a_bundle_is_not_written_to(tiny_bundle, known_packages, capsys):
    before = {path: path.stat() for path in tiny_bundle.rglob("*")}
    assert main([str(tiny_bundle)]) == 0
    assert {path: path.stat() for path in tiny_bundle.rglob("*")}.keys() == before.keys()
    assert all(path.stat().st_mtime_ns == s.st_mtime_ns for path, s in before.items())
    capsys.readouterr()


def test_links_that_leave_the_bundle_are_told(make_bundle, tmp_path):
    bundle = make_bundle()
    outside = tmp_path / "outside"
    (bundle / "decoder.onnx").rename(outside)
    (bundle / "decoder.onnx").symlink_to(outside)
    found = problems(look_at(bundle).checks)
    assert "is a link that leaves the bundle" in next(iter(found.values())).reason
