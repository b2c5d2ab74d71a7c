from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from csd.runtime import Bundle, GenerateOptions
from csd.runtime.command.frame import Stopped
from csd.runtime.session import Session
from csd.tools.eval.cli import main as eval_main
from csd.tools.eval.commands.run import ladder, main
from csd.tools.eval.images.shards import Shard, missing_batches, own_images, read_shard
from csd.tools.eval.store.database import open_database
from csd.tools.eval.store.runs import all_runs, batches_of, images_of, need_run, numbers_of

from ...helpers import edit_manifest, failure, no_draft


def stored(path, name):
    """Images and classes of a run, and how its batches begin."""
    with open_database(path) as db:
        run = need_run(db, name)
        labels = [row[0] for row in db.execute(
            "SELECT label FROM images WHERE run = ? ORDER BY number", (run.key,))]  # fmt: skip
        numbers = numbers_of(db, run)
        images = images_of(db, run, numbers)
        return numbers, labels, images, [(b.first, b.count) for b in batches_of(db, run)]


def test_images_are_those_of_one_call_and_of_all_classes(evaluated, tiny_session):
    path = evaluated("a", images=12)
    numbers, labels, images, batches = stored(path, "a")
    assert numbers == list(range(12))
    classes = tiny_session.bundle.manifest.target.class_num
    assert labels == [number % classes for number in range(12)]
    made = tiny_session.generate(labels, GenerateOptions(num_iter=2, head_steps=4))
    np.testing.assert_array_equal(images, made.images)
    assert batches == [(0, 5), (5, 5), (10, 2)]
    with open_database(path) as db:
        run, first = need_run(db, "a"), batches_of(db, need_run(db, "a"))[0]
    assert run.settings.options["num_iter"] == 2
    assert run.settings.versions["csd"]
    assert run.about["machine"]["processor"]
    assert first.seconds > 0
    assert first.stats["ar_steps"] > 0


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_run_that_ended_goes_on_with_the_same_images(calls, evaluated, monkeypatch, tiny_bundle):
    whole = stored(evaluated("a", db="whole.db"), "a")
    generate, made = Session.generate, []

    def ends(self, labels, *args, **kwargs):
        if len(made) == calls:
            raise Stopped(signal.SIGTERM)
        made.append(len(labels))
        return generate(self, labels, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "generate", ends)
        with pytest.raises(AssertionError):
            evaluated("a")
    path = evaluated("a")
    found = stored(path, "a")
    assert (found[0], found[1], found[3]) == (whole[0], whole[1], whole[3])
    np.testing.assert_array_equal(found[2], whole[2])


def test_a_run_that_was_killed_goes_on_with_the_same_images(tiny_bundle, tmp_path):
    argv = [str(tiny_bundle), "--name=a", "--batch=2", "--num-iter=8", "--threads=1", "--quiet"]
    killed, whole = tmp_path / "killed.db", tmp_path / "whole.db"
    process = subprocess.Popen([sys.executable, "-m", "tests.tools.eval.test_run", *argv,
                                "--images=4000", f"--db={killed}"])  # fmt: skip
    try:
        end = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
            if killed.exists() and count(killed) >= 4:
                break
        assert process.poll() is None, "it ended by itself"
    finally:
        process.kill()
        process.wait()
    there = count(killed)
    assert there % 2 == 0
    for path in (killed, whole):
        assert main([*argv, f"--images={there + 5}", f"--db={path}"]) == 0
    np.testing.assert_array_equal(stored(killed, "a")[2], stored(whole, "a")[2])


def count(path):
    try:
        with open_database(path) as db:
            return db.execute("SELECT count(*) FROM images").fetchone()[0]
    except Exception:  # it is being made
        return 0


def test_a_run_grows_and_never_shrinks(evaluated, capsys):
    evaluated("a", images=7)
    path = evaluated("a", images=12)
    assert "12 images, 5 of them now" in capsys.readouterr().out
    evaluated("a", "--json=-", images=12)
    printed = capsys.readouterr()
    values = json.loads(printed.out)
    assert values["database"] == str(path)
    (run,) = values["runs"]
    assert (run["name"], run["images"], run["made"], run["options"]["num_iter"]) == ("a", 12, 0, 2)
    assert run["seconds_per_image"] > 0
    assert "12 images, 0 of them now" in printed.err
    whole = stored(evaluated("a", images=12, db="whole.db"), "a")
    np.testing.assert_array_equal(stored(path, "a")[2], whole[2])
    evaluated("a", images=3)
    assert stored(path, "a")[0] == list(range(12))


def test_the_ladder_is_the_target_at_fewer_steps(evaluated):
    path = evaluated("a", "--ladder", "--mode=csd", "--gamma=1", images=2)
    with open_database(path) as db:
        runs = {run.name: run.settings.options for run in all_runs(db)}
    assert {name: (o["mode"], o["num_iter"], o["head_steps"]) for name, o in runs.items()} == {
        "a": ("csd", 2, 4), "a/ar-1": ("target", 1, 4),
        "a/head-2": ("target", 2, 2), "a/head-1": ("target", 2, 1),
    }  # fmt: skip


def test_annealed_head_steps_have_no_ladder():
    options = GenerateOptions(num_iter=16, head_steps=(50, 5))
    assert [*ladder(options)] == ["ar-4", "ar-8"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shards_are_all_batches_once(count):
    parts = [[*missing_batches(23, 5, (), Shard(i + 1, count))] for i in range(count)]
    together = sorted(batch for part in parts for batch in part)
    assert together == [(0, 5), (5, 5), (10, 5), (15, 5), (20, 3)]
    assert sum(own_images(23, 5, Shard(i + 1, count)) for i in range(count)) == 23
    assert [*missing_batches(23, 5, range(17), Shard())] == [(17, 3), (20, 3)]


def test_a_shard_is_read():
    assert str(read_shard("2/3")) == "2/3"


BAD = {
    "{} --name=a --images=1 --shard=3/2": "'3/2' is no shard: give i/n",
    "{} --name=a/.. --images=0": "'0' is not a whole number from 1",
    "{} --name=_": "'_' is no name",
    "{} --name=a --db={}/x": "belongs to the bundle",
    "{} --name=a --features=gone.onnx": "no graph at gone.onnx",
    "{} --name=a --num-iter=99": "num-iter is 99",
    "{} --name=a --seed=-1": "seed is -1",
    f"{{}} --name={'a' * 78} --ladder": "give a shorter --name",
}


@pytest.mark.parametrize("line", BAD)
def test_what_cannot_be_is_one_line_and_makes_no_database(
    line, tiny_bundle, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    argv = [part.replace("{}", str(tiny_bundle)) for part in line.split()]
    assert BAD[line] in failure(main, argv, capsys)
    assert [*tmp_path.iterdir()] == []


def test_a_bundle_without_a_draft_or_a_decoder_is_refused(make_bundle, tmp_path, capsys):
    argv = [f"--db={tmp_path / 'x'}", "--name=a", "--images=1"]
    alone = make_bundle(no_draft, "alone")
    assert "has no draft" in failure(main, [alone, *argv, "--mode=csd"], capsys)
    blind = make_bundle(name="blind")
    edit_manifest(blind, lambda values: values["graphs"].pop("decoder"))
    assert "has no decoder, so there are no images" in failure(main, [blind, *argv], capsys)
    assert not (tmp_path / "x").exists()


def test_the_command_line_leads_to_its_command(capsys):
    assert "there is no 'wat': give run, compare" in failure(eval_main, ["wat"], capsys)
    assert "csd-eval run --help" in failure(eval_main, ["run"], capsys)


def test_settings_survive_json(evaluated, tiny_bundle):
    path = evaluated("a", "--cfg=2", "--cfg-interval=0.1:0.9", "--head-steps=4:2", images=1)
    with open_database(path) as db:
        options = need_run(db, "a").settings.options
    assert json.loads(json.dumps(options)) == options
    assert options["head_steps"] == [4, 2]
    Bundle.open(tiny_bundle)
    evaluated("a", "--cfg=2", "--cfg-interval=0.1:0.9", "--head-steps=4:2", images=3)


if __name__ == "__main__":
    sys.exit(main())
