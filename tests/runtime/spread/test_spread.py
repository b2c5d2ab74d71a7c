"""One cluster of two workers on this machine, for all tests: it takes seconds to begin."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from csd.runtime.cli import main as generate
from csd.runtime.errors import CsdError
from csd.runtime.spread.cluster import STATISTICS, connected
from csd.runtime.spread.pool import share_of
from csd.tools.eval.commands.run import main as run_eval
from csd.tools.eval.store.database import open_database
from csd.tools.eval.store.runs import batches_of, images_of, need_run, numbers_of

from ...helpers import edit_manifest, failure, leftovers, run_python
from ...vendor.real import missing

LABELS = ",".join(str(k % 10) for k in range(21))
FAST = ["--num-iter=4", "--head-steps=8", "--threads=1", "--quiet"]
SECONDS = 120


@pytest.fixture(scope="module")
def cluster():
    if importlib.util.find_spec("ray") is None:
        missing("ray", "pip install ray")
    with connected("local") as ray:
        yield ray


def own_processes(title: str) -> list[int]:
    """Processes that this one started, itself or through others, whose title begins so."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if not (folder / "cmdline").read_bytes().startswith(title.encode()):
                continue
            parent = int(folder.name)
            while parent > 1 and parent != os.getpid():
                parent = int((Path("/proc") / str(parent) / "stat").read_text().rpartition(")")[2]
                             .split()[1])  # fmt: skip
        except OSError:  # it ended meanwhile
            continue
        if parent == os.getpid():
            found.append(int(folder.name))
    return found


def contents(path: Path):
    """What a database holds of the run `a`, without times and load."""
    with open_database(path) as db:
        run = need_run(db, "a")
        numbers = numbers_of(db, run)
        batches = [(b.first, b.count, b.stats["head_rows"]) for b in batches_of(db, run)]
        keys = [row[0] for row in db.execute("SELECT number FROM images ORDER BY rowid")]
        return run.settings, run.about, keys, batches, images_of(db, run, numbers)


def test_images_statistics_and_their_order_are_those_of_one_process(
    cluster, tiny_bundle, tmp_path, capfd
):
    def made(name, *argv):
        files = [f"--out={tmp_path / name}.png", f"--save-latents={tmp_path / name}.npy"]
        given = [str(tiny_bundle), f"--labels={LABELS}", "--mode=csd", "--gamma=2", *FAST]
        assert generate([*given, *files, *argv]) == 0
        return (tmp_path / f"{name}.png").read_bytes(), np.load(tmp_path / f"{name}.npy")

    one, spread = made("one"), made("spread", "--ray=local")
    assert spread[0] == one[0]
    np.testing.assert_array_equal(spread[1], one[1])
    assert capfd.readouterr().err == ""


def test_a_worker_that_is_killed_loses_nothing_and_repeats_nothing(
    cluster, tiny_bundle, tmp_path, capfd
):
    argv = [str(tiny_bundle), "--name=a", "--batch=2", "--images=61", *FAST, "--num-iter=8"]
    spread, one = tmp_path / "spread.db", tmp_path / "one.db"
    killed: list[int] = []

    def kill():
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if spread.exists() and (workers := own_processes("ray::Worker.run")):
                killed.append(workers[0])
                os.kill(workers[0], signal.SIGKILL)
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert run_eval([*argv, "--ray=local", "--ray-workers=2", f"--db={spread}"]) == 0
    finally:
        killer.join()
    printed = capfd.readouterr()
    assert len(killed) == 1
    assert "a worker died, and what it was making is made again" in printed.err
    assert "raylet" not in printed.out
    assert run_eval([*argv, f"--db={one}"]) == 0
    *values, images = contents(spread)
    *wanted, of_one = contents(one)
    assert values == wanted
    np.testing.assert_array_equal(images, of_one)


def test_a_node_with_another_bundle_is_refused_and_what_a_worker_refuses_is_one_line(
    cluster, tiny_bundle, make_bundle, tmp_path, capsys, monkeypatch
):
    from csd.runtime.bundle.bundle import Bundle

    bundle = make_bundle()
    argv = [bundle, f"--labels={LABELS}", *FAST, f"--out={tmp_path / 'x.png'}", "--ray=local"]
    identity = Bundle.identity(Bundle.open(bundle))
    edit_manifest(bundle, lambda values: values.update(name="other"))
    # The command has read what lay there before.
    monkeypatch.setattr(Bundle, "identity", lambda self: identity)
    message = failure(generate, argv, capsys)
    assert message.startswith(f"node {os.uname().nodename}: another bundle lies at {bundle}")
    assert not (tmp_path / "x.png").exists()


def test_ray_tells_nobody_has_no_dashboard_and_obeys_no_stranger(cluster):
    from ray._common.usage import usage_lib
    from ray._private import worker

    assert os.environ[STATISTICS] == "0"
    assert not usage_lib.usage_stats_enabled()
    assert not worker._global_node.webui_url
    code = "import sys, ray; ray.init(address=sys.argv[1], logging_level='CRITICAL')"
    address = cluster.get_runtime_context().gcs_address
    stranger = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    stranger["RAY_NUM_REDIS_GET_RETRIES"] = "1"
    assert "ConnectionError" in run_python(code, address, env=stranger).stderr
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("address", ["here", "host:0", ":1", "1:2"])
def test_what_is_no_address_is_one_line(address, tmp_path):
    from csd.runtime.spread.cluster import _check_answers

    with pytest.raises(CsdError, match="give the address of a cluster as host:port, or local"):
        _check_answers(address)


def test_an_address_where_nothing_answers_is_one_line_before_any_work(
    tiny_bundle, tmp_path, capsys, monkeypatch
):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    argv = [tiny_bundle, "--labels=1", *FAST, f"--out={tmp_path / 'x'}", "--ray=127.0.0.1:1"]
    message = failure(generate, argv, capsys)
    assert "nothing answers at '127.0.0.1:1'" in message
    assert message.endswith("or give --ray local")
    database = tmp_path / "e.db"
    argv = [tiny_bundle, "--name=a", *FAST, f"--db={database}", "--ray=127.0.0.1:1"]
    assert "nothing answers" in failure(run_eval, argv, capsys)
    assert leftovers(tmp_path) == []


def test_what_answers_and_is_no_cluster_is_one_line_soon():
    from csd.runtime.spread.cluster import _check_answers

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def greet():
            stream, _ = server.accept()
            with stream:
                stream.recv(100)
                stream.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(CsdError, match="is no Ray cluster"):
            _check_answers(address)
        thread.join()


def test_an_address_of_a_cluster_is_taken(cluster):
    from csd.runtime.spread.cluster import _check_answers

    _check_answers(cluster.get_runtime_context().gcs_address)


def test_without_ray_one_line_says_what_installs_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    argv = [tmp_path / "none", "--labels=1", "--ray=local"]
    assert failure(generate, argv, capsys) == (
        "--ray needs ray, which is not installed: pip install ray"
    )
    argv = [tmp_path / "none", "--labels=1", "--ray-workers=2"]
    assert "--ray-workers has no effect" in failure(generate, argv, capsys)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"cpus": 8}, (4, 2, 2.0, 0.0)),
        ({"cpus": 8, "threads": 3}, (2, 3, 3.0, 0.0)),
        ({"cpus": 8, "workers": 8}, (8, 1, 1.0, 0.0)),
        ({"cpus": 8, "workers": 2}, (2, 4, 4.0, 0.0)),
        ({"cpus": 2, "workers": 4, "threads": 2}, (4, 2, 0.5, 0.0)),
        ({"cpus": 1}, (1, 1, 1.0, 0.0)),
        ({"cpus": 64, "most": 3}, (3, 2, 2.0, 0.0)),
        ({"cpus": 16, "gpus": 2, "on_gpu": True}, (2, 2, 2.0, 1.0)),
        ({"cpus": 16, "gpus": 2, "on_gpu": True, "workers": 4}, (4, 4, 4.0, 0.5)),
    ],
)
def test_a_cluster_is_divided_by_gpus_or_cores(given, wanted):
    values = {"gpus": 0, "on_gpu": False, "workers": None, "threads": None, "most": 100, **given}
    share = share_of(**values)
    assert (share.workers, share.threads, share.cpus, share.gpus) == wanted


def test_a_cluster_without_a_gpu_is_one_line():
    with pytest.raises(CsdError, match="has no GPU"):
        share_of(8, 0, on_gpu=True, workers=None, threads=None, most=1)


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_leaves_no_file(tiny_bundle, tmp_path):
    labels = ",".join("1" * 4000)
    code = "import sys; from csd.runtime.entry import main; sys.exit(main())"
    argv = [str(tiny_bundle), f"--labels={labels}", "--threads=1", "--head-steps=1000",
            "--head=sequential", "--mode=target", "--quiet", "--ray=local",
            f"--out={tmp_path / 'x.png'}"]  # fmt: skip
    short = tempfile.mkdtemp(prefix="ray-")  # sockets have short names
    process = subprocess.Popen(
        [sys.executable, "-c", code, *argv], stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "TMPDIR": short},
    )  # fmt: skip
    try:
        end = time.monotonic() + SECONDS
        while not (workers := own_processes("ray::Worker.run")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert said.splitlines()[-1].endswith("interrupted; nothing was left half-written")
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert leftovers(Path(short)) == []
    os.rmdir(short)
