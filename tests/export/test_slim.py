from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest

from csd.export.cli import main
from csd.export.slim import SlimFor, parse_for
from csd.runtime import Bundle, GenerateOptions
from csd.runtime.bundle.manifest import EngineSpec
from csd.runtime.errors import BackendError, CsdError

from ..helpers import DATA, edit_manifest, failure, leftovers

OPTIONS = GenerateOptions(mode="target", num_iter=3, head_steps=4)


def run(*argv):
    return main([str(part) for part in argv])


@pytest.fixture
def engines(gpu_copy):
    """The bundle with files that stand for fp16 engines of two targets."""
    graphs = ("target.backbone", "target.head_modulation", "target.head_step", "decoder")
    made = []
    for graph in graphs:
        for name, capabilities in (("portable", ("8.0", "8.9")), ("sm89", ("8.9",))):
            path = gpu_copy / "engines" / "tensorrt_rtx" / name / f"{graph}.engine"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{graph} for {name}".encode())
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            file = path.relative_to(gpu_copy).as_posix()
            made.append(EngineSpec(graph, "tensorrt_rtx", "fp16", file, sha256, 1, "1.5",
                                   "linux-x86_64", capabilities, 1.0, {}))  # fmt: skip
    edit_manifest(
        gpu_copy, lambda values: values.update(engines=[dataclasses.asdict(e) for e in made])
    )
    kernels = gpu_copy / "kernels"
    kernels.mkdir()
    (kernels / "kernels.json").write_text('{"cubins": []}', encoding="utf-8")
    return gpu_copy


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_slim_bundle_for_the_cpu_has_one_precision_and_makes_the_same_images(
    precision, gpu_copy, tmp_path, capsys
):
    # Chains of a random model on the cosine schedule are too large for float16.
    edit_manifest(
        gpu_copy, lambda values: values["models"]["target"].update(beta_schedule="linear")
    )
    before = sorted(gpu_copy.rglob("*"))
    assert run("--slim", gpu_copy, "--for", f"{precision},cpu", "--out", tmp_path / "slim") == 0
    assert "written to" in capsys.readouterr().out
    assert sorted(gpu_copy.rglob("*")) == before
    slim = Bundle.open(tmp_path / "slim")
    files = {path.name for path in slim.path.iterdir()}
    assert files == {*slim.manifest.file_hashes, "manifest.json"}
    assert slim.manifest.precisions == (precision,)
    assert not [name for name in slim.manifest.every_graph if "ops." in name or "chain" in name]
    assert {row.graph.split(" ")[0] for row in slim.manifest.parity} == {
        "target.backbone", "target.head_modulation", "target.head_step", "decoder",
    }  # fmt: skip
    assert all(("[fp16]" in row.graph) == (precision == "fp16") for row in slim.manifest.parity)
    # No option is needed to run what there is.
    with slim.session() as session, Bundle.open(gpu_copy).session(precision=precision) as whole:
        assert session.versions()["precision"] == precision
        made = session.generate([1, 2], OPTIONS, seed=3)
        np.testing.assert_array_equal(made.tokens, whole.generate([1, 2], OPTIONS, seed=3).tokens)
    with Bundle.open(gpu_copy).session() as session:
        assert session.versions()["precision"] == "fp32"
        full = session.generate([1, 2], OPTIONS, seed=3)
        other = precision == "fp16"
        assert (np.abs(full.tokens - made.tokens).max() > 0) == other
        np.testing.assert_allclose(full.latents, made.latents, atol=0.2)


def test_a_slim_bundle_for_a_device_has_its_engines_only(engines, tmp_path):
    out = tmp_path / "slim"
    assert run("--slim", engines, "--for", "sm_89,fp16", "--out", out) == 0
    slim = Bundle.open(out)
    assert {e.compute_capabilities for e in slim.manifest.engines} == {("8.9",)}
    assert len(slim.manifest.engines) == len(slim.manifest.every_graph) == 4
    assert not list(out.glob("*.onnx*"))
    assert leftovers(out) == ["engines", "kernels", "manifest.json"]
    with pytest.raises(BackendError, match=r"no graphs that onnxruntime runs, only fp16 engines"):
        slim.session("onnxruntime")
    with pytest.raises(CsdError):  # what a session tries on a machine without a device
        slim.session()
    other = tmp_path / "portable"
    assert run("--slim", engines, "--for", "fp16,sm80", "--out", other) == 0
    assert {e.compute_capabilities for e in Bundle.open(other).manifest.engines} == {("8.0", "8.9")}


def test_engines_of_a_slim_bundle_are_not_rebuilt(engines, tmp_path, capsys):
    run("--slim", engines, "--for", "sm_89,fp16", "--out", tmp_path / "slim")
    capsys.readouterr()
    argv = ["--rebuild", tmp_path / "slim", "--backend", "tensorrt_rtx"]
    message = failure(main, argv, capsys)
    assert "is slim and holds engines only: rebuild the bundle that it was made from" in message


def test_an_export_can_be_slim(config_files, tmp_path):
    argv = ["--target", DATA / "draft.pth", "--target-config", config_files["draft"]]
    argv += ["--calibration-tokens", 0, "--precision", "fp16", "--slim", "--max-batch", 1]
    assert run(*argv, "--out", tmp_path / "bundle") == 0
    slim = Bundle.open(tmp_path / "bundle")
    assert slim.manifest.precisions == ("fp16",)
    assert {p.name for p in slim.path.iterdir()} == {*slim.manifest.file_hashes, "manifest.json"}
    with slim.session() as session:
        assert np.isfinite(session.generate([1], OPTIONS).latents).all()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--for", "fp16"], "for is 'fp16': give a precision and a target"),
        (["--for", "cpu,sm_89,fp16"], "give a precision and a target"),
        (["--for", "fp8,cpu"], "'fp8' is neither: give a precision and a target"),
        (["--for", "bf16,cpu"], "the CPU runs fp32, fp16 and int8; give"),
        (["--for", "fp16,sm_75"], "has no fp16 engine of target.backbone for sm_75: csd-export "),
        (["--for", "fp32,sm_89"], "--precision fp32 --sm 89, then this again"),
        (["--for", "fp16,sm_89", "--backend", "tensorrt"], "--backend tensorrt --precision fp16"),
        ([], "--slim BUNDLE needs --for"),
        (["--for", "fp16,cpu", "--precision", "fp16"], "--precision does not go with --slim"),
        (["--for", "fp16,cpu", "--zoo", "fashion-mnist"], "--zoo does not go with --slim"),
    ],
)
def test_what_cannot_be_made_slim_is_one_line(argv, message, engines, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    argv = ["--slim", engines, *argv, "--out", out / "slim"]
    assert message in failure(main, argv, capsys)
    assert leftovers(out) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--slim", "--precision", "fp16,fp32"], "--slim takes one precision, not 2"),
        (["--slim", "--precision", "bf16"], "--slim without engines is for the CPU"),
        (["--slim", "--head-chain"], "--head-chain does not go with --slim"),
        (["--for", "fp16,cpu"], "--for needs --slim BUNDLE"),
    ],
)
def test_a_slim_export_of_more_than_one_thing_is_one_line(argv, message, tmp_path, capsys):
    argv = ["--zoo", "fashion-mnist", *argv, "--out", tmp_path / "bundle"]
    assert message in failure(main, argv, capsys)
    assert not (tmp_path / "bundle").exists()


def test_a_damaged_bundle_is_not_copied(gpu_copy, tmp_path, capsys):
    path = gpu_copy / "target_backbone.fp16.onnx.data"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    (tmp_path / "out").mkdir()
    argv = ["--slim", gpu_copy, "--for", "fp16,cpu", "--out", tmp_path / "out" / "slim"]
    assert "target_backbone.fp16.onnx.data was altered" in failure(main, argv, capsys)
    assert leftovers(tmp_path / "out") == []
    argv[3] = "fp32,cpu"
    assert run(*argv) == 0
    assert "belongs to the bundle" in failure(main, [*argv[:-1], gpu_copy / "x"], capsys)


def test_a_graph_without_files_needs_an_engine(engines, tmp_path):
    run("--slim", engines, "--for", "fp16,sm_89", "--out", tmp_path / "slim")
    path = tmp_path / "slim" / "manifest.json"
    values = json.loads(path.read_bytes())
    values["engines"] = values["engines"][1:]
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(CsdError, match="files is empty, and no engine is of that graph"):
        Bundle.open(tmp_path / "slim")


def test_the_parts_of_what_it_is_for_come_in_any_order():
    assert parse_for("fp16,sm_89") == parse_for("sm89, fp16") == SlimFor("fp16", "8.9")
    assert parse_for("sm_120,bf16") == SlimFor("bf16", "12.0")
    assert parse_for("cpu,fp32") == SlimFor("fp32", None)


def test_a_slim_bundle_replaces_one_with_force_only(gpu_bundle, tmp_path, capsys):
    out = tmp_path / "slim"
    shutil.copytree(gpu_bundle, out)
    argv = ["--slim", gpu_bundle, "--for", "fp16,cpu", "--out", out]
    assert "give --force to replace it" in failure(main, argv, capsys)
    assert run(*argv, "--force") == 0
    assert Bundle.open(out).manifest.precisions == ("fp16",)
