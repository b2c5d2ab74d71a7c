from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from csd.tools.eval.commands.compare import main
from csd.tools.eval.judge import METRICS
from csd.tools.eval.metrics.halves import Estimate
from csd.tools.eval.report.svg import Point, front, pareto
from csd.tools.eval.store.database import open_database
from csd.tools.eval.verdicts import drop_of, verdict

from ...helpers import failure, run_python
from .conftest import make_run
from .test_features import archive, write_graph

KERNEL = METRICS["kernel"]


def estimate(value, error):
    return Estimate(value, value + error * np.random.default_rng(0).normal(size=4000))


@pytest.mark.parametrize(
    ("value", "word"), [(0.1, "worse"), (-0.1, "better"), (0.03, "no difference seen")]
)
def test_a_verdict_is_what_the_interval_says(value, word):
    found = verdict(KERNEL, estimate(value, 0.02), 500)
    assert found.word == word
    assert found.low < value < found.high
    assert found.smallest == pytest.approx(2.8 * 0.02, rel=0.05)
    higher = verdict(METRICS["accuracy"], estimate(-value, 0.02), 500)
    assert higher.word == word
    if word.startswith("no"):
        assert re.fullmatch(r"no difference seen at n = 500 \(would see 5\.\d\d %\)",
                            found.text(KERNEL))  # fmt: skip


@pytest.mark.parametrize(
    ("value", "error", "holds"),
    [(0.0, 0.01, True), (0.1, 0.01, False), (0.02, 0.001, None), (0.01, 0.1, None),
     (-0.1, 0.02, True), (0.1, 0.2, None)],
)  # fmt: skip
def test_a_drop_is_held_against_its_margin(value, error, holds):
    for metric, sign in ((KERNEL, 1), (METRICS["accuracy"], -1)):
        found = drop_of(metric, estimate(sign * value, error), 0.02, 500)
        assert found.holds is holds
        assert found.drop == pytest.approx(value)
        assert (found.needed > 500) == (holds is None)


PLACES = (("a", 4, 1), ("b", 2, 2), ("c", 3, 3), ("d", 1, 9), ("e", 1, 8))
POINTS = [Point(name, s, v, v - 1, v + 1, False) for name, s, v in PLACES]


def test_the_front_is_what_nothing_beats():
    assert [point.name for point in front(POINTS, lower=True)] == ["e", "b", "a"]
    assert [point.name for point in front(POINTS, lower=False)] == ["d"]


class Page(HTMLParser):
    """Tags that are open, and where a page leads."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.images, self.wrong = [], [], 0, []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.images += tag == "img"
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """A tag that is closed where it begins, as SVG's are."""

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def read(text):
    page = Page()
    page.feed(text)
    return page


@pytest.mark.parametrize("points", [POINTS, POINTS[:1], [Point("<&>", 1e-4, 0, 0, 0, True)]])
def test_a_plot_is_well_formed(points):
    text = pareto(points, title="distance, %", lower=True, floor=0.5)
    page = read(text)
    assert (page.open, page.wrong, page.links) == ([], [], [])
    assert text.count("<circle") == len(points)
    assert "nan" not in text
    assert "<&>" not in text


@pytest.fixture(scope="module")
def made(tiny_bundle, tmp_path_factory):
    """A database of four runs."""
    folder = tmp_path_factory.mktemp("made")
    for name, *argv in (("a", "--ladder"), ("b", "--cfg=3"), ("same", "--head=sequential"),
                        ("seed", "--seed=5")):  # fmt: skip
        make_run(tiny_bundle, folder / "e.db", name, *argv, images=30)
    return folder / "e.db"


@pytest.fixture
def runs(made, tmp_path):
    """What `compare` takes: a copy of the database, real images and a graph beside it."""
    write_graph(tmp_path / "g.onnx", side=16)
    archive(tmp_path / "r.npz", side=8)
    shutil.copy(made, tmp_path / "e.db")
    return [f"--db={tmp_path / 'e.db'}", f"--features={tmp_path / 'g.onnx'}",
            f"--real={tmp_path / 'r.npz'}", "--quiet", "--threads=1"]  # fmt: skip


def test_runs_are_compared_in_figures_pairs_and_a_page(runs, tmp_path, capsys):
    files = [f"--html={tmp_path / 'r.html'}", f"--json={tmp_path / 'r.json'}", "--show=4"]
    assert main(["a", "b", "same", "seed", *runs, *files]) == 0
    out = capsys.readouterr().out
    values = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    names = [run["name"] for run in values["runs"]]
    assert names == ["a", "b", "same", "seed", "a/ar-1", "a/head-1", "a/head-2"]
    assert values["images"] == 30
    by_name = {run["name"]: run for run in values["runs"]}
    first = by_name["a"]["spaces"]["g"]
    assert first["differences"] == {}
    assert set(first["figures"]) == {*METRICS, "images", "lacking"}
    assert "kernel" in values["floor"]["g"]
    # Head steps below 16 are sampled sequentially where head is auto: the same images.
    same = by_name["same"]
    assert same["pairs"]["same_to_the_bit"] == 1
    assert same["pairs"]["psnr_of_those_that_differ"] is None
    assert same["spaces"]["g"]["differences"]["kernel"]["difference"] == 0
    assert same["spaces"]["g"]["two_sample_p_value"] == 1
    assert by_name["b"]["pairs"]["same_to_the_bit"] < 1
    assert by_name["seed"]["pairs"] is None
    for name in names:
        assert name in out
    assert "One feature space alone" in out
    assert "fewer AR steps" not in out
    page = read(text := (tmp_path / "r.html").read_text(encoding="utf-8"))
    assert (page.open, page.wrong) == ([], [])
    assert page.images == 4 * len(names)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert 'name=viewport content="width=device-width' in text
    assert "http" not in re.sub(r"data:image/png;base64,[\w+/=]+", "", text)


def test_figures_do_not_depend_on_who_is_beside(runs, tmp_path, capsys):
    figures = []
    for names in (["a", "b"], ["b", "a", "seed"]):
        assert main([*names, *runs, f"--json={tmp_path / 'r.json'}"]) == 0
        values = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
        (row,) = [run for run in values["runs"] if run["name"] == "b"]
        figures.append(row["spaces"]["g"]["figures"])
    assert figures[0] == figures[1]


def test_runs_beside_have_as_many_images_and_are_of_no_search(tiny_bundle, runs, tmp_path, capsys):
    path = Path(runs[0].removeprefix("--db="))
    for name in ("more", "tune/tuned/round/x"):
        make_run(tiny_bundle, path, name, "--num-iter=1", images=30)
    for name in ("a", "b"):
        make_run(tiny_bundle, path, name, *(["--cfg=3"] if name == "b" else []), images=35)
    capsys.readouterr()
    assert main(["a", "b", *runs]) == 0
    out = capsys.readouterr().out
    assert "a/ar-1" not in out
    assert "No run of the target at fewer AR steps with as many images" in out
    assert main(["a", "b", *runs, "--use=30"]) == 0
    out = capsys.readouterr().out
    assert "a/ar-1" in out
    assert "more" in out
    assert "tune/" not in out


def test_evaluations_need_no_torch(runs):
    code = (
        "import sys; sys.modules['torch'] = None; "
        "from csd.tools.eval.commands.compare import main; "
        f"print('ended', main({['a', 'b', *runs]}))"
    )
    done = run_python(code)
    assert done.stdout.splitlines()[-1] == "ended 0", done.stderr


def test_without_real_images_there_are_no_distances_to_them(runs, capsys):
    argv = [part for part in runs if not part.startswith("--real")]
    assert main(["a", "b", *argv, "--real=none"]) == 0
    out = capsys.readouterr().out
    assert "class accuracy" in out
    assert "needs real images: give --real PATH" in out


BAD = {
    "a": "1 runs are named: give 2 to 64",
    "a gone": "no run 'gone' in the database: give one of a, a/ar-1",
    "a a": "a run is named twice",
    "a b --features=gone": "no graph at gone",
    "a b --real=gone": "no real images at gone",
    "a b --html=x --json=x": "are one file: give two",
}


@pytest.mark.parametrize("line", BAD)
def test_what_cannot_be_compared_is_one_line(line, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    argv = [*line.split(), *(part for part in runs if part.split("=")[0] not in line)]
    assert BAD[line] in failure(main, argv, capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_runs_of_other_sizes_or_classes_are_refused(runs, capsys):
    with open_database(Path(runs[0].removeprefix("--db="))) as db:
        change = "UPDATE runs SET settings = json_set(settings, ?, json(?)) WHERE name = 'b'"
        db.execute(change, ("$.classes", "7"))
        assert "run 'b' has 7 classes, run 'a'" in failure(main, ["a", "b", *runs], capsys)
        db.execute(change, ("$.shape", "[8, 9]"))
        message = "run 'b' has images of 9 x 8, run 'a' of 8 x 8: compare runs of one size"
        assert message in failure(main, ["a", "b", *runs], capsys)


def test_shards_without_a_common_image_are_refused(evaluated, tmp_path, capsys):
    write_graph(tmp_path / "g.onnx", side=16)
    path = evaluated("a", "--shard=1/2")
    evaluated("b", "--shard=2/2")
    argv = ["a", "b", f"--db={path}", f"--features={tmp_path / 'g.onnx'}", "--real=none", "--quiet"]
    assert "have no image in common: merge their shards" in failure(main, argv, capsys)


def test_runs_without_a_classifier_need_a_graph(evaluated, capsys):
    path = evaluated("a", images=1)
    evaluated("b", images=1)
    message = failure(main, ["a", "b", f"--db={path}", "--quiet"], capsys)
    assert "there is no classifier: give --features FILE.onnx" in message
