"""`csd-inspect` as its users run it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from csd.runtime import Bundle
from csd.runtime.bundle.manifest import file_sha256
from csd.runtime.device import current_platform
from csd.tools.inspect.cli import main

from ...helpers import edit_manifest, failure, leftovers, no_draft, run_python

INSPECT = "import sys; from csd.tools.inspect.entry import main; sys.exit(main())"
ENGINE = {
    "graph": "target.backbone", "backend": "tensorrt", "precision": "fp32",
    "file": "engines/x.engine", "sha256": "0" * 64, "size": 3, "library": "10.3.0",
    "platform": current_platform(), "compute_capabilities": ["8.7"], "build_seconds": 1.5,
    "fingerprint": {"onnx": "x"},
}  # fmt: skip
PRESET = {
    "options": {"head": "speculative", "num_iter": 8}, "precision": None,
    "evidence": {
        "metric": "distance in pixels", "images": 500, "margin": 0.1, "drop": 0.01, "most": 0.05,
        "error": 0.05, "seconds": 0.1, "baseline_seconds": 0.4, "backend": "onnxruntime",
        "machine": "a processor", "date": "2026-01-01",
    },
}  # fmt: skip


def with_more(values: dict) -> None:
    values["engines"] = [ENGINE]
    values["presets"] = {"tuned": PRESET}


@pytest.fixture
def richer(make_bundle) -> Path:
    """A bundle with an engine and a preset."""
    bundle = make_bundle(with_more, "richer")
    (bundle / "engines").mkdir()
    (bundle / "engines/x.engine").write_bytes(b"abc")
    return bundle


def document(capsys: pytest.CaptureFixture[str], *argv: object, code: int = 0) -> dict:
    capsys.readouterr()
    assert main([*map(str, argv), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_tables_are_whole_in_a_pipe_and_json_is_written_beside_them(richer, tmp_path):
    # Named: readline, which pytest imports, sets COLUMNS where Python does not see it.
    done = run_python(INSPECT, richer, "--json", "x.json", cwd=tmp_path, env={**os.environ})
    assert (done.returncode, done.stderr) == (0, "")
    for name, digest in Bundle.open(richer).manifest.file_hashes.items():
        assert name in done.stdout
        assert digest in done.stdout  # no line is cut
    for text in (
        "target.head_modulation", "tokens float32 [B, V, 16]", "pass, ", "sm_87", "tensorrt 10.3.0",
        "tuned", "distance in pixels", "chance that so many drafted transitions", "2 x 64, 4 heads",
        "model_ema", "B 1:2:66",
    ):  # fmt: skip
        assert text in done.stdout, text
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["kind"] == "bundle"


def test_a_range_is_no_picture(make_bundle, capsys):
    def change(values):
        values["graphs"]["target.head_step"]["profile"]["S"] = [1, 100, 100]

    assert main([str(make_bundle(change))]) == 0
    assert "S 1:100:100" in capsys.readouterr().out


def test_sealed_code_is_told_and_is_a_difference(tiny_bundle, make_bundle, capsys):
    sealed = make_bundle()
    (sealed / "libcsd_plugins.so").write_bytes(b"plugins")
    digest = file_sha256(sealed / "libcsd_plugins.so")
    edit_manifest(sealed, lambda values: values.update(code={"libcsd_plugins.so": digest}))
    assert main([str(sealed), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["code"] == {"libcsd_plugins.so": digest}
    assert main([str(tiny_bundle), "--diff", str(sealed), "--json"]) == 1
    (change,) = json.loads(capsys.readouterr().out)["changes"]
    assert change == {
        "field": "code.libcsd_plugins.so", "change": "added", "a": None, "b": digest
    }  # fmt: skip


def test_json_has_what_the_manifest_has(richer, capsys):
    values = document(capsys, richer)
    manifest = Bundle.open(richer).manifest
    assert values["manifest_sha256"] == file_sha256(richer / "manifest.json")
    assert values["files"]["decoder.onnx.data"]["bytes"] == os.path.getsize(
        richer / "decoder.onnx.data"
    )
    assert values["bytes"] == sum(row["bytes"] for row in values["files"].values())
    assert values["models"]["target"]["config"] == manifest.target.to_dict()
    assert values["models"]["target"]["counted_in"] == "weights of its graphs"
    assert values["sampling"]["draft"]["head_steps"] == manifest.head_steps
    graph = values["graphs"]["target.head_step"]["fp32"]
    assert graph["inputs"][0] == {"name": "x", "dtype": "float32", "shape": ["R", 16]}
    assert graph["parity"]["passed"] is True
    assert values["engines"][0]["architectures"] == ["sm_87"]
    assert values["engines"][0]["profile"]["V"] == [0, 8, 16]
    assert values["presets"]["tuned"]["evidence"]["images"] == 500
    assert values["sources"]["target"]["weights"] == "ema"
    survival = values["calibration"]["survival"]["target"]
    assert [*survival] == ["1", "2", "4", "8", "16", "32", "64"]
    assert all(len(row) == manifest.head_steps for row in survival.values())
    assert all(a >= b for a, b in zip(survival["1"], survival["64"], strict=True))


def test_parameters_are_those_of_the_model_and_the_exporters_constants(
    tiny_bundle, tiny_models, capsys
):
    """Of small models the constants are many: embeddings of all timesteps, tables of positions."""
    values = document(capsys, tiny_bundle)
    for role, model in tiny_models.items():
        own = sum(parameter.numel() for parameter in model.parameters())
        assert own <= values["models"][role]["parameters"] <= own + 80_000


def test_a_slim_bundle_of_engines_counts_in_its_configuration(make_bundle, capsys):
    def engines_only(values):
        values["engines"] = [
            {**ENGINE, "graph": n, "file": f"{n}.engine"} for n in values["graphs"]
        ]
        for graph in values["graphs"].values():
            graph["files"] = {}

    bundle = make_bundle(engines_only)
    for engine in json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["engines"]:
        (bundle / engine["file"]).write_bytes(b"abc")
    values = document(capsys, bundle)
    assert values["models"]["target"]["counted_in"] == "matrices of its configuration"
    line = failure(main, [bundle, "--graph", "decoder"], capsys)
    assert "has an engine of decoder and no graph" in line


def test_one_graph_with_its_layers(tiny_bundle, capsys):
    assert main([str(tiny_bundle), "--graph", "target.head_step", "--layers"]) == 0
    out = capsys.readouterr().out
    for text in ("ai.onnx 20", "LayerNormalization", "mods", "[S, N, 1056]", "node_linear",
                 "target_head_step.onnx.data"):  # fmt: skip
        assert text in out
    values = document(capsys, tiny_bundle, "--graph", "target.head_step", "--layers")
    assert (values["kind"], values["precision"]) == ("graph", "fp32")
    assert len(values["layers"]) == values["nodes"] == sum(values["operators"].values())
    assert sum(row["parameters"] for row in values["dtypes"].values()) == values["parameters"]
    gemm = next(row for row in values["layers"] if row["operator"] == "Gemm")
    assert gemm["inputs"][0] == {"name": "x", "dtype": "float32", "shape": ["R", 16]}
    assert "layers" not in document(capsys, tiny_bundle, "--graph", "decoder")


def test_a_variant_is_shown_where_it_is_asked_for(local_bundle, capsys):
    values = document(capsys, local_bundle, "--graph", "target.backbone", "--precision", "fp16")
    assert "float16" in values["dtypes"]
    whole = document(capsys, local_bundle)
    assert whole["precisions"] == ["fp32", "fp16", "int8"]
    assert set(whole["graphs"]["target.backbone"]) == {"fp32", "fp16", "int8"}
    line = failure(main, [local_bundle, "--graph", "decoder", "--precision", "bf16"], capsys)
    assert "has no bf16 graph decoder: give --precision fp32 or fp16" in line


def test_a_bundle_is_the_same_as_itself_and_as_a_copy(tiny_bundle, make_bundle, capsys):
    copy = make_bundle()
    text = (copy / "manifest.json").read_text(encoding="utf-8")
    (copy / "manifest.json").write_text(json.dumps(json.loads(text)), encoding="utf-8")
    for other in (tiny_bundle, copy):  # the hash of its text is another
        assert main([str(tiny_bundle), "--diff", str(other)]) == 0
        assert "the bundles hold the same" in capsys.readouterr().out
    assert document(capsys, tiny_bundle, "--diff", copy)["same"] is True


def test_every_kind_of_difference_is_told(tiny_bundle, richer, make_bundle, capsys):
    values = document(capsys, tiny_bundle, "--diff", richer, code=1)
    found = {row["field"]: row for row in values["changes"]}
    assert [*found] == [
        "presets.tuned", f"engines.target.backbone tensorrt fp32 {current_platform()} sm_87",
    ]  # fmt: skip
    assert {row["change"] for row in found.values()} == {"added"}
    back = document(capsys, richer, "--diff", tiny_bundle, code=1)
    assert {row["change"] for row in back["changes"]} == {"removed"}

    def changed(values):
        no_draft(values)
        values["name"] = "other"
        values["calibration"] = None
        values["models"]["target"]["num_iter"] = 3
        values["parity"][0]["max_rel"] = None
        values["parity"][0]["passed"] = False
        values["sources"].pop("draft")

    other = make_bundle(changed, "other")
    assert main([str(tiny_bundle), "--diff", str(other)]) == 1
    out = capsys.readouterr().out
    for field in ("name", "models.draft", "models.target.num_iter", "calibration",
                  "graphs.draft.backbone", "graphs.target.backbone.fp32.parity.passed",
                  "sources.draft"):  # fmt: skip
        assert f"\n{field} " in out, field


def test_a_graph_that_was_exported_anew_differs_by_its_hash(tiny_bundle, emigm_bundle, capsys):
    values = document(capsys, tiny_bundle, "--diff", emigm_bundle, code=1)
    fields = {row["field"] for row in values["changes"]}
    assert "graphs.target.head_step.fp32.files.target_head_step.onnx" in fields
    assert "precisions" in fields
    assert values["a"]["path"] == str(tiny_bundle)


def test_the_survival_is_drawn(tiny_bundle, tmp_path, capsys):
    for name, start in (("x.png", b"\x89PNG"), ("x.svg", b"<?xml"), ("x.pdf", b"%PDF")):
        assert main([str(tiny_bundle), "--plot", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--plot", "x.txt"], "give a file that ends in .png, .svg, .pdf"),
        (["--layers"], "--layers is of a graph: give --graph NAME too"),
        (["--precision", "fp32"], "--precision is of a graph: give --graph NAME too"),
        (["--graph", "x"], "has no graph 'x': give one of target.backbone, "),
        (["--graph", "decoder", "--plot", "x.png"], "leave --plot or --graph out"),
        (["--graph", "decoder", "--diff", "x"], "leave --diff or --graph out"),
        (["--diff", "x", "--plot", "x.png"], "leave --plot or --diff out"),
        (["--diff", "gone"], "no bundle at gone"),
        (["--json", "x.png", "--plot", "x.png"], "are one file"),
        (["--json", "{}/x.json"], "belongs to the bundle"),
    ],
)
def test_what_does_not_go_together_is_refused(
    argv, said, tiny_bundle, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    argv = [part.replace("{}", str(tiny_bundle)) for part in argv]
    assert said in failure(main, [tiny_bundle, *argv], capsys)
    assert leftovers(tmp_path) == []


def test_a_plot_without_matplotlib_or_calibration_is_refused(make_bundle, tiny_bundle, tmp_path,
                                                            capsys):  # fmt: skip
    bare = make_bundle(lambda values: values.update(calibration=None))
    line = failure(main, [bare, "--plot", tmp_path / "x.png"], capsys)
    assert "has no calibration to draw: leave --plot out, or export it with" in line
    hidden = f"import sys; sys.modules['matplotlib'] = None\n{INSPECT}"
    done = run_python(hidden, tiny_bundle, "--plot", tmp_path / "x.png")
    assert done.returncode == 2
    assert done.stderr == (
        "csd-inspect: error: --plot needs matplotlib, which is not installed: pip install "
        "matplotlib, or leave --plot out\n"
    )
    assert not (tmp_path / "x.png").exists()


def test_runtime_packages_are_enough(tiny_bundle):
    names = ("onnx", "onnxruntime", "torch", "matplotlib", "onnxscript", "safetensors")
    hidden = f"import sys; sys.modules.update(dict.fromkeys({names}))\n{INSPECT}"
    done = run_python(hidden, tiny_bundle, "--graph", "target.backbone", "--layers")
    assert (done.returncode, done.stderr) == (0, "")
    assert run_python(hidden, tiny_bundle).returncode == 0


def test_a_damaged_bundle_is_refused_and_the_doctor_named(make_bundle, tmp_path, capsys):
    bundle = make_bundle()
    (bundle / "decoder.onnx").unlink()
    assert failure(main, [bundle], capsys) == (
        f"bundle {bundle} lacks decoder.onnx: export it again with csd-export; csd-doctor {bundle} "
        "checks every file"
    )
    (tmp_path / "empty").mkdir()
    assert "csd-doctor" not in failure(main, [tmp_path / "empty"], capsys)
    altered = make_bundle(name="altered")
    with (altered / "calibration.npz").open("r+b") as stream:
        stream.write(b"x")
    assert "was altered" in failure(main, [altered], capsys)
