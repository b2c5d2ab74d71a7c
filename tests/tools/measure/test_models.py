"""The table of models: its rows, the files they are made from, the processes, and going on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch

from csd.models import load_mar
from csd.models.families import load_config
from csd.runtime.errors import CsdError
from csd.tools.measure.models import __main__ as script
from csd.tools.measure.models import rows, weights
from csd.tools.measure.models.measure import Bench
from csd.tools.measure.models.process import run_watched
from csd.tools.measure.models.rows import FORMS, Model, obstacle, wanted_rows

from ...helpers import failure, leftovers

SMALL = {
    "img_size": 32, "encoder_embed_dim": 32, "encoder_depth": 1, "encoder_num_heads": 2,
    "decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2, "class_num": 3,
    "buffer_size": 2, "diffloss_d": 2, "diffloss_w": 64,
}  # fmt: skip
MEBIBYTE = 1 << 20


@pytest.fixture(params=["mar", "emigm"])
def config(request, tmp_path):
    path = tmp_path / "small.json"
    path.write_text(json.dumps({**SMALL, "family": request.param}), encoding="utf-8")
    return path


def models(*names):
    return [Model(name, load_config("mar_base"), 1000) for name in names]


def test_every_value_is_in_a_row_and_the_product_only_where_it_was_asked_for():
    forms, precisions = ("training", "safetensors"), ("fp32", "fp16")
    chosen = wanted_rows(models("a", "mar_base"), forms, precisions, every=False)
    assert [row.key for row in chosen] == [
        ("a", "safetensors", "fp32"), ("a", "safetensors", "fp16"),
        ("mar_base", "training", "fp32"),
        ("mar_base", "safetensors", "fp32"), ("mar_base", "safetensors", "fp16"),
    ]  # fmt: skip
    assert len(wanted_rows(models("a", "b"), forms, precisions, every=True)) == 8
    alone = wanted_rows(models("a"), ("training", "ema"), ("fp16", "int8"), every=False)
    assert [row.key[1:] for row in alone] == [
        ("training", "fp16"), ("training", "int8"), ("ema", "fp16")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("memory", "disk", "reason"),
    [
        (2 << 30, 8 << 30, None),
        (1 << 30, 8 << 30, "of memory, 1.1 are free"),
        (None, 8 << 30, None),
        (2 << 30, 25 * 10**7, "0.2 are free"),
    ],
)
def test_a_model_fits_where_memory_and_disk_have_room(memory, disk, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "available_memory", lambda: memory)
    monkeypatch.setattr(rows, "free_disk", lambda _: disk)
    model = dataclasses.replace(models("a")[0], parameters=10**7)  # 40 MB
    found = obstacle(wanted_rows([model], tuple(FORMS), ("fp32",), every=True), tmp_path)
    assert (found is None) == (reason is None)
    assert (reason or "") in (found or "")


def test_every_form_of_file_holds_the_weights_that_were_drawn(config, tmp_path):
    drawn, read = tmp_path / "drawn.safetensors", load_config(config)
    assert weights.main(["draw", str(config), "--out", str(drawn)]) == 0
    wanted = load_mar(drawn, read).state_dict()
    assert sum(t.numel() for t in wanted.values()) == weights.count(read)
    assert set(weights.WRITERS) == set(FORMS) - {"safetensors"}
    for form in weights.WRITERS:
        out = tmp_path / form
        assert weights.main([form, str(config), "--drawn", str(drawn), "--out", str(out)]) == 0
        found = load_mar(out, read).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
        files = [out] if out.is_file() else [*out.iterdir()]
        share = sum(path.stat().st_size for path in files) / drawn.stat().st_size
        assert share == pytest.approx(FORMS[form], rel=0.3)
    assert len([*(tmp_path / "shards").iterdir()]) == 4


def test_the_memory_of_a_process_is_seen(tmp_path):
    code = f"""
import mmap, sys, time
kept = bytearray(100 * {MEBIBYTE})
with open(sys.argv[1], "r+b") as stream:
    pages = mmap.mmap(stream.fileno(), 0)
    total = sum(pages[::4096])
time.sleep(0.2)
print("made", sys.argv[1:])
"""
    small = run_watched(["-c", "import time; time.sleep(0.2)"], {})
    with (tmp_path / "file").open("wb") as file:
        file.truncate(200 * MEBIBYTE)
    ended = run_watched(["-c", code, file.name], {})
    assert (ended.exit_code, ended.failure) == (0, None)
    assert ended.output.startswith("made")
    assert ended.seconds >= 0.2
    if ended.peak_anonymous is None:
        pytest.skip("the system has no /proc")
    assert 290 * MEBIBYTE < ended.peak - small.peak < 330 * MEBIBYTE
    assert 95 * MEBIBYTE < ended.peak_anonymous < 150 * MEBIBYTE


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("import sys; print('a', file=sys.stderr); sys.exit('the reason')", "the reason"),
        (
            "import sys; print('parity failed'); print('a', file=sys.stderr); sys.exit(1)",
            "parity failed",
        ),
        (
            "import sys; print('x: error: y', file=sys.stderr); print('b'); sys.exit(2)",
            "x: error: y",
        ),
        ("raise SystemExit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9"),
    ],
)
def test_a_process_that_fails_says_why(code, wanted):
    assert run_watched(["-c", code], {}).failure == wanted


def test_a_process_ends_with_its_caller(tmp_path, monkeypatch):
    code = """
import os, signal, sys, time
from pathlib import Path
def leave(*_):
    Path(sys.argv[1]).write_text("tidied up")
    sys.exit(1)
signal.signal(signal.SIGTERM, leave)
Path(sys.argv[1]).write_text("")
time.sleep(60)
"""
    mark, sleep, stopped = tmp_path / "mark", time.sleep, []

    def stop(seconds):
        # Once: the wait for the process's end sleeps too.
        if mark.exists() and not stopped:
            stopped.append(seconds)
            raise KeyboardInterrupt
        sleep(seconds)

    monkeypatch.setattr("csd.tools.measure.models.process.time.sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        run_watched(["-c", code, str(mark)], {})
    assert mark.read_text() == "tidied up"


class FakeBench(Bench):
    """Measures nothing; `made` are the rows it was asked for, `broken` those that fail."""

    made: list[tuple[str, str, str]]
    broken: set[tuple[str, str, str]]

    def draw(self):
        (self._folder / "drawn").touch()

    @contextlib.contextmanager
    def form(self, form):
        yield self._folder / form

    def measure(self, row, weights):
        if "stop" in self.broken:
            raise KeyboardInterrupt
        self.made.append(row.key)
        figures = {"seconds": 1.0, "peak_bytes": 2, "peak_anonymous_bytes": 1, "exit_code": 0}
        return {
            "model": row.model.name, "form": row.form, "precision": row.precision,
            "config": rows.config_hash(row.model.config), "parameters": 1000, "file_bytes": 1,
            "export": figures, "bundle": None, "image": None,
            "failures": {"export": "no luck"} if row.key in self.broken else {},
        }  # fmt: skip


@pytest.fixture
def bench(monkeypatch):
    def count(configs, folder):
        return [Model(name, config, 1000) for name, config in configs.items()]

    monkeypatch.setattr(script, "count_parameters", count)
    monkeypatch.setattr(script, "Bench", FakeBench)
    monkeypatch.setattr(script, "idle_load", lambda: script.LoadMeter().read())
    FakeBench.made, FakeBench.broken = [], set()
    return FakeBench


@pytest.fixture
def measure(bench, tmp_path, config):
    def run(*argv, code=0):
        bench.made.clear()
        given = ["--presets", config, "--forms", "ema,safetensors", "--precisions", "fp32,int8"]
        given += ["--work", tmp_path, "--json", tmp_path / "x.json", *argv]
        assert script.main([str(part) for part in given]) == code
        return bench.made

    return run


ALL = [("small", "ema", "fp32"), ("small", "safetensors", "fp32"), ("small", "safetensors", "int8")]


def test_what_was_measured_is_not_measured_again(measure, bench, tmp_path, monkeypatch, capsys):
    bench.broken = {ALL[1]}
    assert measure(code=1) == ALL
    assert "small, safetensors, fp32: export: no luck" in capsys.readouterr().out
    bench.broken = set()
    assert measure() == [ALL[1]]  # the one that failed
    assert measure() == []
    assert measure("--again", "--forms", "safetensors") == ALL[1:]
    saved = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert [rows.key_of(row) for row in saved["rows"]] == ALL
    assert measure("--threads", 1) == ALL
    monkeypatch.setattr(rows, "_sources_hash", lambda: "another")
    assert measure("--threads", 1) == ALL
    assert sorted(leftovers(tmp_path)) == ["small.json", "x.json"]


def test_another_configuration_of_one_name_is_another_row(measure, config):
    measure()
    values = {**json.loads(config.read_text(encoding="utf-8")), "class_num": 4}
    config.write_text(json.dumps(values), encoding="utf-8")
    assert measure() == ALL


def test_what_was_measured_before_ctrl_c_is_kept_and_nothing_else(measure, bench, tmp_path):
    measure("--forms", "safetensors")
    bench.broken = {"stop"}
    measure(code=130)
    assert sorted(leftovers(tmp_path)) == ["small.json", "x.json"]
    bench.broken = set()
    assert measure() == ALL[:1]


def test_the_table_is_saved_as_markdown(measure, tmp_path):
    path = tmp_path / "x.md"
    measure("--markdown", path)
    head, rule, *lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(ALL)
    assert {line.count("|") for line in (head, rule, *lines)} == {len(script.COLUMNS) + 1}


def test_models_without_room_are_left_out_unless_they_were_asked_for(
    bench, tmp_path, monkeypatch, capsys, config
):
    def room(rows, _):
        return None if rows[0].model.name == "mar_large" else "needs more"

    monkeypatch.setattr(script, "obstacle", room)
    argv = ["--forms", "safetensors", "--precisions", "fp32", "--work", str(tmp_path)]
    assert script.main([*argv, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert bench.made == [("mar_large", "safetensors", "fp32")]
    assert json.loads(out)["left_out"]["mar_huge"] == "needs more"
    assert "mar_huge needs more: left out" in err
    assert script.main([*argv, "--presets", "mar_huge"]) == 0
    assert bench.made[1:] == [("mar_huge", "safetensors", "fp32")]
    monkeypatch.setattr(script, "obstacle", lambda *_: "needs more")
    with pytest.raises(CsdError, match="give --presets"):
        script.run(script.build_parser().parse_args(argv))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--presets", "mar_tiny"], "no configuration 'mar_tiny'"),
        (["--presets", ","], "presets is empty"),
        (["--forms", "zip"], "forms has 'zip': give some of training, ema, safetensors, shards"),
        (["--precisions", "fp8"], "precisions has 'fp8'"),
        (["--work", "gone"], "--work gone is no folder"),
        (["--json", "a", "--markdown", "a"], "are one file: give two"),
        (["--json", "other.json"], "give a file that --json of this script saved"),
    ],
)
def test_bad_arguments_are_one_line_before_work(
    argv, message, bench, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text("[]", encoding="utf-8")
    assert message in failure(script.main, argv, capsys)
    assert leftovers(tmp_path) == ["other.json"]
    assert bench.made == []


@pytest.mark.slow
@pytest.mark.parametrize("config", ["mar"], indirect=True)
def test_a_row_says_what_an_export_took_and_that_its_bundle_makes_an_image(config, tmp_path):
    path = tmp_path / "x.json"
    argv = ["--presets", config, "--forms", "training", "--precisions", "fp16", "--threads", 1]
    argv += ["--work", tmp_path, "--json", path]
    assert script.main([str(part) for part in argv]) == 0
    (row,) = json.loads(path.read_text(encoding="utf-8"))["rows"]
    drawn = 4 * row["parameters"]
    assert row["failures"] == {}
    assert row["file_bytes"] > 4 * drawn
    assert row["export"]["exit_code"] == row["image"]["exit_code"] == 0
    assert row["export"]["peak_bytes"] >= row["export"]["peak_anonymous_bytes"] > drawn
    assert row["image"]["peak_bytes"] < row["export"]["peak_bytes"]  # no PyTorch
    assert row["bundle"]["bytes"] > row["bundle"]["graph_bytes"] > drawn / 2
    assert 0 < row["bundle"]["parity"]["difference"] < row["bundle"]["parity"]["tolerance"]
    assert sorted(leftovers(tmp_path)) == ["small.json", "x.json"]
