"""Faults that no other test injects; docs/faults.md has the list of all, with what happens."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from csd.runtime import BackendError, Bundle, GenerateOptions, backends
from csd.runtime.cli import main as generate
from csd.tools.bench.cli import main as bench
from csd.tools.eval.commands.certify import main as certify
from csd.tools.eval.commands.run import main as run_eval
from csd.tools.eval.store.database import open_database
from csd.tools.measure import large_batch

from ..adversary.answers import tree
from ..helpers import WatchedBackend, failure, leftovers, run_python

FAST = ["--num-iter=2", "--head-steps=4", "--threads=1", "--quiet"]
OPTIONS = GenerateOptions(mode="csd", gamma=2, num_iter=6, head_steps=8)
LABELS = [1, 2, 3]


@pytest.fixture
def failing(monkeypatch):
    """A machine with a backend that fails in a run, where ONNX Runtime would go on."""
    create, left = backends._create, [12]

    def watch(*_):
        left[0] -= 1
        if left[0] < 0:
            raise BackendError("the device fell off the bus: check nvidia-smi")

    def created(name, folder, manifest, options, check):
        if name == "onnxruntime":
            return create(name, folder, manifest, options, check)
        if name != "tensorrt":
            raise BackendError(f"{name} is not installed")
        backend = WatchedBackend(folder, manifest, watch)
        backend.name = name
        return backend

    monkeypatch.setattr(backends, "_create", created)
    return left


def test_under_auto_a_backend_that_fails_in_a_run_is_followed_by_the_next(
    failing, tiny_bundle, tiny_session, caplog
):
    wanted = tiny_session.generate(LABELS, OPTIONS, seed=3)
    with Bundle.open(tiny_bundle).session() as session:
        assert session.backend.name == "tensorrt"
        done = []
        with caplog.at_level(logging.WARNING, "csd"):
            made = session.generate(LABELS, OPTIONS, seed=3, progress=lambda p: done.append(p.done))
            again = session.generate(LABELS, OPTIONS, seed=3)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "backend tensorrt failed, and the run is begun again on onnxruntime: the device fell off "
        "the bus: check nvidia-smi"
    )
    assert done[0] > 0
    assert 0 in done, "it is begun again"
    for result in (made, again):
        np.testing.assert_array_equal(result.tokens, wanted.tokens)
        np.testing.assert_array_equal(result.images, wanted.images)
        assert result.origin.backend == "onnxruntime"
    assert made.stats.to_dict()["head_rows"] == wanted.stats.to_dict()["head_rows"]


def test_a_stream_says_that_its_events_count_no_more(failing, tiny_bundle, tiny_session):
    wanted = tiny_session.generate(LABELS, OPTIONS, seed=3)
    with (
        Bundle.open(tiny_bundle).session() as session,
        session.stream(LABELS, OPTIONS, seed=3) as stream,
    ):
        events = list(stream)
    kinds = [event.kind for event in events]
    assert kinds.count("restarted") == 1
    place = kinds.index("restarted")
    assert place > 0
    event = events[place]
    assert (list(event.indices), event.positions.shape) == ([0, 1, 2], (3, 0))
    assert not event.known.any()
    assert not event.tokens.any()
    assert event.progress.done == 0
    assert events[-1].known.all()
    np.testing.assert_array_equal(stream.result.tokens, wanted.tokens)


def test_a_backend_that_was_asked_for_fails_in_one_line(failing, tiny_bundle, tmp_path, capsys):
    out = tmp_path / "x.png"
    argv = [tiny_bundle, "--labels=1,2", *FAST, "--num-iter=8", f"--out={out}"]
    failing[0] = 12
    message = failure(generate, [*argv, "--backend=tensorrt"], capsys)
    assert message == "the device fell off the bus: check nvidia-smi"
    assert leftovers(tmp_path) == []
    failing[0] = 12
    assert generate([str(part) for part in argv]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "warning: csd.runtime.session: backend tensorrt failed" in line


def test_where_nothing_follows_the_error_is_that_of_the_backend(failing, tiny_bundle, monkeypatch):
    monkeypatch.setattr(backends, "AUTO_ORDER", ("tensorrt", "tensorrt_rtx"))
    with Bundle.open(tiny_bundle).session() as session:
        for _ in range(2):  # the session stays what it was
            failing[0] = 12
            with pytest.raises(BackendError, match="fell off the bus"):
                session.generate(LABELS, OPTIONS)
        failing[0] = 10_000
        assert session.generate(LABELS, OPTIONS).origin.backend == "tensorrt"


def test_a_stored_run_has_the_images_of_one_backend(failing, tiny_bundle, tmp_path, capsys):
    path = tmp_path / "e.db"
    argv = [tiny_bundle, "--name=a", "--images=8", "--batch=2", *FAST, f"--db={path}"]
    failing[0] = 30
    assert run_eval([str(part) for part in argv]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert "backend tensorrt failed, and a run has the images of one" in line
    assert "give --backend onnxruntime and another --name" in line
    argv[1] = "--name=b"
    assert run_eval([*(str(part) for part in argv), "--backend=onnxruntime"]) == 0
    with open_database(path) as db:
        counts = dict(db.execute("SELECT run, count(*) FROM images GROUP BY run"))
    assert sorted(counts.values())[-1] == 8
    assert all(count % 2 == 0 for count in counts.values())


@pytest.mark.parametrize("measure", [
    lambda bundle: bench([bundle, "--modes=target", "--repeats=1", "--fewer-steps=0", *FAST[:3]]),
    lambda bundle: large_batch.main([bundle, "--batches=2", "--repeats=1", "--threads=1"]),
    lambda bundle: certify([bundle, "--quiet", "--threads=1"]),
], ids=["bench", "measure", "certify"])  # fmt: skip
def test_figures_are_of_one_backend(measure, failing, tiny_bundle, capsys):
    failing[0] = 3
    assert measure(str(tiny_bundle)) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.endswith("error: the device fell off the bus: check nvidia-smi")


@pytest.mark.parametrize("policy", ["always", "once"])
def test_a_byte_that_changed_in_any_file_of_a_bundle_names_the_file(
    policy, tiny_bundle, make_bundle, tmp_path, capsys
):
    bundle = make_bundle()
    names = [name for name in tree(bundle) if (bundle / name).is_file()]
    assert len(names) > 8
    for name in names:
        file = bundle / name
        content = file.read_bytes()
        # Of the manifest a byte is altered of a hash: its other bytes are `fuzz.py`'s.
        at = content.index(b'"sha256"') + 14 if name == "manifest.json" else len(content) // 2
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        argv = [bundle, "--labels=1", "--mode=csd", "--gamma=1", *FAST,
                f"--verify-files={policy}", f"--out={tmp_path / 'x.png'}"]  # fmt: skip
        message = failure(generate, argv, capsys)
        assert (name if name != "manifest.json" else "bundle") in message, message
        file.write_bytes(content)
    assert leftovers(tmp_path) == ["copy"]


def test_a_bundle_and_a_home_that_cannot_be_written_cost_nothing(tiny_bundle, small_disk, tmp_path):
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    bundle = shutil.copytree(tiny_bundle, small_disk / "bundle")
    (small_disk / "home").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    hidden = ("CSD_CACHE_DIR", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    code = "import sys; from csd.runtime.entry import main; sys.exit(main())"
    done = run_python(
        code, bundle, "--labels=1", *FAST, f"--out={tmp_path / 'x.png'}",
        env={**environment, "HOME": str(small_disk / "home")},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert leftovers(small_disk / "home") == []
    assert (tmp_path / "x.png").is_file()


def test_a_disk_that_fills_up_ends_a_stored_run_in_one_line_and_keeps_its_batches(
    tiny_bundle, small_disk, capsys
):
    subprocess.run(["mount", "-o", "remount,size=300k", str(small_disk)], check=True)
    argv = [tiny_bundle, "--name=a", "--images=4000", "--batch=8", *FAST,
            f"--db={small_disk / 'e.db'}"]  # fmt: skip
    assert "the disk is full" in failure(run_eval, argv, capsys)
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    with open_database(small_disk / "e.db") as db:
        stored = db.execute("SELECT count(*) FROM images").fetchone()[0]
    assert stored > 0
    assert stored % 8 == 0
    argv[2] = f"--images={stored + 8}"
    assert run_eval([str(part) for part in argv]) == 0
    assert "8 of them now" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_a_stored_run_leaves_whole_batches(number, tiny_bundle, tmp_path):
    path = tmp_path / "e.db"
    code = "import sys; from csd.tools.eval.entry import main; sys.exit(main())"
    argv = ["run", str(tiny_bundle), "--name=a", "--batch=2", "--images=4000", *FAST,
            "--num-iter=8", f"--db={path}"]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code, *argv], stderr=subprocess.PIPE,
                               text=True)  # fmt: skip
    try:
        end = time.monotonic() + 120
        while stored(path) < 4 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == (-9 if number == signal.SIGKILL else 143)
    if number == signal.SIGTERM:
        assert said.endswith("interrupted by SIGTERM; nothing was left half-written\n")
    assert stored(path) >= 4
    assert stored(path) % 2 == 0


def stored(path: Path) -> int:
    try:
        with open_database(path) as db:
            return db.execute("SELECT count(*) FROM images").fetchone()[0]
    except Exception:  # it is being made
        return 0
