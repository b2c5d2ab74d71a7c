from __future__ import annotations

import io
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from rich.console import Console

from csd.runtime import Bundle, CsdError, GenerateOptions
from csd.tools.bench import (
    EVENTS,
    WALL_CLOCK,
    Case,
    Measurement,
    Sweep,
    bundle_classifier,
    eager_samplers,
    figures,
    make_cases,
    measure,
)
from csd.tools.bench_cli import main, results_table
from csd.tools.machine import describe_machine, gpu_state
from csd.tools.plots import plot_bench
from csd.tools.quality import ImageClassifier, as_shown, balanced_labels

from ..helpers import DATA, failure, leftovers, no_draft

FAST = ("--num-iter", 3, "--head-steps", 3, "--repeats", 2, "--threads", 1)


def only_eager(bundle, weights=None, device="cpu"):
    return eager_samplers(bundle, ["eager"], weights, 1, device)["eager"]


def _run(*argv):
    return main([str(part) for part in argv])


@pytest.mark.parametrize(
    ("num_iter", "expected"), [(256, [64, 32, 16, 8]), (64, [32, 16, 8]), (10, [8]), (8, [])]
)
def test_the_target_is_also_measured_at_fewer_steps(num_iter, expected):
    cases = _cases(("target",), num_iter=num_iter)
    assert [case.options.num_iter for case in cases] == [num_iter, *expected]


def test_which_fewer_steps_are_measured_can_be_chosen():
    assert len(_cases(("target",), fewer_steps=())) == 1
    assert [case.options.num_iter for case in _cases(("target",), fewer_steps=(7,))] == [10, 7]


def _cases(modes, heads=("sequential",), gammas=(4, 8), temperatures=(), num_iter=10, **changes):
    options = GenerateOptions(cfg=2.0, inner_temperature=42.0)
    return make_cases(Sweep(modes, heads, gammas, temperatures, **changes), options, num_iter)


def test_cases_cover_every_mode_gamma_and_temperature_once():
    cases = _cases(("eager", "target", "draft", "csd"), temperatures=(1.0, 42.0))
    asked = [(c.options.mode, c.options.num_iter, c.baseline) for c in cases]
    assert asked[:4] == [
        ("target", 10, "eager"), ("target", 10, None), ("target", 8, None), ("draft", 10, None),
    ]  # fmt: skip
    speculative = [c.options for c in cases if c.options.mode == "csd"]
    assert [(o.gamma, o.inner_temperature) for o in speculative] == [(4, 42), (8, 42), (4, 1)]
    assert all(c.options.cfg == 2.0 for c in cases)
    assert len({case.name for case in cases}) == len(cases)


def test_cases_repeat_for_every_head_but_eager():
    cases = _cases(
        ("eager", "target", "csd"), heads=("sequential", "auto"), gammas=(4,), num_iter=8
    )
    assert [(c.baseline, c.options.mode, c.options.head) for c in cases] == [
        ("eager", "target", "sequential"), (None, "target", "sequential"),
        (None, "csd", "sequential"), (None, "target", "auto"), (None, "csd", "auto"),
    ]  # fmt: skip
    assert len({case.name for case in cases}) == len(cases)


def test_a_bench_writes_every_figure_and_a_plot(tiny_bundle, tmp_path, capsys):
    argv = [tiny_bundle, "--modes", "eager,target,draft,csd", "--gammas", 2, "--batch", 2, *FAST]
    files = ["--json", tmp_path / "x.json", "--plot", tmp_path / "x.png"]
    assert _run(*argv, "--temperatures", "1,42", *files) == 0
    assert leftovers(tmp_path) == ["x.json", "x.png"]
    report = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert (report["batch"], report["repeats"], report["threads"]) == (2, 2, 1)
    assert report["machine"]["cores"] >= 1
    rows = {row["name"]: row for row in report["results"]}
    assert len(rows) == 5
    shown = capsys.readouterr().out
    baseline = rows["eager"]["seconds_per_image"]
    for name, row in rows.items():
        assert len(row["seconds"]) == 2
        assert row["seconds_per_image"] == pytest.approx(np.median(row["seconds"]) / 2)
        low, high = row["seconds_percentiles_10_90"]
        assert min(row["seconds"]) <= low <= high <= max(row["seconds"])
        ratio = baseline / row["seconds_per_image"]
        assert row["speed_up_over_eager"] == pytest.approx(ratio)
        assert (row["acceptance_rate"] is not None) == name.startswith("csd")
        assert row["accuracy"] is None
        assert row["device_seconds"] is row["device_seconds_per_image"] is None
        assert name.split(",")[0] in shown
    assert report["clock"] == WALL_CLOCK
    assert "by the wall clock" in " ".join(shown.split())
    assert rows["target"]["head_evaluations"] == {"target": 9}
    assert 0 < sum(rows["eager"]["seconds_by_part"].values()) <= max(rows["eager"]["seconds"])
    assert rows["target"]["options"]["num_iter"] == 3
    assert Image.open(tmp_path / "x.png").size[0] > 100


def measured(name, seconds, device_seconds=(), baseline=None):
    case = Case(name, GenerateOptions(mode="target"), baseline)
    return Measurement(case, list(seconds), list(device_seconds))


def shown(report):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(results_table({"bundle": "b", "batch": 2, "threads": 1, **report}))
    return console.export_text()


def test_ratios_are_of_the_devices_clock_where_it_timed_every_case(tmp_path):
    results = [
        measured("eager", [9.0, 9.0, 9.0], [8.0, 8.0, 6.0], "eager"),
        measured("target", [3.0, 3.0, 3.0], [2.0, 1.0, 2.0]),
    ]
    report = figures(results, 2)
    assert report["clock"] == EVENTS
    eager, target = report["results"]
    assert target["device_seconds"] == [2.0, 1.0, 2.0]
    assert (target["seconds_per_image"], target["device_seconds_per_image"]) == (1.5, 1.0)
    assert target["device_seconds_percentiles_10_90"] == pytest.approx([1.2, 2.0])
    assert (eager["speed_up_over_eager"], target["speed_up_over_eager"]) == (1.0, 4.0)
    text = shown(report)
    assert "by CUDA events before and after each run" in text
    row = next(line for line in text.splitlines() if "target" in line)
    assert [part.strip() for part in row.split("│")[1:6]] == [
        "target", "1.000", "0.600-1.000", "1.500", "4.00",
    ]  # fmt: skip
    assert "wall s / image" in text
    plot_bench({"batch": 2, **report}, tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size[0] > 100


def test_ratios_are_of_the_wall_clock_where_one_case_was_timed_by_it_alone():
    results = [
        measured("eager", [9.0], baseline="eager"),
        measured("target", [3.0], [2.0]),
    ]
    report = figures(results, 2)
    assert report["clock"] == WALL_CLOCK
    eager, target = report["results"]
    assert target["speed_up_over_eager"] == 3.0
    assert (eager["device_seconds"], target["device_seconds"]) == (None, [2.0])
    text = shown(report)
    assert "by the wall clock, to the end of each run's last wait" in text
    row = next(line for line in text.splitlines() if "target" in line)
    assert [part.strip() for part in row.split("│")[2:6]] == [
        "1.500",
        "1.500-1.500",
        "1.000",
        "3.00",
    ]


def test_a_bench_takes_the_device_time_of_the_runtime_and_of_eager(tiny_bundle):
    with Bundle.open(tiny_bundle).session() as session:
        ticks, generate = iter(range(1, 100)), session.generate

        def on_device(*args, **kwargs):
            result = generate(*args, **kwargs)
            result.stats.device_seconds = float(next(ticks))
            return result

        session.generate = on_device
        eager = only_eager(session.bundle)
        eager.device_seconds = 7.0
        options = GenerateOptions(mode="target", num_iter=2, head_steps=2)
        results = measure(
            session, {"eager": eager}, [Case("eager", options, "eager"), Case("target", options)],
            batch=1, repeats=2, seed=0, report=lambda _: None,
        )  # fmt: skip
    assert [result.device_seconds for result in results] == [[7.0, 7.0], [2.0, 3.0]]
    assert all(len(result.seconds) == 2 for result in results)


def test_runs_without_a_warm_up_are_all_counted(tiny_bundle, tmp_path):
    argv = [tiny_bundle, "--modes", "target", *FAST, "--warm-ups", 0, "--fewer-steps", "2,0"]
    assert _run(*argv, "--json", tmp_path / "x.json") == 0
    report = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in report["results"]] == ["target", "target, 2 AR steps"]
    assert [len(row["seconds"]) for row in report["results"]] == [2, 2]
    assert report["warm_ups"] == 0


def test_a_gpu_that_pytorch_cannot_use_is_one_line(tiny_bundle, tmp_path, capsys):
    argv = [tiny_bundle, *FAST, "--json", tmp_path / "x.json"]
    message = failure(main, [*argv, "--eager-device", "cuda"], capsys)
    assert "a PyTorch built for CUDA" in message
    assert "leave eager out of --modes" in message
    assert leftovers(tmp_path) == []


def test_the_state_of_the_gpu_is_what_nvidia_smi_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_state() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA X, 580.1, 1980 MHz, 2619 MHz'\n", encoding="utf-8")
    tool.chmod(0o755)
    state = gpu_state()
    assert (state["name"], state["clocks.sm"]) == ("NVIDIA X", "1980 MHz")
    tool.write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")
    assert gpu_state() is None


def test_without_eager_there_is_no_speed_up(tiny_bundle, tmp_path):
    argv = [tiny_bundle, "--modes", "target", *FAST, "--json", tmp_path / "x.json"]
    assert _run(*argv) == 0
    (row,) = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["results"]
    assert row["speed_up_over_eager"] is None


def test_defaults_leave_out_what_a_bundle_without_a_draft_cannot_do(make_bundle, tmp_path):
    argv = [make_bundle(no_draft), *FAST, "--json", tmp_path / "x.json"]
    assert _run(*argv) == 0
    rows = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["results"]
    assert [row["name"] for row in rows] == ["eager", "target"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--modes", "warp"],
            "mode is 'warp': give some of eager, eager-bf16, compile, target, draft, csd",
        ),
        (["--modes", ""], "modes is empty"),
        (["--heads", "none"], "head"),
        (["--gammas", "4,x"], "gammas is '4,x': give numbers with commas between"),
        (["--gammas", "0"], "gamma is 0"),
        (["--gammas", "33"], "gamma is 33: this bundle takes 1 to 32"),
        (["--temperatures", "1,hot"], "temperatures is '1,hot'"),
        (["--temperatures", "0"], "inner-temperature is 0.0"),
        (["--batch", "0"], "batch is 0: give at least 1"),
        (["--repeats", "0"], "repeats is 0: give at least 1"),
        (["--warm-ups", "-1"], "warm-ups is -1: give at least 0"),
        (["--fewer-steps", "8,-1"], "fewer-steps is '8,-1': give numbers of AR steps, or 0"),
        (["--fewer-steps", "few"], "fewer-steps is 'few'"),
        (["--quality-images", "-1"], "quality-images is -1: give at least 0"),
        (["--num-iter", "17"], "num-iter is 17"),
        (["--head-steps", "9:3"], "eager has no annealed head steps: leave eager out"),
        (["--threads", "0"], "threads is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--modes", "target", "--quality-images", "2"], "class accuracy needs a zoo bundle"),
        (["--json", "gone/x.json"], "check the path"),
        (["--plot", "."], ": "),
    ],
)
def test_bad_arguments_are_one_line(tiny_bundle, argv, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [tiny_bundle, "--num-iter", 2, "--head-steps", 2, "--repeats", 1, *argv]
    assert message in failure(main, argv, capsys)
    assert leftovers(tmp_path) == []


def test_a_missing_bundle_is_one_line(tmp_path, capsys):
    assert "no bundle at" in failure(main, [tmp_path], capsys)


def test_missing_matplotlib_is_one_line_with_the_extra(tiny_bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    argv = [tiny_bundle, "--modes", "target", *FAST, "--plot", tmp_path / "x.png"]
    assert "pip install 'csd[tools]'" in failure(main, argv, capsys)
    assert leftovers(tmp_path) == []


def test_eager_takes_the_weights_that_the_bundle_was_exported_from(tiny_bundle):
    sampler = only_eager(Bundle.open(tiny_bundle))
    state = sampler.model.state_dict()
    assert len(state) > 10
    again = only_eager(Bundle.open(tiny_bundle), DATA / "target.pth")
    np.testing.assert_array_equal(state["z_proj.weight"], again.model.state_dict()["z_proj.weight"])


def test_eager_refuses_weights_that_are_gone_or_other_ones(make_bundle, tmp_path):
    moved = make_bundle(lambda v: v["sources"]["target"].update(path=str(tmp_path / "gone.pth")))
    for weights in (None, DATA / "draft.pth"):
        with pytest.raises(CsdError, match="give --target-weights FILE, or leave eager out"):
            only_eager(Bundle.open(moved), weights)
    assert only_eager(Bundle.open(moved), DATA / "target.pth")


def test_eager_of_a_bundle_that_names_no_source_is_an_error_of_the_user(make_bundle):
    bundle = Bundle.open(make_bundle(lambda values: values["sources"].clear()))
    with pytest.raises(CsdError, match="--target-weights"):
        only_eager(bundle)


def test_the_help_shows_defaults_and_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "example: csd-bench bundle --modes eager,target,csd" in text
    for default in ("eager,target,csd", "4,8,16,32", "1", "5"):
        assert f"(default: {default})" in text
    for option in ("--modes", "--gammas", "--temperatures", "--batch", "--repeats", "--json",
                   "--plot", "--num-iter", "--cfg"):  # fmt: skip
        assert option in text


def classifier_by_brightness(path):
    """An ONNX classifier of images 1 x 4 x 4: class 1 if the mean is above 0, else class 0."""
    weights = np.stack([-np.ones(16), np.ones(16)], axis=1).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def test_accuracy_is_the_share_of_images_given_their_label(tmp_path):
    classifier_by_brightness(tmp_path / "c.onnx")
    classifier = ImageClassifier(tmp_path / "c.onnx", threads=1)
    images = np.array([1.0, -1.0, 1.0, 1.0], np.float32)[:, None, None, None] * np.ones(
        (1, 1, 4, 4)
    )
    images = images.astype(np.float32)
    assert classifier.accuracy(images, [1, 0, 1, 1]) == 1.0
    assert classifier.accuracy(images, [1, 0, 0, 1]) == 0.75
    with pytest.raises(CsdError, match="cannot load"):
        ImageClassifier(tmp_path / "gone.onnx", threads=1)


def test_images_are_judged_as_a_viewer_sees_them():
    latents = np.array([-3.0, -1.0, 0.0, 0.4999, 3.0], np.float32).reshape(1, 1, 1, 5)
    shown = as_shown(latents)
    np.testing.assert_allclose(shown.reshape(-1), [-1, -1, 1 / 255, 127 / 255, 1], atol=1e-6)


def test_labels_are_balanced():
    assert balanced_labels(7, 3) == [0, 1, 2, 0, 1, 2, 0]


def test_a_bundle_that_is_not_of_the_zoo_has_no_classifier(tiny_bundle):
    assert bundle_classifier(Bundle.open(tiny_bundle), threads=1) is None


def test_the_machine_is_described_in_json_values():
    described = json.loads(json.dumps(describe_machine()))
    assert {"processor", "cores", "system", "python", "libraries", "date"} <= set(described)
    assert {"csd", "numpy", "onnxruntime", "torch"} <= set(described["libraries"])
