from __future__ import annotations

import dataclasses
import errno
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from csd.export.arguments import build_parser
from csd.export.cli import main
from csd.export.parts import stride_warning
from csd.runtime import Bundle
from csd.runtime.bundle.manifest import file_sha256
from csd.runtime.errors import ExportError

from .. import nasty
from ..helpers import DATA, edit_manifest, failure, leftovers, run_python, tiny_config
from ..pairwise import pairwise

COMMAND = "from csd.export.cli import main; raise SystemExit(main())"


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def target(config_files):
    return ["--target", DATA / "target.pth", "--target-config", config_files["target"]]


@pytest.fixture
def draft(config_files):
    return ["--draft", DATA / "draft.pth", "--draft-config", config_files["draft"]]


def _config(path, **changes):
    text = json.dumps({**tiny_config("target").to_dict(), **changes})
    path.write_text(text, encoding="utf-8")
    return path


def test_an_export_prints_progress_and_a_parity_table(tiny_export):
    bundle, shown = tiny_export
    table = shown.split("largest difference to PyTorch")[1]
    for graph in Bundle.open(bundle).manifest.graphs:
        assert f"{graph}: exporting" in shown
        assert f"{graph} " in table
    assert table.count("pass") == 7
    assert "FAIL" not in shown
    assert f"bundle written to {bundle}" in shown.replace("\n", "")
    beside = leftovers(bundle.parent)
    assert "bundle" in beside
    assert not [name for name in beside if name.startswith(".")]


def test_a_target_alone_makes_a_bundle_with_the_limits_given(target, tmp_path):
    argv = [*target, "--max-batch", 1, "--head-steps", 7]
    argv += ["--calibration-tokens", 0]
    assert main([str(part) for part in [*argv, "--out", tmp_path / "new" / "bundle"]]) == 0
    manifest = Bundle.open(tmp_path / "new" / "bundle").manifest
    assert set(manifest.models) == {"target"}
    assert (manifest.max_batch, manifest.head_steps) == (1, 7)
    # Nothing is drafted, so a backbone takes both branches of an image and no prefixes.
    assert manifest.graphs["target.backbone"].profile["B"] == (1, 2, 2)
    assert manifest.calibration is None
    assert leftovers(tmp_path / "new") == ["bundle"]


def test_the_parity_report_and_the_sources_are_in_the_manifest(tiny_bundle):
    manifest = Bundle.open(tiny_bundle).manifest
    assert [row.graph for row in manifest.parity] == list(manifest.graphs)
    for row in manifest.parity:
        print(f"{row.graph}: {row.max_abs:.1e} of tolerance {row.tolerance:.0e}")
        assert row.passed
        assert row.shapes >= 2
        assert 0 <= row.max_abs < row.tolerance == 1e-4
    for role, name in (("target", "target.pth"), ("draft", "draft.pth"), ("decoder", "vae.ckpt")):
        assert manifest.sources[role].path == name
        assert manifest.sources[role].sha256 == file_sha256(DATA / name)
    assert {"csd", "torch", "onnx"} <= set(manifest.created_by)


def test_graphs_have_the_inputs_and_outputs_of_the_design(tiny_bundle):
    graphs = Bundle.open(tiny_bundle).manifest.graphs
    backbone = {spec.name: (spec.dtype, spec.shape) for spec in graphs["target.backbone"].inputs}
    assert backbone == {
        "tokens": ("float32", ("B", "V", 16)), "visible": ("int64", ("B", "V")),
        "query": ("int64", ("B", "P")), "label": ("int64", ("B",)),
    }  # fmt: skip
    assert [spec.name for spec in graphs["target.backbone"].outputs] == ["z"]
    head = graphs["draft.head_step"]
    assert [spec.name for spec in head.inputs] == ["x", "step", "token", "mods"]
    assert [spec.name for spec in head.outputs] == ["eps", "v"]
    assert graphs["draft.head_modulation"].outputs[0].shape == ("S", "N", (3 * 2 + 2) * 64)
    assert graphs["decoder"].inputs[0].shape == ("B", 16, 4, 4)
    for graph in graphs.values():
        named = {
            d for spec in (*graph.inputs, *graph.outputs) for d in spec.shape if isinstance(d, str)
        }
        assert named <= set(graph.profile)
        assert all(low <= usual <= high for low, usual, high in graph.profile.values())


@pytest.mark.parametrize(("difference", "told"), [(1e-3, "1.0e-03"), (np.nan, "inf")])
def test_a_graph_that_differs_from_pytorch_fails_the_export(
    difference, told, target, tmp_path, monkeypatch, capsys
):
    from csd.runtime.backends.onnx_runtime import OnnxGraph

    run = OnnxGraph.run

    def off(self, feeds):
        outputs = run(self, feeds)
        if "eps" in outputs:
            outputs["eps"] = outputs["eps"] + difference
        return outputs

    monkeypatch.setattr(OnnxGraph, "run", off)
    argv = [*target, "--calibration-tokens", 0, "--out", tmp_path / "bundle"]
    assert main([str(part) for part in argv]) == 1
    shown = capsys.readouterr().out
    found, row = [line for line in shown.splitlines() if "FAIL" in line]  # as it is found, and last
    assert told in found
    assert told in row
    assert "parity failed: target.head_step" in shown
    assert not Bundle.open(tmp_path / "bundle").manifest.parity[2].passed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give either --zoo NAME or --target FILE"),
        (["--zoo", "fashion-mnist", "--target", "x", "--target-config", "y"], "give either --zoo"),
        (["--zoo", "fashion-mnist", "--draft", "x"], "--draft does not go with --zoo"),
        (["--zoo", "fashion-mnist", "--decoder", "x"], "--decoder does not go with --zoo"),
        (["--zoo", "imagenet"], "zoo is 'imagenet': give one of fashion-mnist"),
        (["--target", "x"], "--target and --target-config go together: give both"),
        (["--target-config", "x"], "give either --zoo"),
        (["--target", "gone.pth", "--target-config", "mar_tiny"], "no configuration 'mar_tiny'"),
        (["--target", "gone.pth", "--target-config", "mar_base"], "no weights at gone.pth"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(argv, message, out, capsys):
    assert message in failure(main, [*argv, "--out", out / "bundle"], capsys)
    assert leftovers(out) == []


def test_options_of_an_export_without_effect_are_refused(target, draft, out, capsys):
    place = ["--out", out / "bundle"]
    said = failure(main, [*target, "--max-gamma", 32, *place], capsys)
    assert said == (
        "--max-gamma has no effect, as nothing is drafted without a draft: give --draft and "
        "--draft-config, or leave out --max-gamma"
    )
    both = [*target, *draft]
    said = failure(main, [*both, "--calibration-tokens", 0, "--row-cost", 0.1, *place], capsys)
    assert "--row-cost has no effect, as nothing is fitted on no tokens" in said
    for role in ("draft", "decoder"):
        said = failure(main, [*target, f"--weights=target=ema,{role}=ema", *place], capsys)
        assert f"--weights has {role}=, and there is no --{role}" in said
    assert leftovers(out) == []


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("head-steps", (0, -1, 1001)),
        ("max-batch", (0, -2, 10**6)),
        ("max-gamma", (0, 10**6)),
        ("calibration-tokens", (-1, 3)),
    ],
)
def test_numbers_out_of_range_are_one_line(option, values, target, out, capsys):
    for value in values:
        argv = [*target, f"--{option}", value, "--out", out / "bundle"]
        assert f"{option} is {value}: give" in failure(main, argv, capsys)
    assert leftovers(out) == []


@pairwise(
    "role, suffix, damage",
    ["target", "draft"], ["pth", "safetensors"], ["missing", "truncated", "garbage", "empty"],
)  # fmt: skip
def test_weights_that_cannot_be_read_are_one_line(
    role, suffix, damage, target, draft, tmp_path, out, capsys
):
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        from safetensors.torch import save_file

        save_file(torch.load(DATA / "draft.pth", weights_only=True)["model_ema"], path)
    else:
        shutil.copy(DATA / f"{role}.pth", path)
    raw = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": raw[:-100], "garbage": b"\x93" * 999, "empty": b""}[damage])
    argv = [*target, *draft]
    argv[1 if role == "target" else 5] = path
    message = failure(main, [*argv, "--out", out / "bundle"], capsys)
    assert str(path) in message
    assert ("give the path" if damage == "missing" else "fetch the file again") in message
    assert leftovers(out) == []


def test_weights_that_do_not_fit_the_configuration_are_one_line(tmp_path, out, capsys):
    config = _config(tmp_path / "config.json", diffloss_w=64)
    argv = ["--target", DATA / "target.pth", "--target-config", config, "--out", out / "bundle"]
    message = failure(main, argv, capsys)
    assert "diffloss_w is 64, the weights have 96: give the configuration" in message
    assert leftovers(out) == []


@pytest.fixture
def requested(monkeypatch):
    """What an export would be asked for; no graph is written."""
    requests = []

    def stop(request, *_, **__):
        requests.append(request)
        raise ExportError("the work would begin here")

    monkeypatch.setattr("csd.export.writer.write_bundle", stop)
    return requests


def _training_file(path, role):
    """A file of training, whose own weights are not its averages."""
    content = torch.load(DATA / f"{role}.pth", weights_only=True)
    model = {name: tensor + 1 for name, tensor in content["model_ema"].items()}
    torch.save({**content, "model": model, "epoch": 3}, path)
    return path


@pytest.mark.parametrize(
    ("weights", "taken"),
    [
        ([], {"target": "ema", "draft": "ema"}),
        (["--weights", "model"], {"target": "model", "draft": "model"}),
        (["--weights", "draft=model"], {"target": "ema", "draft": "model"}),
        (["--weights", "ema,target=model"], {"target": "model", "draft": "ema"}),
    ],
)
def test_which_weights_are_taken_is_printed_and_stored(
    weights, taken, target, draft, tmp_path, out, capsys, requested
):
    argv = [*target, *draft, *weights, "--out", out / "bundle"]
    argv[1], argv[5] = (_training_file(tmp_path / f"{r}.pth", r) for r in ("target", "draft"))
    assert main([str(part) for part in argv]) == 2
    printed = capsys.readouterr().out
    (request,) = requested
    for role, kind in taken.items():
        key = {"ema": "model_ema", "model": "model"}[kind]
        named = {"ema": "averaged weights", "model": "weights of the model"}[kind]
        assert f"{role}: {named} ({key})" in printed
        assert (request.sources[role].weights, request.sources[role].key) == (kind, key)
        wanted = torch.load(DATA / f"{role}.pth", weights_only=True)["model_ema"]["fake_latent"]
        found = request.models[role].read().state_dict()["fake_latent"]
        np.testing.assert_array_equal(found, wanted + (kind == "model"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "teacher=ema"], "weights has 'teacher=ema': give ema, model or a key"),
        (["--weights", "ema,"], "weights has '': give ema"),
        (["--weights", "swa_model"], "holds no weights 'swa_model' (its keys are 'model_ema'"),
        (["--target-heads", "4"], "--target-heads goes with --target-config auto: leave it out"),
        (["--target-config", "auto", "--target-heads", "4,x"], "target-heads is '4,x': give two"),
        (["--target-config", "auto", "--target-heads", "5"], "not a multiple of encoder_num_heads"),
        (["--target-config", "auto"], "heads of attention: give --target-heads ENCODER,DECODER"),
    ],
)
def test_choices_that_cannot_be_are_one_line(options, message, target, out, capsys):
    assert message in failure(main, [*target, *options, "--out", out / "bundle"], capsys)
    assert leftovers(out) == []


def test_configurations_are_read_off_the_weights(tmp_path, out, capsys, requested):
    argv = ["--decoder", DATA / "vae.ckpt", "--out", out / "bundle", "--head-steps", "20"]
    for role in ("target", "draft"):
        argv += [f"--{role}", DATA / f"{role}.pth", f"--{role}-config", "auto",
                 f"--{role}-heads", tiny_config(role).encoder_num_heads]  # fmt: skip
    assert main([str(part) for part in argv]) == 2
    printed = capsys.readouterr().out
    (request,) = requested
    for role in ("target", "draft"):
        wanted = tiny_config(role)
        # The decoder tells the stride, nothing the head steps.
        wanted = dataclasses.replace(wanted, num_sampling_steps=100, img_size=8, vae_stride=2)
        assert request.models[role].config == wanted
        assert f"{role}: configuration " in printed
        assert f"encoder_depth {wanted.encoder_depth}" in printed


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_named(value, target, tmp_path, out, capsys):
    state = torch.load(DATA / "target.pth", weights_only=True)["model_ema"]
    name = sorted(state)[-1]
    state[name].view(-1)[0] = value
    torch.save({"model": state}, tmp_path / "sick.pth")
    argv = [*target, "--out", out / "bundle"]
    argv[1] = tmp_path / "sick.pth"
    message = failure(main, argv, capsys)
    assert f"sick.pth: {name} holds values that are not finite: give weights" in message
    assert leftovers(out) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 4}, "unknown configuration key 'depth'"),
        ({"encoder_depth": "two"}, "encoder_depth is 'two'"),
        ({"patch_size": 3}, "img_size 64 is not a multiple"),
    ],
)
def test_a_configuration_that_is_not_valid_is_one_line(changes, message, tmp_path, out, capsys):
    config = _config(tmp_path / "config.json", **changes)
    argv = ["--target", DATA / "target.pth", "--target-config", config, "--out", out / "bundle"]
    assert message in failure(main, argv, capsys)
    assert leftovers(out) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_size": 16}, "the draft has img_size 16, the target 64"),
        ({"vae_embed_dim": 8}, "the draft has vae_embed_dim 8, the target 16"),
        ({"patch_size": 2}, "the draft has patch_size 2, the target 1"),
        ({"class_num": 11}, "the draft has class_num 11, the target 10"),
        ({"beta_schedule": "linear"}, "the draft has beta_schedule linear, the target cosine"),
    ],
)
def test_a_draft_whose_tokens_differ_from_the_targets_is_one_line(
    changes, message, target, tmp_path, out, capsys
):
    from csd.models import MAR, MARConfig

    config = {**tiny_config("draft").to_dict(), **changes}
    (tmp_path / "draft.json").write_text(json.dumps(config), encoding="utf-8")
    state = MAR(MARConfig.from_dict(config)).state_dict()
    torch.save({"model": state}, tmp_path / "draft.pth")
    argv = ["--draft", tmp_path / "draft.pth", "--draft-config", tmp_path / "draft.json"]
    shown = failure(main, [*target, *argv, "--out", out / "bundle"], capsys)
    assert message in shown
    assert "give one trained on the same latents" in shown
    assert leftovers(out) == []


def test_a_decoder_of_other_latents_is_one_line(target, tmp_path, out, capsys):
    from ..models.test_kl_decoder import random_kl_state

    torch.save({"model": random_kl_state((1,), (), latent=4)}, tmp_path / "kl.ckpt")
    argv = [*target, "--decoder", tmp_path / "kl.ckpt", "--out", out / "bundle"]
    message = failure(main, argv, capsys)
    assert "the decoder takes 4 latent channels, the model makes 16" in message
    argv[-3] = DATA / "draft.pth"
    assert "holds no KL decoder" in failure(main, argv, capsys)
    assert leftovers(out) == []


def test_a_decoder_of_another_stride_is_warned_about():
    config = tiny_config("target")
    assert stride_warning(config, 2).startswith(
        "the decoder makes 2 pixels of a latent, the model's vae_stride is 16: images are 8 x 8, "
        "not 64 x 64"
    )
    assert stride_warning(config, 16) is None


@pytest.mark.parametrize("place", ["file", "file/bundle", "/proc/bundle", "taken"])
def test_a_place_that_cannot_be_written_is_one_line(place, target, out, capsys, monkeypatch):
    monkeypatch.chdir(out)
    (out / "file").touch()
    (out / "taken").mkdir()
    (out / "taken" / "thesis.txt").touch()
    message = failure(main, [*target, "--calibration-tokens", 0, "--out", place], capsys)
    assert place.split("/")[-1] in message or "file" in message
    assert ": " in message
    assert leftovers(out) == ["file", "taken"]
    assert leftovers(out / "taken") == ["thesis.txt"]


@pytest.mark.parametrize("place", [".", "bundle/.", "deep/er/bundle"])
def test_odd_paths_of_a_bundle_work_or_are_one_line(place, target, out, capsys, monkeypatch):
    monkeypatch.chdir(out)
    argv = [*target, "--calibration-tokens", 0, "--max-batch", 0, "--out", place]
    assert "max-batch is 0" in failure(main, argv, capsys)
    monkeypatch.setattr("csd.export.onnx.networks.export_onnx", _full_disk)
    assert "No space" in failure(main, [*argv, "--max-batch", 1], capsys)
    assert leftovers(out) == []


def test_a_bundle_is_replaced_with_force_only(make_bundle, target, capsys, monkeypatch):
    bundle = make_bundle(name="bundle")
    before = (bundle / "manifest.json").read_bytes()
    argv = [*target, "--calibration-tokens", 0, "--out", bundle]
    message = failure(main, argv, capsys)
    assert "holds a bundle: give --force to replace it, or another --out" in message
    assert (bundle / "manifest.json").read_bytes() == before

    written = Bundle.open(bundle).manifest
    monkeypatch.setattr("csd.export.writer._Export.run", lambda self: written)
    assert main([*map(str, argv), "--force"]) == 0
    assert leftovers(bundle) == ["manifest.json"]
    assert leftovers(bundle.parent) == ["bundle"]


def _full_disk(graph, path, shared):
    path.write_bytes(b"half of it")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize("existing", [False, True], ids=["new", "replaced"])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    existing, make_bundle, target, tmp_path, capsys, monkeypatch
):
    bundle = make_bundle(name="bundle") if existing else tmp_path / "bundle"
    monkeypatch.setattr("csd.export.onnx.networks.export_onnx", _full_disk)
    argv = [*target, "--calibration-tokens", 0, "--out", bundle, "--force"]
    message = failure(main, argv, capsys)
    assert message.startswith("No space left on device")
    assert "free some space" in message
    assert leftovers(tmp_path) == (["bundle"] if existing else [])
    if existing:
        Bundle.open(bundle)


def test_a_really_full_disk_is_one_line_and_leaves_nothing(target, small_disk, capsys):
    argv = [*target, "--calibration-tokens", 0, "--out", small_disk / "bundle"]
    message = failure(main, argv, capsys)
    assert "No space left on device" in message
    assert "free some space" in message
    assert leftovers(small_disk) == []


def _interrupt_export(argv, line):
    """Send Ctrl-C once the export has printed `line`; return exit code and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, argv)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None

    def read(stream):
        for text in stream:
            lines.put(text)

    reader = threading.Thread(target=read, args=(process.stdout,))
    reader.start()
    try:
        while line not in lines.get(timeout=300):
            pass
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)
    finally:
        process.kill()
        reader.join()
    return process.returncode, process.stderr.read()


INTERRUPTED = "csd-export: error: interrupted; nothing was left half-written\n"


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_an_export_leaves_nothing(target, out):
    argv = [*target, "--out", out / "bundle"]
    assert _interrupt_export(argv, "backbone: exporting") == (130, INTERRUPTED)
    assert leftovers(out) == []


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_replacement_keeps_the_old_bundle(target, make_bundle, tmp_path):
    bundle = make_bundle(name="bundle")
    argv = [*target, "--force", "--out", bundle]
    assert _interrupt_export(argv, "backbone: exporting") == (130, INTERRUPTED)
    assert leftovers(tmp_path) == ["bundle"]
    assert set(Bundle.open(bundle).manifest.models) == {"target", "draft"}


def test_a_missing_onnxruntime_is_one_line_with_its_package(target, out, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = failure(main, [*target, "--out", out / "bundle"], capsys)
    assert "pip install onnxruntime" in message
    assert leftovers(out) == []


@pytest.mark.parametrize("module", ["torch", "onnx", "onnxscript"])
def test_a_missing_exporter_is_one_line_with_its_package(module, target, out):
    hidden = f"import sys; sys.modules[{module!r}] = None; {COMMAND}"
    done = run_python(hidden, *target, "--out", out / "bundle")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"csd-export needs {module}, which is not installed" in done.stderr
    assert done.stderr.endswith(f": pip install {module}\n")
    assert leftovers(out) == []


def test_a_zoo_whose_files_are_not_installed_is_one_line(out, capsys, monkeypatch, tmp_path):
    from csd.models import zoo

    entry = zoo.ZOO["fashion-mnist"]
    empty = zoo.ZooEntry(entry.name, tmp_path, entry.class_names, entry.best_cfg)
    monkeypatch.setitem(zoo.ZOO, "fashion-mnist", empty)
    message = failure(main, ["--zoo", "fashion-mnist", "--out", out / "bundle"], capsys)
    assert f"the files of fashion-mnist are not in {tmp_path}: install csd again" in message
    assert leftovers(out) == []


def test_the_help_shows_defaults_and_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "example: csd-export --zoo fashion-mnist --out bundle" in text
    for default in ("8", "32"):
        assert f"(default: {default})" in text
    for option in ("--zoo", "--target", "--target-config", "--draft", "--draft-config",
                   "--decoder", "--out", "--head-steps", "--max-batch", "--max-gamma"):  # fmt: skip
        assert option in text


def test_a_bundle_does_not_depend_on_the_place_of_its_files(make_bundle):
    moved = make_bundle(name="elsewhere")
    edit_manifest(moved, lambda values: values["sources"].clear())
    with Bundle.open(moved).session() as session:
        assert session.versions()["onnxruntime"]


@nasty.every(build_parser())
def test_no_value_of_an_option_is_a_traceback(option, out, capsys, monkeypatch):
    monkeypatch.chdir(out)

    def stop() -> None:
        raise ExportError("the work would begin here")

    monkeypatch.setattr("csd.export.cli._check_installed", stop)
    for base in (["--zoo", "fashion-mnist", "--out", "bundle"],
                 ["--target", "x", "--target-config", "mar_base", "--out", "bundle"],
                 ["--rebuild", "bundle", "--backend", "tensorrt_rtx"]):  # fmt: skip
        for value in nasty.VALUES:
            assert nasty.check(main, [*base, f"{option}={value}"], capsys) == 2
    assert leftovers(out) == []
