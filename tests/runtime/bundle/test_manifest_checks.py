"""Every field of a manifest is checked, and an error names the field and what was wanted."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from csd.runtime import Bundle, BundleError
from csd.runtime.bundle.manifest import Manifest, ParityResult
from csd.runtime.command.text import plain, shown

from ...helpers import edit_manifest, forge_hashes, tiny_config

HUGE = 10**400
NO_NUMBERS = [None, "8", 2.5, True, -1, 0, HUGE, [], {}]
ENGINE = {
    "graph": "decoder", "backend": "tensorrt", "precision": "fp32", "file": "x.engine",
    "sha256": "0" * 64, "size": 1, "library": "10.3", "platform": "linux-x86_64",
    "compute_capabilities": ["8.7"], "build_seconds": 1.0, "fingerprint": {},
}  # fmt: skip
PRESET = {
    "options": {"mode": "csd", "cfg": 3.0, "head_steps": [20, 5]}, "precision": None,
    "evidence": {
        "metric": "kernel distance", "images": 9, "margin": 0.02, "drop": -0.01, "most": 0.01,
        "error": 0.05, "seconds": 1.0, "baseline_seconds": 2.0, "backend": "onnxruntime",
        "machine": "a processor", "date": "2026-01-01",
    },
}  # fmt: skip
DECODER = "graphs.decoder"
# Field -> values that are refused.
BAD = {
    "name": [None, 3, "", "x" * 201, "a\x1b[31mb", "a\nb", "a\u202eb", "\x00"],
    "models": [None, [], {}, {"other": {}}, {"target": []}, {"target": {}, "draft": None}],
    "models.target.encoder_depth": [0, "two", HUGE, 10**9, None, 1.5, True],
    "models.target.norm_eps": ["x", -1, HUGE, None],
    "models.draft.class_num": [11],
    "models.draft.beta_schedule": ["linear", "x" * 10**5, 7],
    "head_steps": [*NO_NUMBERS, 1001],
    "max_batch": [*NO_NUMBERS, 1025],
    "max_gamma": [*NO_NUMBERS, 1025],
    "schema_version": [None, "1", 0, -1, 1.0, True, HUGE],
    "class_names": [3, "abc", {}, ["a"] * 10, ["a"], [1] * 10, [*"abcdefghi", "\x1b[2J"],
                    [*"abcdefghi", ""]],
    "graphs": [None, [], {"x y": {}}, {"\x1b": {}}, {"target.other": None}],
    DECODER: [None, [], {}],
    f"{DECODER}.files": [None, [], {"decoder.onnx": None}, {"decoder.onnx": "0"}, {"": "0"},
                         {"decoder.onnx": "g" * 64}, {"manifest.json": "0" * 64}],
    f"{DECODER}.inputs": [None, {}, [], [{}], [{"name": "latents"}], 5],
    f"{DECODER}.inputs.0.name": [None, "", "other", "a b", "\n"],
    f"{DECODER}.inputs.0.dtype": [None, "float64", "int64", [], "f"],
    f"{DECODER}.inputs.0.shape": [None, [], ["B"], ["B", 16, 4], ["B", 16, 4, 5], ["B", 16, 4, 0],
                                  ["B", 16, 4, -4], ["B", 16, 4, "x"], ["B", 16, 4, 4.0],
                                  ["Z", 16, 4, 4], [1, 16, 4, 4], [["B"], 16, 4, 4], ["B"] * 99],
    f"{DECODER}.outputs.0.shape": [["B", 3, 64, 63], ["B", 1, 64, 64], ["B", 3, "H", "W"]],
    f"{DECODER}.profile": [None, [], {}, {"B": 1}, {"B": [1, 2]}, {"B": [2, 1, 3]},
                           {"B": [1, 2, HUGE]}, {"B": [-1, 1, 1]}, {"B": [1, 1, 1.5]},
                           {"b": [1, 1, 1]}],
    "variants": [None, [], {"fp8": {}}, {"fp16": []}],
    "variants.fp16": [{"other.backbone": None}],
    "engines": [None, {}, [None], [{}], [{**ENGINE, "extra": 1}], [ENGINE] * 10_001],
    "calibration": [3, [], {}, "calibration.npz"],
    "calibration.file": [None, 3, [], {}, ["calibration.npz"], "decoder.onnx", "manifest.json"],
    "calibration.sha256": [None, 3, "0", "Z" * 64],
    "calibration.head_steps": [*NO_NUMBERS, 1001],
    "calibration.tokens": NO_NUMBERS,
    "calibration.row_cost": [None, "x", 0, -1, HUGE, True],
    "parity": [None, {}, [None], [{}]],
    "parity.0.max_abs": ["x", -1, HUGE, True],
    "parity.0.tolerance": [None, "x", -1, HUGE],
    "parity.0.passed": [None, 1, "true"],
    "parity.0.shapes": [None, -1, 1.5],
    "sources": [None, [], {"target": "here"}, {"target": {}}, {"target": {"path": 3}}],
    "sources.target.path": [None, 3, "", "a\x1bb", "x" * 5000],
    "created_by": [None, 4, {"csd": 3}, {"\x1b": "x"}, {"csd": "\x07"}],
    "code": [None, [], {"x.so": "0" * 64}, {"libcsd_plugins.so": "0"}],
    "presets": [None, [], {"a b": PRESET}, {"x": {}}, {"x": {**PRESET, "extra": 1}}],
    "presets.tuned.options": [None, [], {"wat": 1}, {"cfg": "x"}, {"mode": "fast"},
                              {"head_steps": [1, 2, 3]}, {"cfg": HUGE}, {"\x1b": 1}],
    "presets.tuned.precision": [3, "fp8", []],
    "presets.tuned.evidence": [None, {}, []],
    "presets.tuned.evidence.images": NO_NUMBERS,
    "presets.tuned.evidence.drop": [None, "x", HUGE, True],
    "presets.tuned.evidence.machine": [None, 3, "", "a\x1bb"],
    "extra": [1],
}  # fmt: skip
BAD |= {
    f"engines.0.{field}": values
    for field, values in {
        "graph": [None, 3, "", "a b", "\x1b"],
        "backend": [None, "onnx", 3, []],
        "precision": [None, "fp8", 3],
        "sha256": [None, 3, ""],
        "size": [None, -1, 1.5, HUGE],
        "library": [None, 10.3, "", "\x1b"],
        "platform": [None, 3, "a b"],
        "compute_capabilities": [None, [], "8.7", ["87"], [8.7], ["8.7"] * 100],
        "build_seconds": [None, "1", -1, HUGE],
        "fingerprint": [None, [], {"x": 3}, {"x": "\x1b"}],
    }.items()
}


def _set(values, path, value):
    *keys, last = path.replace("graphs.decoder", "graphs!decoder").split(".")
    for key in "!".join(keys).split("!") if keys else []:
        values = values[int(key) if isinstance(values, list) else key]
    if "!" in last:
        parent, last = last.split("!")
        values = values[parent]
    values[last] = value


@pytest.mark.parametrize("field", BAD)
def test_a_bad_value_is_one_short_line_that_names_the_field(tiny_bundle, field):
    text = (tiny_bundle / "manifest.json").read_text(encoding="utf-8")
    for value in BAD[field]:
        values = json.loads(text)
        values["engines"] = [dict(ENGINE)]
        values["presets"] = {"tuned": copy.deepcopy(PRESET)}
        Manifest.from_json(json.dumps(values))
        _set(values, field, value)
        with pytest.raises(BundleError, match="again") as error:
            Manifest.from_json(json.dumps(values))
        message = str(error.value)
        assert len(message) < 420, message
        assert message.isprintable()
        if field not in ("schema_version", "extra"):
            name = field.replace("engines.0", "engines[0]").replace("parity.0", "parity[0]")
            last = name.split(".")[-1]
            others = name.split(".0")[0], "graphs.decoder.profile lacks dimension"
            assert last in message or any(other in message for other in others), message


def test_every_field_has_values_that_are_refused(tiny_bundle):
    values = json.loads((tiny_bundle / "manifest.json").read_text(encoding="utf-8"))
    tested = {field.split(".")[0] for field in BAD}
    assert set(values) <= tested
    assert {f"engines.0.{field}" for field in ENGINE if field != "file"} <= set(BAD)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**6, '{"a":' * 10**5, '{"schema_version": NaN}', '{"schema_version": Infinity}',
        '{"schema_version": 2, "schema_version": 2}', '{"schema_version": 1e999}',
        '{"schema_version": ' + "9" * 5000 + "}", "\ud800",
    ],
    ids=range(8),
)  # fmt: skip
def test_json_that_is_odd_is_refused(text):
    with pytest.raises(BundleError, match="again") as error:
        Manifest.from_json(text)
    assert len(str(error.value)) < 400


def test_a_manifest_of_many_megabytes_is_not_read(make_bundle):
    bundle = make_bundle()
    with (bundle / "manifest.json").open("wb") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(BundleError, match=r"manifest\.json has over 16 MiB: export the bundle"):
        Bundle.open(bundle)


@pytest.mark.parametrize("graph", ["backbone", "head_step", "head_modulation"])
def test_a_drafts_graph_under_the_targets_name_is_refused(make_bundle, graph):
    bundle = make_bundle()

    def swap(values):
        graphs = values["graphs"]
        graphs[f"target.{graph}"] = graphs[f"draft.{graph}"]

    edit_manifest(bundle, swap)
    with pytest.raises(BundleError, match=rf"graphs\.target\.{graph}\..* wanted .* configuration"):
        Bundle.open(bundle)

    other = make_bundle(name="other")

    def files(values):
        graphs = values["graphs"]
        graphs[f"target.{graph}"]["files"] = graphs[f"draft.{graph}"]["files"]

    edit_manifest(other, files)
    with pytest.raises(BundleError, match=rf"draft_{graph}\.onnx, graph target\.{graph}: .* is "):
        Bundle.open(other)


def test_one_file_has_one_content_and_one_use(make_bundle):
    bundle = make_bundle(lambda v: v["engines"].append({**ENGINE, "file": "decoder.onnx"}))
    with pytest.raises(BundleError, match=r"file names decoder\.onnx, which is named as a graph"):
        Bundle.open(bundle)


@pytest.mark.parametrize("change", ["nan", "inf", "float64", "shape", "lacks", "object", "huge"])
def test_a_calibration_of_wrong_arrays_is_named(make_bundle, change):
    bundle = make_bundle()
    path = bundle / "calibration.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    bias = arrays["target.bias"]
    arrays["target.bias"] = {
        "nan": np.where(np.arange(bias.shape[1]) == 3, np.nan, bias).astype(np.float32),
        "inf": np.full_like(bias, np.inf), "float64": bias.astype(np.float64),
        "shape": bias[:-1], "lacks": bias, "object": bias.astype(object),
        "huge": np.zeros((10**6, 10), np.float32),
    }[change]  # fmt: skip
    if change == "lacks":
        del arrays["target.bias"]
    np.savez(path, **arrays)
    forge_hashes(bundle)
    with pytest.raises(BundleError, match=r"cannot read calibration\.npz \(.*target\.bias.*again"):
        Bundle.open(bundle).session()


def test_a_difference_that_is_not_finite_is_no_number_of_json_and_comes_back():
    failed = ParityResult("decoder", 2, float("inf"), float("inf"), 1e-4, passed=False)
    manifest = Manifest("x", {"target": tiny_config("target")}, 20, 8, 32, {}, parity=(failed,))
    text = manifest.to_json()
    assert json.loads(text, parse_constant=pytest.fail)["parity"][0]["max_abs"] is None
    assert Manifest.from_json(text) == manifest
    with pytest.raises(BundleError, match="passed with a difference that is not finite"):
        Manifest.from_json(text.replace('"passed": false', '"passed": true'))


def test_values_of_strangers_are_shown_short_and_without_control_characters():
    assert shown("\x1b[31m\u202e\n") == r"'\x1b[31m\u202e\n'"
    assert len(shown("x" * 10**6)) == len(shown(list(range(10**4)))) == 60
    assert shown(10**5000) == "<int>"
    assert plain("a\x1b\nb\x07" + "c" * 500).startswith(r"a\x1b b\x07ccc")
    assert len(plain("c" * 500)) == 300
