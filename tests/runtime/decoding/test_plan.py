"""What every AR step does, and the index arithmetic of images in the making."""

from __future__ import annotations

import numpy as np
import pytest

from csd.runtime import GenerateOptions, SeededNoise
from csd.runtime.decoding.plan import Canvas, Plan
from csd.runtime.schedule import ARSchedule

from ...helpers import tiny_config
from . import toy

LENGTH, NUM_ITER = 16, 8


def plan(**changes):
    values = {"mode": "csd", "num_iter": NUM_ITER, "head_steps": 20, "gamma": 3, "prefill": 0.05}
    return Plan.of(toy.resolved(GenerateOptions(**{**values, **changes})), LENGTH)


def test_a_plan_says_sizes_guidance_and_head_steps_of_every_ar_step():
    schedule = ARSchedule(LENGTH, NUM_ITER)
    made = plan(cfg=3.0, cfg_schedule="linear", head_steps=(20, 6))
    assert (made.schedule, made.num_iter) == (schedule, NUM_ITER)
    np.testing.assert_allclose(made.guidance, schedule.guidance(3.0, "linear"))
    assert made.guidance.dtype == np.float32
    assert made.head_steps.tolist() == [20, 18, 16, 14, 12, 10, 8, 6]
    assert made.head_steps.dtype == np.int64
    assert plan(head_steps=7).head_steps.tolist() == [7] * NUM_ITER
    assert plan(cfg=3.0, cfg_schedule="constant").guidance.tolist() == [3.0] * NUM_ITER


@pytest.mark.parametrize(
    ("prefill", "gamma", "starts", "last"),
    [(0.0, 3, [0, 3, 6], 2), (0.05, 3, [1, 4, 7], 1), (0.25, 2, [2, 4, 6], 2), (1.0, 3, [], 0),
     (0.0, 9, [0], 8)],
)  # fmt: skip
def test_blocks_follow_the_prefilled_steps_and_cover_the_rest(prefill, gamma, starts, last):
    made = plan(prefill=prefill, gamma=gamma)
    assert made.prefilled_steps == (starts[0] if starts else NUM_ITER)
    blocks = made.blocks()
    assert [block.start for block in blocks] == starts
    assert [len(block) for block in blocks[:-1]] == [gamma] * (len(starts) - 1 if starts else 0)
    assert not starts or len(blocks[-1]) == last
    assert [k for block in blocks for k in block] == list(range(made.prefilled_steps, NUM_ITER))


def test_values_of_ar_steps_are_spread_over_their_tokens():
    values = 10 * np.arange(NUM_ITER)
    sizes = ARSchedule(LENGTH, NUM_ITER).sizes
    spread = plan().per_token(values, range(2, 5))
    assert spread.tolist() == [value for k in (2, 3, 4) for value in [10 * k] * sizes[k]]


@pytest.fixture
def canvas():
    labels, images = np.array([4, 8, 2]), np.array([5, 6, 9])
    return Canvas.blank(tiny_config("target"), SeededNoise(3), labels, images)


def test_a_blank_canvas_has_the_orders_of_its_images(canvas):
    assert (canvas.tokens.shape, canvas.tokens.dtype) == ((3, LENGTH, 16), np.float32)
    assert (canvas.tokens == 0).all()
    np.testing.assert_array_equal(canvas.orders, SeededNoise(3).orders(np.array([5, 6, 9]), LENGTH))
    assert (canvas.labels.tolist(), canvas.images.tolist(), len(canvas)) == (
        [4, 8, 2], [5, 6, 9], 3,
    )  # fmt: skip


@pytest.mark.parametrize(("size", "sizes"), [(1, [1, 1, 1]), (2, [2, 1]), (3, [3]), (7, [3])])
def test_parts_of_a_canvas_are_written_to_as_itself(canvas, size, sizes):
    parts = canvas.split(size)
    assert [len(part) for part in parts] == sizes
    for number, part in enumerate(parts):
        part.tokens[:] = number + 1
    wanted = np.repeat(np.arange(len(sizes)) + 1, sizes)
    np.testing.assert_array_equal(canvas.tokens[:, 0, 0], wanted)
    for name in ("orders", "labels", "images"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(canvas, name))


def test_known_positions_are_those_of_the_steps_before(canvas):
    schedule = ARSchedule(LENGTH, NUM_ITER)
    for step in range(NUM_ITER):
        known, now = canvas.known(schedule, step), canvas.positions(schedule, range(step, step + 1))
        before = [canvas.positions(schedule, range(k, k + 1)) for k in range(step)]
        for row in range(3):
            earlier = [position for part in before for position in part[row].tolist()]
            assert sorted(known[row].tolist()) == sorted(earlier)
            assert not set(now[row].tolist()) & set(earlier)
    block = canvas.positions(schedule, range(2, 5))
    parts = [canvas.positions(schedule, range(k, k + 1)) for k in (2, 3, 4)]
    np.testing.assert_array_equal(block, np.concatenate(parts, axis=1))


def test_rows_are_image_after_image(canvas):
    positions = np.array([[1, 4], [0, 2], [7, 3]])
    images, flat = canvas.pairs(positions)
    assert images.tolist() == [5, 5, 6, 6, 9, 9]
    assert flat.tolist() == [1, 4, 0, 2, 7, 3]
    assert canvas.rows(np.array([8, 9])).tolist() == [8, 9, 8, 9, 8, 9]
    tokens = np.arange(6)[:, None] * np.ones(16, dtype=np.float32)
    canvas.put(positions, tokens)
    assert [canvas.tokens[k // 2, p, 0] for k, p in enumerate(flat.tolist())] == list(range(6))
