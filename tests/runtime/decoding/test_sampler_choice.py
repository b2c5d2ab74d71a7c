"""Which head sampler runs, and with which windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from csd.runtime import Bundle, GenerateOptions
from csd.runtime.head import ParallelSampler, SequentialSampler, SpeculativeSampler
from csd.runtime.head.draft import ROW_COST

from ...helpers import edit_manifest


@pytest.fixture
def used(monkeypatch):
    """Names of the samplers that ran, and the windows of the speculative ones."""
    names: list[str] = []
    windows: list[float] = []
    for kind in (SequentialSampler, SpeculativeSampler, ParallelSampler):
        plain = kind.run

        def watched(self, *args, plain=plain, kind=kind, **kwargs):
            names.append(kind.__name__)
            if kind is SpeculativeSampler:
                windows.append(float(self._windows.mean()))
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(kind, "run", watched)
    return names, windows


def generate(session, labels=(1,), **changes):
    values = {"mode": "csd", "head": "auto", "gamma": 2, "num_iter": 8, "head_steps": 40}
    return session.generate(labels, GenerateOptions(**{**values, **changes}), seed=0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"head": "sequential"}, {"SequentialSampler"}),
        ({"head": "speculative"}, {"SpeculativeSampler", "ParallelSampler"}),
        ({"head": "parallel"}, {"ParallelSampler"}),
        ({"mode": "target"}, {"SpeculativeSampler"}),
        ({"head_steps": 15}, {"SequentialSampler"}),
        # A few tokens are verified together: sweeps pay.
        ({"gamma": 1}, {"SpeculativeSampler", "ParallelSampler"}),
        # Many of them: the rows of sweeps cost more than the calls that they save.
        ({"gamma": 8}, {"SpeculativeSampler", "SequentialSampler"}),
    ],
)
def test_the_option_decides(tiny_session, used, changes, expected):
    generate(tiny_session, **changes)
    assert set(used[0]) == expected


def test_auto_counts_all_images_that_are_decoded_at_once(tiny_session, used):
    def kinds(images, head):
        labels = [image % 10 for image in range(images)]
        stats = generate(tiny_session, labels, mode="target", head=head, num_iter=4).stats
        assert list(stats.head_samplers) == ["target"]
        chosen = stats.to_dict()["head_samplers"]["target"]
        assert sum(chosen.values()) == 16 * images
        return set(chosen)

    assert kinds(1, "auto") == {"speculative"}
    assert kinds(8, "auto") == {"sequential"}
    assert kinds(8, "speculative") == {"speculative"}
    # The images of a run are sampled alike, also those that are left for a smaller canvas.
    assert kinds(9, "auto") == {"sequential"}


def test_the_stats_tell_what_aligned_chains_took(tiny_session):
    stats = generate(tiny_session, gamma=1, prefill=0.25).stats
    assert stats.head_samplers == {
        "target": {"speculative": 2}, "draft": {"speculative": 14},
        "target, aligned": {"parallel": 14},
    }  # fmt: skip


def test_windows_are_shorter_where_a_call_has_more_rows(tiny_session, used):
    def mean_window(**changes):
        used[1].clear()
        generate(tiny_session, mode="target", **changes)
        return np.mean(used[1])

    one = mean_window(num_iter=16)  # one token an AR step
    assert one > mean_window(num_iter=2)
    assert one > mean_window(num_iter=16, cfg=2.0)


def test_windows_do_not_depend_on_the_batch(tiny_session, used):
    options = GenerateOptions(mode="target", head="speculative", num_iter=4, head_steps=40)
    for labels in ([1], [1, 2, 3]):
        tiny_session.generate(labels, options, seed=0)
    assert used[1][:4] == used[1][4:]


@pytest.mark.parametrize(("row_cost", "windows"), [(10.0, 1.0), (1e-4, 20.0)])
def test_the_bundle_says_what_rows_cost(make_bundle, used, row_cost, windows):
    path = make_bundle()
    manifest = Bundle.open(path).manifest
    assert manifest.calibration.row_cost == ROW_COST
    calibration = dataclasses.replace(manifest.calibration, row_cost=row_cost)
    edit_manifest(path, lambda values: values.update(calibration=dataclasses.asdict(calibration)))
    with Bundle.open(path).session() as session:
        generate(session, mode="target", head="speculative", num_iter=16)
    assert (used[1][0] > windows) == (row_cost < 1)


def test_a_bundle_from_before_row_costs_has_the_usual_one(make_bundle):
    path = make_bundle(lambda values: values["calibration"].pop("row_cost"))
    assert Bundle.open(path).manifest.calibration.row_cost == ROW_COST
