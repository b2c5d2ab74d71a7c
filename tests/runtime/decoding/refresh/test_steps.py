"""What is kept and for how long, on graphs in a few lines."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from csd.runtime import GenerateOptions, MARConfig, NumericsError
from csd.runtime.decoding.plan import Canvas, Plan
from csd.runtime.decoding.refresh.backbone import CachedBackbone
from csd.runtime.decoding.refresh.period import AutoPeriod, FixedPeriod
from csd.runtime.decoding.refresh.steps import CachedSteps
from csd.runtime.noise import SeededNoise
from csd.runtime.stats import Stats

CONFIG = MARConfig(
    img_size=16, vae_stride=1, patch_size=4, vae_embed_dim=1, encoder_embed_dim=8, encoder_depth=2,
    encoder_num_heads=2, decoder_embed_dim=8, decoder_depth=3, decoder_num_heads=2, class_num=4,
    buffer_size=2, diffloss_d=1, diffloss_w=8,
)  # fmt: skip
LENGTH, STEPS = CONFIG.seq_len, 8


@dataclasses.dataclass
class Graphs:
    """Stand-ins for both graphs; a full call is noted by what it knows, a local one by what is new.

    A full step's caches say which call made them, and a local one must be given the latest.
    """

    calls: list = dataclasses.field(default_factory=list)
    value: float = 0.0

    def full(self, feeds, rows=0, keep=()):
        self.calls.append(("full", len(feeds["label"]), feeds["visible"].shape[1], rows))
        z = np.full((*feeds["query"].shape, 8), self.value, dtype=np.float32)
        return {"z": z, **{name: (name, len(self.calls)) for name in keep}}

    def local(self, feeds, rows=0, keep=()):
        caches = {name: feeds[name] for name in feeds if name.endswith(("cache", "bias"))}
        last = max(i for i, call in enumerate(self.calls, 1) if call[0] == "full")
        assert caches == {name: (name, last) for name in caches}
        assert len(caches) == 4
        self.calls.append(("local", len(feeds["new"]), feeds["new"].shape[1], rows))
        return {"z": np.full((*feeds["query"].shape, 8), self.value + 1, dtype=np.float32)}

    @property
    def kinds(self):
        return "".join("F" if call[0] == "full" else "." for call in self.calls)


class Graph:
    def __init__(self, run):
        self.run = run


def make(period, **options):
    graphs = Graphs()
    full, local = Graph(graphs.full), Graph(graphs.local)
    steps = CachedSteps(CachedBackbone("target", CONFIG, full, local), period)
    options = GenerateOptions(num_iter=STEPS, **options).resolved(CONFIG, 10)
    plan = Plan.of(options, LENGTH)
    labels, images = np.array([1, 2]), np.arange(2)
    canvas = Canvas.blank(CONFIG, SeededNoise(0), labels, images)
    return graphs, steps, canvas, plan, Stats(STEPS)


def test_a_local_step_gets_the_tokens_since_the_full_one_and_rows_are_counted():
    graphs, steps, canvas, plan, stats = make(FixedPeriod(3, 1))
    for step in range(STEPS):
        steps.predict(canvas, plan, range(step, step + 1), stats)
    assert graphs.kinds == "F..F..F."
    sizes, known = plan.schedule.sizes, 0
    rows = of_full = 0
    for step, (kind, batch, count, _) in enumerate(graphs.calls):
        assert batch == 2
        full = 2 * (2 * (2 + known) + 3 * (2 + LENGTH))
        if kind == "full":
            assert count == known
            rows, since = rows + full, known
        else:
            assert count == known - since
            rows += 2 * (2 * count + 3 * (count + sizes[step]))
        of_full += full
        known += sizes[step]
    assert known == LENGTH
    assert stats.full_steps == {"target": 3}
    assert stats.local_steps == {"target": 5}
    assert stats.backbone_rows == {"target": rows}
    assert stats.backbone_rows_full == {"target": of_full}
    assert stats.backbone_rows_share == rows / of_full < 1


def test_new_positions_are_those_of_the_order_since_the_full_step():
    _, steps, canvas, plan, stats = make(FixedPeriod(9, 1))
    seen = []
    steps._backbone._local.run = lambda feeds, rows=0: (
        seen.append(feeds) or {"z": np.zeros((2, 1, 8), np.float32)}
    )
    steps.predict(canvas, plan, range(2, 3), stats)
    steps.predict(canvas, plan, range(5, 6), stats)
    decoded = canvas.positions(plan.schedule, range(2, 5))
    np.testing.assert_array_equal(np.sort(seen[0]["new"]), np.sort(decoded))
    np.testing.assert_array_equal(seen[0]["query"], canvas.positions(plan.schedule, range(5, 6)))


def test_guidance_that_begins_or_ends_makes_a_step_full():
    given = {"cfg": 3.0, "cfg_interval": (0.3, 0.7), "cfg_schedule": "constant"}
    graphs, steps, canvas, plan, stats = make(FixedPeriod(99, 1), **given)
    for step in range(STEPS):
        steps.predict(canvas, plan, range(step, step + 1), stats)
    guided = [plan.guided(range(step, step + 1)) for step in range(STEPS)]
    assert 0 < sum(guided) < STEPS
    assert [call[1] for call in graphs.calls] == [4 if own else 2 for own in guided]
    changes = [step == 0 or guided[step] != guided[step - 1] for step in range(STEPS)]
    assert [call[0] == "full" for call in graphs.calls] == changes


def test_the_unconditional_branch_has_no_label():
    _, steps, canvas, plan, stats = make(FixedPeriod(99, 1), cfg=3.0)
    seen = []
    steps._backbone._full.run = lambda feeds, rows=0, keep=(): (
        seen.append(feeds) or {"z": np.zeros((4, 1, 8), np.float32), **dict.fromkeys(keep, None)}
    )
    conditions = steps.predict(canvas, plan, range(1), stats).conditions
    assert seen[0]["label"].tolist() == [1, 2, 4, 4]
    assert conditions.unconditional is not None
    assert len(conditions) == 2


def test_what_knows_tokens_that_are_replaced_is_forgotten():
    graphs, steps, canvas, plan, stats = make(FixedPeriod(99, 1))
    for step in range(4, 6):
        steps.predict(canvas, plan, range(step, step + 1), stats)
    steps.replaced_from(4)  # knows what is before step 4
    steps.predict(canvas, plan, range(6, 7), stats)
    steps.replaced_from(3)
    steps.predict(canvas, plan, range(7, 8), stats)
    assert graphs.kinds == "F..F"


def test_a_measuring_period_gets_what_a_local_step_gives_before_caches_are_overwritten():
    graphs, steps, canvas, plan, stats = make(AutoPeriod(0.1, first=1))
    first = steps.predict(canvas, plan, range(1), stats)
    assert first.stale is None  # nothing was kept
    second = steps.predict(canvas, plan, range(1, 2), stats)
    assert graphs.kinds == "F.F"
    assert (second.conditions.z == 0).all()
    assert second.stale is not None
    assert (second.stale.z == 1).all()
    # What is only compared costs rows, and is no step.
    assert stats.full_steps == {"target": 2}
    assert stats.local_steps == {}
    assert stats.backbone_rows["target"] > stats.backbone_rows_full["target"]
    assert stats.parts["refresh check"] > 0


@pytest.mark.parametrize("graph", ["backbone_full", "backbone_local"])
def test_what_is_not_finite_is_told_with_its_graph_and_step(graph):
    graphs, steps, canvas, plan, stats = make(FixedPeriod(99, 1))
    if graph == "backbone_local":
        steps.predict(canvas, plan, range(1), stats)
    graphs.value = np.nan
    with pytest.raises(NumericsError, match=rf"target\.{graph} returned .* at AR step 1: check"):
        steps.predict(canvas, plan, range(1, 2), stats)


def test_errors_are_root_mean_squares_of_each_image():
    stats = Stats(4)
    assert stats.errors == {}
    assert stats.largest_error is None
    squares = np.array([[[1.0, 9.0]], [[0.0, 0.0]]], dtype=np.float32)
    stats.note_displacement("target", np.array([7, 3]), squares)
    stats.note_displacement("target", np.array([7]), np.full((1, 1, 2), 1.0, dtype=np.float32))
    assert stats.errors == {"target": [0.0, np.sqrt(3.0)]}
    assert stats.largest_error == np.sqrt(3.0)
    assert stats.to_dict()["refresh_error"] == stats.errors
