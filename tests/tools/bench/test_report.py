from __future__ import annotations

import io

import pytest
from PIL import Image
from rich.console import Console

from csd.runtime import GenerateOptions
from csd.tools.bench.cases import Case
from csd.tools.bench.measure import EVENTS, WALL_CLOCK, Measurement
from csd.tools.bench.plots import plot_bench
from csd.tools.bench.report import figures, results_table
from csd.tools.load import Load, load_report


def measured(name, seconds, device_seconds=(), baseline=None):
    case = Case(name, GenerateOptions(mode="target", head="sequential"), baseline)
    return Measurement(case, list(seconds), list(device_seconds))


def shown(report):
    console = Console(width=120, record=True, file=io.StringIO())
    load = load_report(Load(0.0, 0.1), Load(0.02, 1.5), 1)
    about = {"bundle": {"name": "b"}, "batch": 2, "threads": [1], "load": load}
    console.print(results_table({**about, **report}))
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


def test_ratios_are_of_the_fastest_eager_and_of_no_other_baseline():
    results = [
        measured("compile", [1.0], baseline="compile"),
        measured("eager, 1 thread", [6.0], baseline="eager"),
        measured("eager, 2 threads", [4.0], baseline="eager"),
        measured("target", [2.0]),
    ]
    report = figures(results, 2)
    assert report["ratios_of"] == "eager, 2 threads"
    assert [row["speed_up_over_eager"] for row in report["results"]] == [4.0, 4 / 6, 1.0, 2.0]
    assert "x eager is over 'eager, 2 threads', the fastest of 2" in shown(report)


def test_without_eager_there_are_no_ratios():
    report = figures([measured("target", [2.0])], 2)
    assert report["ratios_of"] is report["results"][0]["speed_up_over_eager"] is None
    assert "x eager is over" not in shown(report)


def test_the_caption_says_how_busy_the_machine_was():
    text = " ".join(shown(figures([measured("target", [2.0])], 2)).split())
    assert "other processes: 0.00 of" in text
    assert "0.02 during; load average 0.10 and 1.50" in text


def test_rows_and_error_of_local_steps_are_shown_where_there_are_any():
    full, local = measured("target", [2.0]), measured("target, refresh auto", [1.0])
    full.backbone_rows_share = 1.0
    assert "backbone rows" not in shown(figures([full], 2))
    local.backbone_rows_share, local.refresh_error = 0.614, 0.0312
    report = figures([full, local], 2)
    text = shown(report)
    assert "backbone rows" in text
    row = next(line for line in text.splitlines() if "refresh auto" in line)
    assert [part.strip() for part in row.split("│")[5:7]] == ["61%", "0.031"]
    assert report["results"][1]["refresh_error"] == 0.0312
