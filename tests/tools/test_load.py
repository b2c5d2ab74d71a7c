from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from csd.tools import load
from csd.tools.load import Load, LoadMeter, busy_seconds, busy_warning, load_caption, load_report

STAT = """\
cpu  1000 0 0 9000 0 0 0 0 0 0
cpu0 100 20 30 5000 700 4 3 2 90 9
cpu1 1 1 1 5000 1 1 1 1 0 0
cpu10 900 0 0 5000 0 0 0 0 0 0
intr 12 0
"""


def test_busy_time_is_that_of_the_processors_that_we_may_use(tmp_path, monkeypatch):
    stat = tmp_path / "stat"
    stat.write_text(STAT, encoding="ascii")
    monkeypatch.setattr(load.os, "sysconf", lambda _: 100)
    monkeypatch.setattr(load.os, "sched_getaffinity", lambda _: {0, 1})
    # Of cpu0 all but idle, waiting and what guests took; cpu10 is no part of cpu1.
    assert busy_seconds(stat) == pytest.approx((100 + 20 + 30 + 4 + 3 + 2 + 6) / 100)
    assert load.cores() == 2
    monkeypatch.setattr(load.os, "sched_getaffinity", lambda _: {7})
    assert busy_seconds(stat) is None


@pytest.mark.parametrize("content", [None, "", "cpu0 x y z 1 1 1 1 1\n"])
def test_where_nobody_counts_the_load_is_unknown(tmp_path, monkeypatch, content):
    stat = tmp_path / "stat"
    if content is not None:
        stat.write_text(content, encoding="ascii")
    assert busy_seconds(stat) is None
    monkeypatch.setattr(load, "busy_seconds", lambda: None)
    monkeypatch.delattr(load.os, "getloadavg")
    found = LoadMeter().read()
    assert found == Load(None, None)
    report = json.loads(json.dumps(load_report(found, found, 2)))
    assert report["warning"] is None
    assert "unknown of" in load_caption(report)


def test_what_this_process_takes_is_not_the_load_of_others(monkeypatch):
    clock, busy, own = iter([0.0, 10.0]), iter([100.0, 115.0]), iter([5.0, 17.0])
    monkeypatch.setattr(load.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(load, "busy_seconds", lambda: next(busy))
    monkeypatch.setattr(load, "own_seconds", lambda: next(own))
    assert LoadMeter().read().others == pytest.approx((15 - 12) / 10)


@pytest.mark.skipif(busy_seconds() is None, reason="this system counts no processor time")
def test_another_process_at_work_is_seen():
    code = "while True: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as other:
        meter = LoadMeter()
        time.sleep(1)
        found = meter.read()
        other.kill()
    assert 0.2 < found.others < load.cores() + 0.5


QUIET = Load(0.1, 0.5)


@pytest.mark.parametrize(
    ("before", "during", "threads", "words"),
    [
        (QUIET, None, 2, None),
        (QUIET, Load(0.2, 3.0), 2, None),  # our own two threads make that average
        (Load(1.0, 0.5), None, 1, None),  # one core for each
        (Load(None, None), Load(None, None), 2, None),
        (Load(1.0, 0.5), None, 2, "kept 1.0 of 2 cores busy beside 2 threads of ours"),
        (QUIET, Load(0.9, 2.0), 2, "kept 0.9 of 2 cores busy beside 2 threads of ours"),
        (QUIET, Load(1.5, 2.0), 1, "kept 1.5 of 2 cores busy beside 1 thread of ours"),
        (Load(0.0, 2.5), None, 2, "the load average was 2.5 before, above 2 cores"),
        (Load(None, 2.5), None, 2, "the load average was 2.5 before, above 2 cores"),
        (QUIET, None, 4, "beside 4 threads of ours"),
    ],
)
def test_a_warning_is_given_where_threads_and_others_need_more_than_there_is(
    before, during, threads, words
):
    warning = busy_warning(before, during, threads, 2)
    if words is None:
        assert warning is None
    else:
        assert words in warning
        assert "these figures will not repeat" in warning


def test_the_caption_repeats_the_warning(monkeypatch):
    monkeypatch.setattr(load, "cores", lambda: 2)
    caption = load_caption(load_report(QUIET, Load(1.9, 7.0), 2))
    assert caption.splitlines()[0] == (
        "other processes: 0.10 of 2 cores before, 1.90 during; load average 0.50 and 7.00"
    )
    assert caption.splitlines()[1].startswith("WARNING: other processes kept 1.9 of 2 cores busy")
