from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from csd.runtime import FixedNoise, OptionError, SeededNoise
from csd.runtime.noise import MAX_SEED, Purpose

IMAGES, POSITIONS = np.array([0, 0, 1, 5]), np.array([0, 3, 3, 2])
SIGNIFICANCE = 1e-3


def test_noise_is_a_function_of_image_and_position_whatever_the_order_of_work():
    noise, order = SeededNoise(7), np.array([2, 0, 3, 1])
    for draw in (
        lambda i, p: noise.initial(i, p, 4),
        lambda i, p: noise.per_step(i, p, 3, 4),
        noise.accept,
    ):
        together = draw(IMAGES, POSITIONS)
        np.testing.assert_array_equal(draw(IMAGES[order], POSITIONS[order]), together[order])
        alone = [draw(IMAGES[k : k + 1], POSITIONS[k : k + 1]) for k in range(4)]
        np.testing.assert_array_equal(np.concatenate(alone), together)
    orders = noise.orders(np.array([4, 0]), 9)
    np.testing.assert_array_equal(noise.orders(np.array([0]), 9)[0], orders[1])


def test_every_image_token_purpose_and_seed_has_its_own_numbers():
    drawn = [
        SeededNoise(seed).stream(purpose, image, position).random()
        for seed in (0, 1, MAX_SEED)
        for purpose in Purpose
        for image in range(3)
        for position in range(3)
    ]
    assert len(set(drawn)) == len(drawn)
    again = SeededNoise(0).stream(Purpose.ORDER, 0, 0).random()
    assert again == drawn[0]


def test_fewer_head_steps_are_the_first_entries_of_more():
    noise = SeededNoise(3)
    longer = noise.per_step(IMAGES, POSITIONS, 10, 4)
    np.testing.assert_array_equal(noise.per_step(IMAGES, POSITIONS, 4, 4), longer[:, :4])


def test_streams_do_not_overlap():
    rows = [SeededNoise(0).stream(Purpose.PER_STEP, 0, p).random(500) for p in range(20)]
    values = np.concatenate(rows)
    assert len(np.unique(values)) == len(values)


def test_normals_are_standard_and_neighbours_are_independent():
    images, positions = np.repeat(np.arange(20), 50), np.tile(np.arange(50), 20)
    normals = SeededNoise(11).per_step(images, positions, 4, 5).reshape(1000, 20)
    assert stats.kstest(normals.reshape(-1), "norm").pvalue > SIGNIFICANCE
    assert stats.pearsonr(normals[1:].reshape(-1), normals[:-1].reshape(-1)).pvalue > SIGNIFICANCE
    initial = SeededNoise(11).initial(images, positions, 20)
    assert stats.pearsonr(initial.reshape(-1), normals.reshape(-1)).pvalue > SIGNIFICANCE
    uniforms = SeededNoise(11).accept(images, positions)
    assert stats.kstest(uniforms, "uniform").pvalue > SIGNIFICANCE


def test_orders_are_uniform_permutations():
    orders = SeededNoise(2).orders(np.arange(3000), 5)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(5), (3000, 1)))
    for column in orders.T:
        assert stats.chisquare(np.bincount(column, minlength=5)).pvalue > SIGNIFICANCE


def test_the_numbers_of_a_seed_never_change():
    noise = SeededNoise(12345)
    assert noise.orders(np.array([2]), 6).tolist() == [[0, 3, 2, 1, 4, 5]]
    normals = noise.initial(np.array([1]), np.array([2]), 2)
    np.testing.assert_allclose(normals, [[-0.0219244, -0.4587356]], rtol=1e-5)
    assert noise.accept(np.array([1]), np.array([2])).tolist() == pytest.approx([0.601948057614])
    per_step = noise.per_step(np.array([1]), np.array([2]), 2, 2)
    wanted = [[[-0.7176672, -1.0111395], [1.3696678, 0.9921118]]]
    np.testing.assert_allclose(per_step, wanted, rtol=1e-5)
    first = {purpose: noise.stream(purpose, 1, 2).random() for purpose in Purpose}
    assert first == pytest.approx(
        {
            Purpose.ORDER: 0.609227321787, Purpose.INITIAL: 0.394867854427,
            Purpose.PER_STEP: 0.349377153122, Purpose.ACCEPT: 0.601948057614,
            Purpose.RESIDUAL: 0.149423006740, Purpose.HEAD: 0.505176005094,
        }
    )  # fmt: skip


def test_every_purpose_has_a_number_of_its_own():
    assert len(Purpose) == len(Purpose.__members__) == 6  # two of one number would be one purpose


def test_seeds_go_from_0_which_is_the_default_to_what_64_bits_hold():
    assert SeededNoise() == SeededNoise(0)
    last = SeededNoise(2**64 - 1).accept(np.array([3]), np.array([4]))
    assert last.tolist() == pytest.approx([0.311663153642])


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(OptionError, match=r"seed is .*: give a whole number from 0"):
        SeededNoise(seed)


def _fixed(images=2, length=4, steps=3, channels=5):
    rng = np.random.default_rng(0)
    orders = np.stack([rng.permutation(length) for _ in range(images)])
    shape = (images, length)
    return orders, rng.normal(size=(*shape, channels)), rng.normal(size=(*shape, steps, channels))


def test_fixed_noise_gives_back_what_it_was_given():
    orders, initial, per_step = _fixed()
    noise = FixedNoise(orders, initial, per_step)
    images, positions = np.array([1, 0]), np.array([2, 3])
    np.testing.assert_array_equal(noise.orders(np.array([1]), 4), orders[1:])
    np.testing.assert_array_equal(
        noise.initial(images, positions, 5), initial[images, positions].astype(np.float32)
    )
    np.testing.assert_array_equal(
        noise.per_step(images, positions, 2, 5),
        per_step[images, positions, :2].astype(np.float32),
    )
    seeded = SeededNoise(0)
    np.testing.assert_array_equal(noise.accept(images, positions), seeded.accept(images, positions))
    streams = [source.stream(Purpose.RESIDUAL, 1, 2) for source in (noise, seeded)]
    assert streams[0].random() == streams[1].random()


def test_fixed_noise_may_come_in_any_number_type():
    orders, initial, per_step = _fixed()
    noise = FixedNoise(orders.astype(np.int32), initial.astype(np.float16), per_step)
    one = np.array([0])
    assert noise.orders(one, 4).dtype == np.int64
    assert noise.initial(one, one, 5).dtype == np.float32
    assert noise.per_step(one, one, 3, 5).dtype == np.float32


def _shape_of(position, change):
    arrays = list(_fixed())
    arrays[position] = change(arrays[position])
    return arrays


@pytest.mark.parametrize(
    "arrays",
    [
        _shape_of(0, lambda a: a[:1]),
        _shape_of(0, lambda a: a[0]),
        _shape_of(1, lambda a: a[:, :3]),
        _shape_of(1, lambda a: a[..., :4]),
        _shape_of(1, lambda a: a[..., None]),
        _shape_of(2, lambda a: a[:, :, 0]),
        _shape_of(2, lambda a: a[:1]),
    ],
)
def test_fixed_noise_whose_shapes_do_not_fit_is_refused(arrays):
    with pytest.raises(OptionError, match=r"fixed noise has shapes .*: give \[B, L\]"):
        FixedNoise(*arrays)


@pytest.mark.parametrize("row", [[0, 1, 2, 2], [1, 2, 3, 4], [-1, 0, 1, 2]])
def test_fixed_orders_that_are_no_permutations_are_refused(row):
    _, *normals = _fixed(images=1)
    with pytest.raises(OptionError, match="not permutations"):
        FixedNoise(np.array([row]), *normals)


def test_fixed_noise_for_other_images_tokens_steps_or_channels_is_refused():
    noise = FixedNoise(*_fixed())
    one = np.array([0])
    with pytest.raises(OptionError, match="for 2 images of 4 tokens: give it for 3 images of 4"):
        noise.orders(np.array([2]), 4)
    with pytest.raises(OptionError, match="give it for 1 images of 9"):
        noise.orders(one, 9)
    with pytest.raises(OptionError, match="3 head steps, the run has 4"):
        noise.per_step(one, one, 4, 5)
    for draw in (lambda: noise.initial(one, one, 6), lambda: noise.per_step(one, one, 3, 6)):
        with pytest.raises(OptionError, match="5 channels, the model has 6"):
            draw()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize(("place", "name"), [(1, "initial"), (2, "per-step")])
def test_fixed_noise_that_is_not_finite_in_float32_is_refused_by_name(place, name, value):
    arrays = list(_fixed())
    arrays[place].flat[-1] = value
    with pytest.raises(OptionError, match=f"{name} has values that are not finite: give numbers"):
        FixedNoise(*arrays)


@pytest.mark.parametrize("name", ["orders", "initial", "per-step"])
def test_fixed_noise_that_is_no_numbers_is_named(name):
    arrays = {
        "orders": np.arange(4)[None], "initial": np.zeros((1, 4, 2)),
        "per-step": np.zeros((1, 4, 3, 2)),
    }  # fmt: skip
    arrays[name] = arrays[name].astype(str)
    with pytest.raises(OptionError, match=rf"^{name} is an array of <U\d+: give one of"):
        FixedNoise(*arrays.values())


def test_a_seed_is_a_whole_number_of_any_type_and_kept_as_python_s():
    for seed in (5, np.int32(5), np.uint64(5)):
        assert SeededNoise(seed) == SeededNoise(5)
        assert type(SeededNoise(seed).seed) is int
    with pytest.raises(OptionError, match=r"^seed is 1.5 \(float\): give a whole number"):
        SeededNoise(1.5)
