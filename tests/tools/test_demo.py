"""The demo and the benchmark on the shipped pair, with short runs."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from csd.models import zoo
from csd.runtime import Bundle, GenerateOptions
from csd.runtime.cli import main as generate
from csd.tools import demo
from csd.tools.bench import cli as bench

from ..helpers import failure, leftovers

FAST = ("--num-iter", 3, "--head-steps", 4, "--threads", 1)


@pytest.fixture(scope="module")
def demonstrated(zoo_bundle, tmp_path_factory):
    """The folder that the demo wrote beside a bundle that was there."""
    out = tmp_path_factory.mktemp("demo") / "out"
    shutil.copytree(zoo_bundle, out / "bundle")
    short = functools.partial(GenerateOptions, num_iter=3, head_steps=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("csd.tools.demo.GenerateOptions", short)
        patch.setattr("csd.tools.demo.export", lambda argv: pytest.fail("exported again"))
        assert demo.main(["--out", str(out), "--repeats", "1", "--threads", "1"]) == 0
    return out


def test_the_demo_writes_a_picture_and_figures(demonstrated):
    assert leftovers(demonstrated) == ["bundle", "demo.json", "demo.png"]
    report = json.loads((demonstrated / "demo.json").read_text(encoding="utf-8"))
    modes = [row["name"].split(",")[0] for row in report["results"]]
    assert {"eager", "target", "csd"} <= set(modes)
    assert all(row["speed_up_over_eager"] > 0 for row in report["results"])
    assert sorted(set(report["grid"]["labels"])) == list(range(10))
    assert 0 <= report["grid"]["acceptance_rate"] <= 1
    with Image.open(demonstrated / "demo.png") as picture:
        assert json.loads(picture.text["csd"])["labels"] == report["grid"]["labels"]
        assert picture.size[0] > 10 * 28 > picture.size[1] / demo.ROWS


def test_the_demo_exports_where_there_is_no_bundle_and_stops_if_that_fails(
    tmp_path, monkeypatch, capsys
):
    asked = []
    monkeypatch.setattr("csd.tools.demo.export", lambda argv: asked.append(argv) or 1)
    message = failure(demo.main, ["--out", tmp_path / "out"], capsys)
    assert "the export failed" in message
    assert asked == [["--zoo", "fashion-mnist", "--out", str(tmp_path / "out" / "bundle")]]


def test_the_demo_reports_a_place_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "file" in failure(demo.main, ["--out", tmp_path / "file" / "out"], capsys)
    assert leftovers(tmp_path) == ["file"]


def test_a_bundle_of_the_zoo_names_its_classes_and_makes_grey_images(zoo_bundle, tmp_path):
    manifest = Bundle.open(zoo_bundle).manifest
    assert manifest.class_names == zoo.FASHION_CLASSES
    assert manifest.sources["target"].path == "zoo:fashion-mnist"
    argv = [zoo_bundle, "--labels", "ankle-boot,3", *FAST, "--out", tmp_path / "x.png", "--quiet"]
    assert generate([str(part) for part in argv]) == 0
    pixels = np.asarray(Image.open(tmp_path / "x.png"))
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert pixels.std() > 0


def test_class_accuracy_is_measured_of_every_mode_but_eager(zoo_bundle, tmp_path):
    argv = [zoo_bundle, "--modes", "eager,target,csd", "--gammas", 2, "--repeats", 1, *FAST]
    argv += ["--temperatures", "1,8,42", "--quality-images", 6]
    argv += ["--json", tmp_path / "x.json", "--plot", tmp_path / "x.png"]
    assert bench.main([str(part) for part in argv]) == 0
    rows = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["results"]
    assert len(rows) == 5
    for row in rows:
        if row["name"] == "eager":
            assert row["accuracy"] is None
        else:
            assert row["accuracy"] * 6 == pytest.approx(round(row["accuracy"] * 6))
            assert row["accuracy_images"] == 6
    assert Image.open(tmp_path / "x.png").size[0] > 600


def test_eager_needs_the_weights_that_the_bundle_has(zoo_bundle, tmp_path, monkeypatch, capsys):
    (tmp_path / "target.safetensors").write_bytes(b"other weights")
    entry = dataclasses.replace(zoo.ZOO["fashion-mnist"], folder=tmp_path)
    monkeypatch.setitem(zoo.ZOO, "fashion-mnist", entry)
    argv = [zoo_bundle, "--modes", "eager", "--repeats", 1]
    assert "give --target-weights FILE" in failure(bench.main, argv, capsys)
