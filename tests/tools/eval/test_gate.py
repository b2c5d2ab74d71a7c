from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from csd.tools.eval.commands import gate, history, merge
from csd.tools.eval.store.database import open_database
from csd.tools.eval.store.runs import batches_of, images_of, need_run, numbers_of
from csd.tools.png import encode_png

from ...helpers import failure
from .conftest import make_run
from .test_features import archive, write_graph
from .test_run import stored


def write_images(path, name, images):
    """Put other images in the place of a run's."""
    with open_database(path) as db:
        run = need_run(db, name)
        for number, image in enumerate(images):
            db.execute("UPDATE images SET png = ? WHERE run = ? AND number = ?",
                       (encode_png(image), run.key, number))  # fmt: skip


@pytest.fixture(scope="module")
def judged(tiny_bundle, tmp_path_factory):
    """Runs `real`, as good as real images, `alike`, a second one, and `noise`."""
    folder = tmp_path_factory.mktemp("judged")
    path, rng = folder / "e.db", np.random.default_rng(0)
    bases = rng.integers(0, 200, (10, 8, 8, 3))

    def images(count, labels, spread=20):
        moved = bases[labels] + rng.integers(0, spread, (count, 8, 8, 3))
        return moved.astype(np.uint8)

    labels = np.arange(400) % 10
    splits = {f"{s}_{n}": v for s in ("train", "test")
              for n, v in (("images", images(400, labels)), ("labels", labels))}  # fmt: skip
    archive(folder / "r.npz", **splits)
    write_graph(folder / "g.onnx", side=8)
    for name, seed in (("real", 0), ("alike", 1), ("noise", 2)):
        make_run(tiny_bundle, path, name, f"--seed={seed}", images=120)
        made = images(120, labels[:120])
        noisy = rng.integers(0, 256, made.shape, dtype=np.uint8)
        write_images(path, name, noisy if name == "noise" else made)
    return [f"--db={path}", f"--features={folder / 'g.onnx'}", f"--real={folder / 'r.npz'}",
            "--quiet", "--threads=1"]  # fmt: skip


@pytest.mark.parametrize(
    ("baseline", "candidate", "more", "code"),
    [
        ("real", "alike", ["--max-drop=50%"], 0),
        ("real", "noise", ["--max-drop=2%"], 1),
        ("noise", "real", [], 0),
        ("real", "alike", ["--max-drop=0.01%", "--use=20"], 3),
        ("real", "noise", ["--metric=coverage", "--max-drop=20%"], 1),
        ("real", "alike", ["--metric=recall", "--max-drop=0.1%"], 3),
    ],
)
def test_the_exit_code_says_whether_it_is_worse(baseline, candidate, more, code, judged, capsys):
    argv = [f"--baseline={baseline}", f"--candidate={candidate}", *judged, *more]
    assert gate.main(argv) == code
    out = capsys.readouterr().out
    assert {0: "not worse", 1: "WORSE", 3: "too few images to tell, about"}[code] in out


def test_the_figures_are_saved(judged, tmp_path):
    argv = ["--baseline=real", "--candidate=noise", *judged, f"--json={tmp_path / 'g.json'}"]
    assert gate.main(argv) == 1
    values = json.loads((tmp_path / "g.json").read_text(encoding="utf-8"))
    found = values["spaces"]["g"]
    assert values["exit_code"] == 1
    assert found["margin"] == 0.02 < found["low"] < found["drop"] < found["high"]
    assert found["holds"] is False


@pytest.mark.parametrize(
    ("holds", "code"),
    [([True], 0), ([True, None], 3), ([None, False], 1), ([True, True], 0), ([False], 1)],
)
def test_every_space_counts(holds, code):
    assert gate.gate_code(holds) == code


BAD = {
    "--baseline=real --candidate=gone": "no run 'gone'",
    "--baseline=real --candidate=alike --use=4": "kernel distance needs 8 images, there are 4",
    "--baseline=real --candidate=alike --use=13 --metric=frechet": "needs 14 images, there are 13",
    "--baseline=real --candidate=alike --max-drop=0%": "'0%' is no share",
    "--baseline=real --candidate=alike --max-drop=200%": "'200%' is no share",
    "--baseline=real --candidate=real": "a run is named twice",
}


@pytest.mark.parametrize("line", BAD)
def test_what_cannot_be_told_is_one_line(line, judged, capsys):
    assert BAD[line] in failure(gate.main, [*line.split(), *judged], capsys)


def test_history_lists_every_run_in_order(judged, tmp_path, capsys):
    files = [f"--json={tmp_path / 'h.json'}", f"--plot={tmp_path / 'h.svg'}"]
    assert history.main([*judged, *files]) == 0
    out = capsys.readouterr().out
    assert out.index("real ") < out.index("alike ") < out.index("noise ")
    rows = json.loads((tmp_path / "h.json").read_text(encoding="utf-8"))["runs"]
    assert [row["name"] for row in rows] == ["real", "alike", "noise"]
    assert rows[2]["value"] > rows[0]["value"]
    assert "<svg" in (tmp_path / "h.svg").read_text(encoding="utf-8")
    assert history.main([*judged, "--like=ali", "--metric=coverage"]) == 0
    assert "noise" not in capsys.readouterr().out
    message = failure(history.main, [*judged, "--like=gone"], capsys)
    assert "no run with images has 'gone' in its name" in message


@pytest.fixture
def shards(evaluated, tmp_path):
    """Databases of three shards of a run, and one of the whole."""
    write_graph(tmp_path / "g.onnx", side=8)
    for index in (1, 2, 3):
        evaluated("a", f"--shard={index}/3", f"--features={tmp_path / 'g.onnx'}", images=23,
                  db=f"{index}.db")  # fmt: skip
    return [tmp_path / f"{index}.db" for index in (1, 2, 3)]


def test_merged_shards_are_the_whole_run(shards, evaluated, tmp_path, capsys):
    out = tmp_path / "all.db"
    assert merge.main([*map(str, shards), f"--db={out}"]) == 0
    assert "1.db: 10 images of a" in capsys.readouterr().out
    whole, merged = stored(evaluated("a", images=23, db="whole.db"), "a"), stored(out, "a")
    assert (merged[0], merged[1], merged[3]) == (whole[0], whole[1], whole[3])
    np.testing.assert_array_equal(merged[2], whole[2])
    with open_database(out) as db:
        assert db.execute("SELECT count(*) FROM features").fetchone() == (23,)
    before = out.read_bytes()
    capsys.readouterr()
    assert merge.main([str(shards[1]), f"--db={out}", "--json=-"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "database": str(out), "images_added": {str(shards[1]): {"a": 0}}
    }  # fmt: skip
    assert "2.db: 0 images of a" in printed.err
    assert out.read_bytes() == before


def test_what_cannot_be_merged_changes_nothing(shards, evaluated, tmp_path, capsys):
    other = shutil.copy(shards[0], tmp_path / "other.db")
    evaluated("b", "--cfg=2", images=2, db="other.db")
    evaluated("b", "--cfg=3", images=2, db="2.db")
    out = tmp_path / "all.db"
    message = failure(merge.main, [*map(str, shards), str(other), f"--db={out}"], capsys)
    assert "run 'b' of " in message
    assert "(cfg 2.0, was 3.0)" in message
    assert not out.exists()
    twice = [str(shards[0]), str(tmp_path / "." / "1.db"), f"--db={out}"]
    assert "a database is named twice" in failure(merge.main, twice, capsys)
    own = [str(shards[0]), f"--db={shards[0]}"]
    assert "belongs to the database 1.db" in failure(merge.main, own, capsys)
    with open_database(shards[0]) as db:
        run = need_run(db, "a")
        assert len(images_of(db, run, numbers_of(db, run))) == 10
        assert len(batches_of(db, run)) == 2
