"""The measurement of local AR steps, on images that cost nothing."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest
from PIL import Image

from csd.runtime import GenerateOptions
from csd.runtime.stats import Stats
from csd.tools.measure.local_steps.__main__ import _compare
from csd.tools.measure.local_steps.plot import plot_rows
from csd.tools.measure.local_steps.rows import Row, figures_of, make_images, wanted_rows

BASE = GenerateOptions(head="parallel", head_steps=20)
SWEEP = {
    "num_iters": [16], "scales": [1.0, 3.0], "refreshes": [1, 2, "auto"],
    "tolerances": [0.05, 0.1], "fewer": [0.5, 1.0, 0.25], "intervals": [(0.0, 0.75)],
}  # fmt: skip


def rows():
    return wanted_rows(BASE, **SWEEP)


def test_every_row_is_beside_the_same_run_with_all_steps_full_and_fewer():
    made = rows()
    of_one_scale = [row for row in made if row.options.cfg == 3.0]
    assert len(made) == 2 * len(of_one_scale) - 2  # without guidance no part of it is left out
    assert [(row.name, row.options.num_iter, row.options.refresh) for row in of_one_scale] == [
        ("16 AR steps", 16, 1), ("8 of 16 AR steps", 8, 1), ("4 of 16 AR steps", 4, 1),
        ("16 AR steps, refresh 2", 16, 2), ("16 AR steps, refresh auto 0.05", 16, "auto"),
        ("16 AR steps, refresh auto 0.1", 16, "auto"),
        ("16 AR steps, refresh 1, guided 0:0.75", 16, 1),
        ("16 AR steps, refresh 2, guided 0:0.75", 16, 2),
    ]  # fmt: skip
    assert [row.options.refresh_tolerance for row in of_one_scale[-4:-2]] == [0.05, 0.1]
    assert [row.options.cfg_interval for row in of_one_scale[-3:]] == [None, *[(0.0, 0.75)] * 2]
    assert {row.whole for row in made} == {16}


class FakeSession:
    """Makes images that are the class in bright pixels, moved by what a row leaves out."""

    bundle = types.SimpleNamespace(
        manifest=types.SimpleNamespace(target=types.SimpleNamespace(class_num=10))
    )

    def __init__(self):
        self.calls = []

    def generate(self, labels, options, *, seed, first_image=0):
        self.calls.append((len(labels), options.refresh, first_image))
        stats = Stats(options.num_iter)
        stats.seconds = float(len(labels) * options.num_iter)
        local, part = options.refresh != 1, options.cfg_interval is not None
        stats.backbone_rows = {"target": (5 if local else 10) - 2 * part}
        if options.refresh == "auto":
            stats.displacement = {"target": dict.fromkeys(range(len(labels)), (4.0, 1))}
        rng = np.random.default_rng([seed, first_image])
        tokens = rng.standard_normal((len(labels), 49, 16)).astype(np.float32) / 10
        tokens += 0.02 * local + 0.01 * part + 0.001 * (16 - options.num_iter)
        latents = tokens.reshape(len(labels), 1, 28, 28)
        return types.SimpleNamespace(
            tokens=tokens, latents=latents, labels=tuple(labels), stats=stats
        )


def network(images):
    features = images.reshape(len(images), -1)[:, :3].astype(np.float64)
    return features, np.arange(len(images)) % 10


def test_rows_take_turns_and_are_held_against_the_same_seed_with_all_steps_full():
    session, wanted = FakeSession(), rows()
    made = make_images(session, wanted, 7, 3, 5, lambda _: None)
    timed = session.calls[len(wanted) :]  # the first ones are not counted
    assert [first for _, _, first in timed] == [0] * 14 + [3] * 14 + [6] * 14
    assert [count for count, _, _ in timed] == [3] * 28 + [1] * 14
    reference = network(np.random.default_rng(0).standard_normal((50, 1, 28, 28)))[0]

    def figures(row):
        return figures_of(row, made, network, reference, 3, np.random.default_rng(0))

    by_name = {row.name: figures(row) for row in wanted if row.options.cfg == 3.0}
    full, local = by_name["16 AR steps"], by_name["16 AR steps, refresh 2"]
    auto = by_name["16 AR steps, refresh auto 0.1"]
    assert (full["rms"], full["psnr"], full["backbone_rows_share"]) == (0.0, None, 1.0)
    assert full["seconds_per_image"] == 16
    assert local["rms"] == pytest.approx(0.02, rel=1e-4)
    assert local["backbone_rows_share"] == 0.5
    guided_in_a_part = by_name["16 AR steps, refresh 1, guided 0:0.75"]
    assert guided_in_a_part["backbone_rows_share"] == 0.8
    assert guided_in_a_part["rms"] == pytest.approx(0.01, rel=1e-4)
    assert guided_in_a_part["cfg_interval"] == (0.0, 0.75)
    assert by_name["8 of 16 AR steps"]["rms"] == pytest.approx(0.008, rel=1e-4)
    # 2 / 0.02 is 40 dB, but for the rounding to bytes.
    assert local["psnr"] == pytest.approx(40, abs=0.5)
    assert local["psnr"] >= local["psnr_least"]
    assert (auto["refresh_error"], local["refresh_error"]) == (2.0, None)
    assert full["accuracy"] == 1.0
    assert all(value["frechet_half_interval"] > 0 for value in by_name.values())


def value(name, seconds, frechet, refresh=1, scale=1.0, interval=None):
    return {
        "name": name, "group": [16, scale], "seconds_per_image": seconds, "frechet": frechet,
        "frechet_half_interval": 0.5, "refresh": refresh, "cfg_interval": interval,
    }  # fmt: skip


def test_fewer_steps_at_equal_seconds_lie_on_a_line_between_their_neighbours(tmp_path):
    values = [
        value("16", 4.0, 10.0), value("8", 2.0, 14.0), value("4", 1.0, 20.0),
        value("2", 2.5, 11.0, 2), value("slower than all", 5.0, 9.0, 3),
        value("other scale", 3.0, 1.0, scale=3.0), value("x", 3.0, 2.0, 2, scale=3.0),
        value("guided in a part", 1.5, 30.0, interval=(0.0, 0.75)),
    ]  # fmt: skip
    _compare(values)
    equal = [v["frechet_of_fewer_steps_at_equal_seconds"] for v in values]
    assert equal == [None, None, None, 13.0, None, None, 1.0, 17.0]
    plot_rows(values, tmp_path / "x.png")
    width, height = Image.open(tmp_path / "x.png").size
    assert width > height > 100


def test_a_row_is_a_key():
    row = Row("x", BASE, 16)
    assert {row: 1}[Row("x", dataclasses.replace(BASE), 16)] == 1
