"""The check of a GPU machine, on a machine without one: what is skipped, and what its parts do."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from csd.runtime import Bundle, CsdError
from csd.runtime.device import find_device
from csd.tools.gpu_check import __main__ as command
from csd.tools.gpu_check import kernels, parity, suite
from csd.tools.gpu_check.part import Outcome, Skipped

from ..helpers import DATA, no_draft
from ..plugins.emulation import EmulatedKernels, compile_emulated
from ..vendor.cuda_bindings import ImmediateCuda


def no_device():
    try:
        find_device()
    except CsdError:
        return True
    return False


@pytest.mark.skipif(not no_device(), reason="this machine has a GPU")
def test_without_a_gpu_every_part_is_skipped_with_a_reason(tiny_bundle, tmp_path, capsys):
    out = tmp_path / "out"
    assert command.main([str(tiny_bundle), "--out", str(out)]) == 0
    report = json.loads((out / "gpu_check.json").read_text(encoding="utf-8"))
    assert list(report) == list(command.PARTS)
    assert {part["status"] for part in report.values()} == {"skipped"}
    assert all("CUDA driver" in part["reason"] for part in report.values())
    assert report["machine"]["details"]["obstacles"]["onnxruntime"] is None
    assert "passed" not in capsys.readouterr().out


def test_a_reason_is_shown_as_it_is(tiny_bundle, tmp_path, monkeypatch, capsys):
    def check(_):
        raise Skipped("pip install 'cuda-core'")

    monkeypatch.setattr(kernels, "check", check)
    command.main([str(tiny_bundle), "--out", str(tmp_path), "--parts", "kernels"])
    assert "skipped: pip install 'cuda-core'" in capsys.readouterr().out


def test_a_part_that_fails_does_not_stop_the_next_one(tiny_bundle, tmp_path, monkeypatch):
    def raises(error):
        def part(*_):
            raise error

        return part

    monkeypatch.setattr(kernels, "check", raises(ZeroDivisionError("in a library")))
    monkeypatch.setattr(suite, "check", raises(CsdError("broken: mend it")))
    monkeypatch.setattr(parity, "check", lambda _: Outcome("passed", "", {"rows": []}))
    argv = [str(tiny_bundle), "--out", str(tmp_path), "--parts", "kernels,tests,parity"]
    assert command.main(argv) == 1
    report = json.loads((tmp_path / "gpu_check.json").read_text(encoding="utf-8"))
    assert [part["status"] for part in report.values()] == ["failed", "failed", "passed"]
    assert report["kernels"]["reason"] == "ZeroDivisionError: in a library"
    assert "ZeroDivisionError" in report["kernels"]["details"]["trace"][-1]
    assert report["tests"]["reason"] == "broken: mend it"


@pytest.mark.parametrize("name", kernels.CALLS)
def test_the_calls_that_are_timed_are_right_for_the_kernels(name, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "ROWS", 64)
    emulated = EmulatedKernels(compile_emulated(tmp_path / "kernels.so"))
    runtime = ImmediateCuda()
    memory = kernels.Memory(runtime, "float32")
    call = kernels.CALLS[name](memory)
    assert call.kernel == f"csd_{name}_float32"
    stream = SimpleNamespace(__cuda_stream__=lambda: (0, 0))
    seconds = memory.timed(stream, lambda: emulated.run(call))
    assert 0 < seconds < 1
    memory.copy(stream)
    assert memory.size > 64 * 16 * 4
    memory.free()
    assert runtime.blocks == {}


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(command, "device_or_skip", lambda: None)


def test_engines_are_built_of_every_precision_for_every_library_that_is_here(
    tiny_bundle, tmp_path, monkeypatch, device
):
    asked = []

    def export(argv):
        asked.append(argv[2:])
        return 0 if argv[3] == "tensorrt" else 2

    def engines():
        return command._engines(Bundle.open(tiny_bundle), tmp_path, None)

    monkeypatch.setattr(command, "export", export)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Skipped, match="neither library is installed"):
        engines()
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name: name == "tensorrt" or None
    )
    assert engines().status == "passed"
    assert asked == [["--backend", "tensorrt", "--precision", "fp32"]]
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: name)
    outcome = engines()
    assert (outcome.status, "tensorrt_rtx" in outcome.reason) == ("failed", True)


def test_the_bench_asks_for_what_the_bundle_and_pytorch_have(
    make_bundle, tmp_path, monkeypatch, device
):
    asked = []

    def bench(argv):
        asked.append(dict(zip(argv[1::2], argv[2::2], strict=True)))
        return 0 if len(asked) > 1 else 2

    monkeypatch.setattr(command, "bench", bench)
    args = command.build_parser().parse_args(["x", "--out", str(tmp_path)])
    alone = Bundle.open(make_bundle(no_draft, "alone"))
    assert command._bench(alone, args).status == "failed"
    assert asked[0]["--modes"] == "target"
    few = Bundle.open(make_bundle(lambda values: values.update(max_gamma=3), "few"))
    (tmp_path / "bench-onnxruntime.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(command, "check_baselines", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    outcome = command._bench(few, args)
    assert outcome.status == "passed"
    assert (asked[1]["--modes"], asked[1]["--gammas"]) == ("target,draft,csd", "3")
    assert "give --target-weights FILE" in outcome.details["no_baselines"]
    args.target_weights = DATA / "target.pth"
    outcome = command._bench(few, args)
    assert asked[2]["--modes"] == "eager,eager-bf16,compile,target,draft,csd"
    assert asked[2]["--target-weights"] == str(DATA / "target.pth")
    assert "no_baselines" not in outcome.details


def test_the_copy_follows_the_bundle_and_gets_the_kernels(make_bundle, tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "kernels.json").write_text("{}", encoding="utf-8")
    first, second = Bundle.open(make_bundle(name="a")), Bundle.open(make_bundle(name="b"))
    folder = command._own_copy(first, tmp_path).path
    assert (folder / "kernels" / "kernels.json").is_file()
    (folder / "mark").touch()
    assert (command._own_copy(second, tmp_path).path / "mark").exists()  # the same graphs
    changed = Bundle.open(make_bundle(no_draft, "c"))
    assert not (command._own_copy(changed, tmp_path).path / "mark").exists()


def test_parity_finds_a_backend_that_computes_something_else(tiny_bundle, monkeypatch):
    monkeypatch.setattr(parity, "device_or_skip", lambda: None)
    monkeypatch.setattr(
        parity, "obstacles", lambda *_: {"onnxruntime": None, "onnxruntime_cuda": None}
    )
    bundle, wrong = Bundle.open(tiny_bundle), []
    open_session = bundle.session

    def session(name, precision=None):
        made = open_session("onnxruntime")
        if name != "onnxruntime" and wrong:
            graph = made.graph

            def altered(name):
                found = graph(name)
                if name != wrong[0]:
                    return found

                def run(feeds):
                    return {key: value + 0.1 for key, value in found.run(feeds).items()}

                return SimpleNamespace(run=run)

            made.graph = altered
        return made

    monkeypatch.setattr(bundle, "session", session)
    right = parity.check(bundle)
    assert right.status == "passed"
    rows = right.details["rows"]
    assert {row["graph"] for row in rows} == set(bundle.manifest.graphs)
    assert all(row["max_abs"] == 0 for row in rows)
    wrong.append("draft.head_step")
    broken = parity.check(bundle)
    assert broken.status == "failed"
    assert "draft.head_step with onnxruntime_cuda" in broken.reason
    assert [row["graph"] for row in broken.details["rows"] if not row["passed"]] == wrong


def test_parity_with_nothing_to_compare_is_skipped(tiny_bundle, monkeypatch):
    monkeypatch.setattr(parity, "device_or_skip", lambda: None)
    monkeypatch.setattr(parity, "obstacles", lambda *_: {"onnxruntime": None, "tensorrt": "none"})
    with pytest.raises(Skipped, match="none"):
        parity.check(Bundle.open(tiny_bundle))


def test_random_inputs_address_different_positions(tiny_bundle):
    manifest = Bundle.open(tiny_bundle).manifest
    spec = manifest.graphs["target.backbone"]
    feeds = parity.random_feeds(manifest, "target.backbone", spec, 1, np.random.default_rng(0))
    for name in ("visible", "query"):
        assert all(len(set(row)) == len(row) for row in feeds[name].tolist())
        assert feeds[name].max() < manifest.target.seq_len


def test_the_marked_tests_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "device_or_skip", lambda: None)
    monkeypatch.setattr(suite.shutil, "which", lambda _: None)

    def run(command, **_):
        report = next(part for part in command if part.startswith("--junitxml="))
        text = '<r><testsuite tests="5" failures="1" errors="0" skipped="2"/></r>'
        with open(report.split("=")[1], "w", encoding="utf-8") as stream:
            stream.write(text)
        assert command[command.index("-m", 3) + 1] == "gpu"
        return SimpleNamespace(returncode=1, stdout="boom", stderr="")

    monkeypatch.setattr(suite.subprocess, "run", run)
    outcome = suite.check(tmp_path, tmp_path / "kernels")
    assert outcome.status == "failed"
    gpu = outcome.details["gpu"]
    assert (gpu["tests"], gpu["failures"], gpu["skipped"]) == (5, 1, 2)
    assert gpu["output"] == ["boom"]
    assert "compute-sanitizer is not found" in outcome.details["sanitizer"]["skipped"]
