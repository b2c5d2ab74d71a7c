from __future__ import annotations

import numpy as np
import pytest

from csd.tools.eval.judge import METRICS, Sample, TooFewError, judge, needed_images
from csd.tools.eval.metrics import classes, distances, neighbours, paired
from csd.tools.eval.metrics.features import Outputs
from csd.tools.eval.metrics.halves import Estimate, halves
from csd.tools.eval.metrics.two_sample import energy_test, holm

from ...helpers import DATA


@pytest.fixture(scope="module")
def known():
    with np.load(DATA / "metrics.npz") as arrays:
        return dict(arrays)


def close(found, wanted, what):
    error = float(np.abs(np.asarray(found) - wanted).max())
    print(f"{what}: largest error {error:.1e}")
    assert error <= 1e-6


def test_distances_are_those_of_torchmetrics(known):
    x, y = known["x"], known["y"]
    masks = halves(None, len(x), 0, 10)
    own, reference = distances.within(x, masks), distances.within(y, masks)
    both = distances.across(x, y, masks, masks)
    close(distances.kernel_distance(own, reference, both).value, known["kernel"], "kernel")
    frechet = distances.frechet_distance(x, y, masks, masks)
    close(frechet.value, known["frechet"], "Frechet")
    score = classes.inception_score(known["logits"], masks)
    close(score.value, known["inception"], "Inception score")


def test_neighbours_are_those_of_prdc(known):
    x, y = known["x"], known["y"]
    masks = halves(None, len(x), 0, 4)
    found = neighbours.neighbours(x, y, masks, masks)
    for name in ("precision", "recall", "density", "coverage"):
        close(getattr(found, name).value, known[name], name)


def test_pairs_are_compared_as_torchmetrics_does(known):
    close(paired.psnr(known["a"], known["b"]), known["psnr"], "PSNR")
    close(paired.ssim(known["a"], known["b"]), known["ssim"], "SSIM")
    same = known["a"]
    assert np.isinf(paired.psnr(same, same)).all()
    close(paired.ssim(same, same), 1, "SSIM of itself")
    close(paired.ssim(same[:, :3, :4], same[:, :3, :4]), 1, "SSIM of a small image")


@pytest.mark.parametrize("rows", [7, 512])
def test_halves_are_what_the_halves_alone_give(known, rows, monkeypatch):
    monkeypatch.setattr(distances, "ROWS", rows)
    x, y = known["x"], known["y"][:60]
    masks_x, masks_y = halves(None, len(x), 0, 6), halves(None, len(y), 1, 6)

    def kernel(x, y, masks_x, masks_y):
        own, reference = distances.within(x, masks_x), distances.within(y, masks_y)
        both = distances.across(x, y, masks_x, masks_y)
        return distances.kernel_distance(own, reference, both)

    whole = kernel(x, y, masks_x, masks_y)
    for k in range(6):
        half_x, half_y = x[masks_x[k]], y[masks_y[k]]
        ones = np.ones((2, len(half_x)), bool), np.ones((2, len(half_y)), bool)
        assert kernel(half_x, half_y, *ones).value == pytest.approx(whole.replicates[k], abs=1e-9)


def test_halves_are_balanced_and_come_in_pairs():
    labels = np.arange(50) % 10
    masks = halves(labels, 50, 3, 20)
    assert (masks[::2] ^ masks[1::2]).all()
    counts = np.array([np.bincount(labels[mask], minlength=10) for mask in masks])
    assert set(np.unique(counts)) <= {2, 3}
    np.testing.assert_array_equal(masks, halves(labels, 50, 3, 20))
    assert (masks != halves(labels, 50, 4, 20)).any()
    assert len(np.unique(masks[::2], axis=0)) == 10


def sample_of(rng, count, shift=0.0, seed=0, width=4):
    """Features of a law whose first coordinate is shifted, and logits that are right 8 in 10."""
    labels = np.arange(count) % 10
    features = np.maximum(rng.normal(size=(count, width)), -0.5)
    features[:, 0] += shift
    logits = rng.normal(0, 0.1, size=(count, 10))
    logits[np.arange(count), np.where(rng.random(count) < 0.8, labels, (labels + 1) % 10)] += 2
    return Sample.of(Outputs(features.astype(np.float32), logits.astype(np.float32)), labels, seed)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_error_is_how_fresh_sets_differ(shift):
    """Over 40 pairs of fresh sets: the mean of the errors and the values' own spread."""
    rng = np.random.default_rng(5)
    values, errors = {}, {}
    for _ in range(40):
        figures = judge(sample_of(rng, 120, shift), sample_of(rng, 150, seed=1))
        for name, estimate in figures.values.items():
            values.setdefault(name, []).append(estimate.value)
            errors.setdefault(name, []).append(estimate.error)
    assert set(values) == set(METRICS)
    for name, found in values.items():
        # A chi distribution of 39 degrees of freedom is within 35 % (three standard errors); where
        # sets are equal the kernel distance's own law is no normal one, and halves are wider.
        ratio = np.mean(errors[name]) / np.std(found, ddof=1)
        print(f"{name} at {shift}: error {ratio:.2f} of the spread")
        assert 0.65 < ratio < (2.2 if shift == 0 else 1.6), name


def kernel_of(x, y):
    masks = [halves(None, len(v), 0, 2) for v in (x, y)]
    own, reference = distances.within(x, masks[0]), distances.within(y, masks[1])
    both = distances.across(x, y, *masks)
    value = distances.kernel_distance(own, reference, both).value
    return value / distances.kernel_scale(y, reference)


def test_the_kernel_distance_is_unbiased_and_has_its_scale():
    rng = np.random.default_rng(1)
    reference = sample_of(rng, 150, seed=9).features
    found = [kernel_of(sample_of(rng, 60).features, reference) for _ in range(40)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(40) + 0.002
    # One image again and again.
    again = [kernel_of(np.repeat(row[None], 60, axis=0), reference) for row in reference]
    assert np.mean(again) == pytest.approx(1, abs=0.03)


def test_a_worse_set_is_further_away_in_every_figure():
    rng = np.random.default_rng(2)
    reference = sample_of(rng, 300, seed=9)
    good, bad = judge(sample_of(rng, 300), reference), judge(sample_of(rng, 300, 3.0), reference)
    for name in ("kernel", "frechet", "precision", "density", "coverage"):
        low, high = (bad.values[name].minus(good.values[name])).interval()
        assert (low > 0) if METRICS[name].lower else (high < 0), name


def test_paired_differences_are_sharper_than_unpaired_ones():
    rng = np.random.default_rng(3)
    reference, first = sample_of(rng, 200, seed=9), sample_of(rng, 200)
    features = (first.features + rng.normal(0, 0.02, first.features.shape)).astype(np.float32)

    def error(seed):
        second = Sample.of(Outputs(features, first.logits.astype(np.float32)), first.labels, seed)
        figures = judge(second, reference), judge(first, reference)
        return figures[0].values["kernel"].minus(figures[1].values["kernel"]).error

    assert 4 * error(0) < error(1)


@pytest.mark.parametrize(
    ("count", "lacking"),
    [(6, set(METRICS)), (8, set(METRICS) - {"kernel", "accuracy"}),
     (20, {"precision", "recall", "density", "coverage"}), (24, set())],
)  # fmt: skip
def test_too_few_images_are_told_with_how_many_it_takes(count, lacking):
    rng = np.random.default_rng(0)
    figures = judge(sample_of(rng, count), sample_of(rng, 60, seed=1))
    assert set(figures.lacking) == lacking
    for name in lacking:
        message = f"needs {needed_images(name, 4, 10)} images, there are {count}"
        with pytest.raises(TooFewError, match=message):
            figures.need(name)


def test_without_real_images_or_a_classifier_figures_say_what_they_lack():
    rng = np.random.default_rng(0)
    assert set(judge(sample_of(rng, 60), None).values) == {"accuracy", "inception"}
    sample = sample_of(rng, 60)
    blind = Sample(sample.features, np.empty((60, 0)), sample.labels, sample.masks)
    figures = judge(blind, sample_of(rng, 60, seed=1))
    assert "has no logits" in figures.lacking["accuracy"]
    assert "give --real" in judge(blind, None).lacking["kernel"]


def test_the_permutation_test_has_its_level_and_finds_a_shift():
    rng = np.random.default_rng(4)
    for pairs in (False, True):
        equal, shifted = [], []
        for _ in range(60):
            a, b = rng.normal(size=(2, 60, 3))
            b = a + rng.normal(0, 0.1, a.shape) if pairs else b
            equal.append(energy_test(a, b, rng, paired=pairs, most=200))
            shifted.append(energy_test(a, b + (0.2 if pairs else 0.8), rng, paired=pairs, most=200))
        # Of 60, at the level 0.1: 6 are expected, 14 or more are seen once in 600.
        assert np.sum(np.array(equal) <= 0.1) < 14, pairs
        assert np.mean(np.array(shifted) <= 0.05) > 0.9, pairs
    a = rng.normal(size=(30, 2))
    assert energy_test(a, a.copy(), rng, paired=True, most=200) > 0.9


def test_holm_is_the_published_procedure():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9]) == [0.9]
    assert holm([]) == []


def test_an_interval_lies_around_the_value_of_the_whole_set():
    estimate = Estimate(10.0, np.arange(5.0, 10.0))
    assert estimate.interval(0.5) == (9.0, 11.0)
    assert estimate.over(2).interval(0.5) == (4.5, 5.5)
    assert estimate.minus(estimate).error == 0
