from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from csd.tools.bench import cli
from csd.tools.bench.cli import main
from csd.tools.bench.measure import WALL_CLOCK

from ...helpers import DATA, failure, leftovers, no_draft, run_python

WEIGHTS = ("--target-weights", DATA / "target.pth")
FAST = ("--num-iter", 3, "--head-steps", 3, "--repeats", 2, "--threads", 1)


def _run(*argv):
    return main([str(part) for part in argv])


def test_a_bench_writes_every_figure_and_a_plot(tiny_bundle, tmp_path, capsys):
    argv = [tiny_bundle, "--modes", "eager,target,draft,csd", "--gammas", 2, "--batch", 2]
    argv += [*FAST, *WEIGHTS, "--heads", "sequential"]
    files = ["--json", tmp_path / "x.json", "--plot", tmp_path / "x.png"]
    assert _run(*argv, "--temperatures", "1,42", *files) == 0
    assert leftovers(tmp_path) == ["x.json", "x.png"]
    report = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert (report["batch"], report["repeats"], report["threads"]) == (2, 2, [1])
    assert report["machine"]["cores"] >= 1
    assert report["host_library"] in (True, False)
    manifest = (tiny_bundle / "manifest.json").read_bytes()
    assert report["bundle"]["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert report["backend"]["name"] == "onnxruntime"
    assert report["load"]["cores"] >= 1
    assert {"before", "during", "warning"} < set(report["load"])
    assert report["ratios_of"] == "eager"
    rows = {row["name"]: row for row in report["results"]}
    assert len(rows) == 5
    shown = capsys.readouterr().out
    baseline = rows["eager"]["seconds_per_image"]
    for name, row in rows.items():
        assert len(row["seconds"]) == len(row["other_processes_cores"]) == 2
        assert row["threads"] == 1
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


def test_runs_without_a_warm_up_are_all_counted(tiny_bundle, tmp_path):
    argv = [tiny_bundle, "--modes", "target", *FAST, "--warm-ups", 0, "--fewer-steps", "2,0"]
    argv += ["--heads", "sequential"]
    assert _run(*argv, "--json", tmp_path / "x.json") == 0
    report = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in report["results"]] == ["target", "target, 2 AR steps"]
    assert [len(row["seconds"]) for row in report["results"]] == [2, 2]
    assert report["warm_ups"] == 0


def test_a_gpu_that_pytorch_cannot_use_is_one_line(tiny_bundle, tmp_path, capsys):
    argv = [tiny_bundle, *FAST, *WEIGHTS, "--json", tmp_path / "x.json"]
    message = failure(main, [*argv, "--eager-device", "cuda"], capsys)
    assert "a PyTorch built for CUDA" in message
    assert "leave eager out of --modes" in message
    assert leftovers(tmp_path) == []


def test_without_eager_there_is_no_speed_up(tiny_bundle, tmp_path):
    argv = [tiny_bundle, "--modes", "target", *FAST, "--json", tmp_path / "x.json"]
    assert _run(*argv) == 0
    (row,) = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["results"]
    assert row["speed_up_over_eager"] is None


def test_defaults_leave_out_what_a_bundle_without_a_draft_cannot_do(make_bundle, tmp_path):
    argv = [make_bundle(no_draft), *FAST, *WEIGHTS, "--json", tmp_path / "x.json"]
    assert _run(*argv) == 0
    rows = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["results"]
    assert [row["name"] for row in rows] == ["eager", "target, head auto"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--modes", "warp"],
            "modes has 'warp': give some of eager, eager-bf16, compile, target, draft, csd",
        ),
        (["--modes", ""], "modes is empty"),
        (["--heads", "none"], "heads has 'none': give some of sequential"),
        (["--gammas", "4,x"], "gammas is '4,x': 'x' is not a whole number from 1"),
        (["--gammas", "33"], "gamma is 33: this bundle takes 1 to 32"),
        (["--refresh", "1,x"], "refresh is 'x': give N, N:F"),
        (["--cfg-intervals", "0.5"], "cfg-interval is '0.5': give two shares"),
        (["--cfg-intervals", "0.9:0.1"], "cfg-interval is 0.9:0.1: give two shares"),
        (["--cfg-intervals", ","], "cfg-intervals"),
        (["--temperatures", "1,hot"], "temperatures is '1,hot': 'hot' is not a number above 0"),
        (["--fewer-steps", "8,-1"], "fewer-steps is '8,-1': '-1' is not a whole number from 0"),
        (["--threads", "1,0"], "threads is '1,0': '0' is not a whole number from 1 to 256"),
        (["--num-iter", "17"], "num-iter is 17"),
        (["--head-steps", "9:3"], "eager has no annealed head steps: leave eager out"),
        (["--modes", "eager", "--quality-images", "2"], "class accuracy needs a zoo bundle"),
        (["--json", "gone/x.json"], "check the path"),
        (["--plot", "x.bmp"], "plot is 'x.bmp': give a file that ends in .png, .svg, .pdf"),
        (["--plot", "-"], "plot is '-': give a file that ends in"),
        (["--json", "x.png", "--plot", "x.png"], "are one file: give two"),
    ],
)
def test_bad_arguments_are_one_line(tiny_bundle, argv, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "measure", lambda *_, **__: pytest.fail("something was timed"))
    argv = [tiny_bundle, "--num-iter", 2, "--head-steps", 2, "--repeats", 1, *WEIGHTS, *argv]
    assert message in failure(main, argv, capsys)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--modes=target", "--gammas=8"], "--gammas has no effect, as only mode csd"),
        (["--modes=draft", "--temperatures=8"], "--temperatures has no effect"),
        (["--modes=target", "--verify=block"], "give csd among --modes, or leave out --verify"),
        (["--modes=eager", "--heads=auto"], "--heads has no effect, as PyTorch's modes"),
        (["--modes=eager", "--cfg-intervals=0:1"], "give target, draft or csd among --modes"),
        (["--modes=target", "--cfg-intervals=0:0.5"], "nothing is guided where cfg is 1"),
        (["--modes=eager", "--refresh=1"], "give target, draft or csd among --modes"),
        (["--modes=csd,draft", "--fewer-steps=8"], "give target among --modes and 1 among"),
        (["--modes=target", "--eager-device=auto"], "--eager-device has no effect"),
        (["--modes=target", "--target-weights=x"], "--target-weights has no effect"),
        (["--modes=target", "--heads=auto", "--head-tolerance=1"], "give parallel among --heads"),
        (["--modes=target", "--refresh-tolerance=1"], "give auto among --refresh"),
    ],
)
def test_what_no_listed_mode_takes_is_refused(tiny_bundle, argv, message, monkeypatch, capsys):
    monkeypatch.setattr(cli, "measure", lambda *_, **__: pytest.fail("something was timed"))
    said = failure(main, [tiny_bundle, *argv], capsys)
    assert message in said


def test_results_do_not_go_into_what_is_read(make_bundle, capsys):
    bundle = make_bundle()
    before = leftovers(bundle)
    argv = [bundle, "--json", bundle / "manifest.json"]
    assert "belongs to the bundle" in failure(main, argv, capsys)
    assert leftovers(bundle) == before


def test_a_missing_bundle_is_one_line(tmp_path, capsys):
    assert "no bundle at" in failure(main, [tmp_path], capsys)


def test_missing_matplotlib_is_said_before_anything_is_timed(
    tiny_bundle, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(cli, "measure", lambda *_, **__: pytest.fail("something was timed"))
    argv = [tiny_bundle, "--modes", "target", *FAST, "--plot", tmp_path / "x.png"]
    message = failure(main, argv, capsys)
    assert message == (
        "--plot needs matplotlib, which is not installed: pip install matplotlib, or leave --plot "
        "out"
    )
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("name", "start"), [("x.svg", b"<?xml"), ("x.PDF", b"%PDF")])
def test_a_plot_has_the_format_of_its_name(tiny_bundle, tmp_path, name, start):
    argv = [tiny_bundle, "--modes", "target", *FAST, "--fewer-steps", 0]
    assert _run(*argv, "--plot", tmp_path / name) == 0
    assert (tmp_path / name).read_bytes().startswith(start)


SCRIPT = "import sys; from csd.tools.bench.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_reader_that_goes_away_costs_no_result(tiny_bundle, tmp_path, closed):
    argv = [tiny_bundle, "--modes", "target", *FAST, "--json", tmp_path / "x.json"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, argv)],
        check=False, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: write},
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 128 + signal.SIGPIPE, done.stderr
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["results"]
    assert b"Traceback" not in (done.stderr or b"")
    assert closed == "stdout" or "target" in done.stdout.decode()


def test_figures_on_stdout_are_all_that_is_there(tiny_bundle):
    done = run_python(SCRIPT, tiny_bundle, "--modes", "target", *FAST, "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bundle"]["name"]
    assert "s / image" in done.stderr


def test_every_thread_count_has_a_row_and_ratios_are_of_the_best_eager(
    tiny_bundle, tmp_path, capsys
):
    argv = [tiny_bundle, "--modes", "eager,target", *FAST, *WEIGHTS, "--threads", "2,1"]
    assert _run(*argv, "--json", tmp_path / "x.json") == 0
    report = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert report["threads"] == [1, 2]
    rows = {row["name"]: row for row in report["results"]}
    assert set(rows) == {
        "eager, 1 thread", "eager, 2 threads", "target, head auto, 1 thread",
        "target, head auto, 2 threads",
    }  # fmt: skip
    eager = [row for row in report["results"] if row["baseline"] == "eager"]
    best = min(eager, key=lambda row: row["seconds_per_image"])
    assert report["ratios_of"] == best["name"]
    for row in rows.values():
        ratio = best["seconds_per_image"] / row["seconds_per_image"]
        assert row["speed_up_over_eager"] == pytest.approx(ratio)
    assert f"x eager is over '{best['name']}', the fastest of 2" in capsys.readouterr().out


def test_the_help_shows_defaults_and_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "example: csd-bench bundle --modes eager,target,csd" in text
    for default in ("eager,target,csd", "4,8,16,32", "1,2", "auto", "1", "5"):
        assert f"(default: {default})" in text
    for option in ("--modes", "--gammas", "--temperatures", "--batch", "--repeats", "--json",
                   "--plot", "--num-iter", "--cfg"):  # fmt: skip
        assert option in text
