"""The host library against the reference."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csd.plugins import build, host, reference
from csd.plugins.reference import Density

from .test_reference import (
    SIGNIFICANCE,
    _p_value_of_chains,
    _speculative_chains,
    brute_force_residual,
    densities,
    density,
    p_value_of_equality,
    p_value_of_law,
    pair,
    tiled,
    values,
)

CHANNELS = (1, 2, 3, 16, 64)
KINDS = ("paper", "relaxed")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    try:
        return build.build_host(tmp_path_factory.mktemp("host") / build.HOST_LIBRARY)
    except build.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def library_under_test(request, monkeypatch):
    """Every test runs on a library that was compiled from the sources as they are."""
    if "refused" not in request.node.name:
        monkeypatch.setenv(host.ENVIRONMENT, str(request.getfixturevalue("built")))


def random_pair(rng, shape, distance=0.5):
    mean, log_std, sums = rng.standard_normal((3, *shape))
    p = Density(mean, np.exp(log_std), sums)
    move = distance * rng.standard_normal((3, *shape)) / np.sqrt(shape[-1])
    q = Density(mean + move[0] * p.std, p.std * np.exp(move[1]), sums + move[2])
    return p, q


def size_of_terms(x, p, q):
    """What the log ratio is a difference of: its rounding error is relative to this."""
    zp, zq = (x - p.mean) / p.std, (x - q.mean) / q.std
    logs = np.abs(np.log(p.std)) + np.abs(np.log(q.std))
    return np.sum(zp**2 + zq**2 + logs + np.abs(p.sum_log_std) + np.abs(q.sum_log_std), axis=-1)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 42.0])
def test_acceptance(channels, kind, temperature):
    rng = np.random.default_rng(channels)
    p, q = random_pair(rng, (500, channels))
    x, u = q.mean + q.std * rng.standard_normal((500, channels)), rng.random(500)
    options = {"kind": kind, "inner_temperature": temperature}
    accepted, ratio = host.accept(x, p, q, u, **options)
    expected, log_ratio = reference.accept(x, p, q, u, **options)
    largest = np.max(np.abs(ratio - log_ratio) / (1 + size_of_terms(x, p, q)))
    print(f"log ratio: largest error {largest:.1e} of its terms")
    assert largest < 1e-14
    np.testing.assert_array_equal(accepted, expected)
    assert 0 < accepted.mean() < 1


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(p=densities, q=densities, x=st.lists(values, min_size=3, max_size=3), u=st.floats(0, 1))
def test_extreme_densities(built, kind, p, q, x, u):
    p, q, x = p[None], q[None], np.array([x])
    for temperature in (1.0, 42.0):
        options = {"kind": kind, "inner_temperature": temperature}
        accepted, ratio = host.accept(x, p, q, [u], **options)
        expected, log_ratio = reference.accept(x, p, q, [u], **options)
        slack = 1e-13 * (1 + size_of_terms(x, p, q))
        assert abs(ratio - log_ratio) <= slack
        with np.errstate(divide="ignore"):
            if abs(np.log(u) - np.minimum(log_ratio, 0)) > slack:
                assert accepted == expected


def test_equal_densities_are_accepted_and_hopeless_ones_are_not():
    rng = np.random.default_rng(0)
    for scale in (1e-12, 1.0, 1e6):
        p, _ = random_pair(rng, (50, 16))
        p = Density(p.mean, scale * p.std, 2000 * p.sum_log_std)
        x, u = rng.standard_normal((50, 16)), np.full(50, np.nextafter(1.0, 0.0))
        accepted, ratio = host.accept(x, p, p, u)
        assert accepted.all()
        assert not ratio.any()
        far = Density(p.mean + 1e3 * scale, p.std, p.sum_log_std)
        accepted, _ = host.accept(p.mean, far, p, np.full(50, 1e-300))
        assert not accepted.any()


def test_a_ratio_that_is_not_a_number_is_never_accepted():
    p, q = density([[0.0, np.nan]], 1.0), density([[0.0, 0.0]], 1.0)
    accepted, ratio = host.accept([[0.0, 0.0]], p, q, [0.0])
    assert not accepted.any()
    assert np.isnan(ratio).all()


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distance", [0.0, 0.05, 3.0])
def test_resampling_gives_the_same_bits(channels, kind, distance):
    rng = np.random.default_rng(channels)
    p, q = random_pair(rng, (200, channels), distance)
    normals, uniforms = rng.standard_normal((6, 200, channels)), rng.random((6, 200))
    x, done = host.resample(p, q, normals, uniforms, kind=kind)
    expected, kept = reference.resample(p, q, normals, uniforms, kind=kind)
    np.testing.assert_array_equal(done, kept)
    np.testing.assert_array_equal(x, expected)
    assert done.any() == (distance > 0)


def states(rng):
    return rng.bit_generator.state["state"]


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distance", [1e-3, 0.5, 3.0])
def test_continuation_draws_the_same_numbers(channels, kind, distance):
    setup = np.random.default_rng(channels)
    one, other = (np.random.Generator(np.random.PCG64(5)) for _ in range(2))
    largest = 0.0
    for _ in range(40):
        p, q = random_pair(setup, (channels,), distance)
        x = host.continue_residual(p, q, one, kind=kind)
        expected = reference.continue_residual(p, q, other, kind=kind)
        assert states(one) == states(other)
        assert (x is None) == (expected is None)
        if x is not None:
            largest = max(largest, np.abs((x - expected) / p.std).max())
    print(f"residual: largest error {largest:.1e} standard deviations")
    assert largest < 1e-9


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(p=densities, q=densities, seed=st.integers(0, 99))
def test_extreme_residuals(built, kind, p, q, seed):
    one, other = np.random.default_rng(seed), np.random.default_rng(seed)
    x = host.continue_residual(p, q, one, kind=kind, max_tries=64)
    expected = reference.continue_residual(p, q, other, kind=kind, max_tries=64)
    assert (x is None) == (expected is None)
    if x is not None:
        # Radii and angles come from library functions that differ in their last digits.
        np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-6 * p.std.max())


def test_empty_residuals_and_spent_tries_give_none():
    p = density(np.zeros(4), np.ones(4))
    assert host.continue_residual(p, p, np.random.default_rng(0)) is None
    p, q = density([0.0], [1.0], [40.0]), density([1e-3], [1.0], [0.0])
    assert host.continue_residual(p, q, np.random.default_rng(0), max_tries=100) is None


@pytest.mark.parametrize("channels", [1, 2, 16])
@pytest.mark.parametrize("distance", [0.005, 1.0])
def test_the_continued_residual_equals_brute_force_rejection(channels, distance):
    rng = np.random.default_rng([channels, int(1000 * distance)])
    p, q = pair(channels, distance, rng)
    x = np.stack([host.continue_residual(p, q, rng) for _ in range(800)])
    assert p_value_of_equality(x, brute_force_residual(p, q, 2500, rng), p, q) > SIGNIFICANCE


@pytest.mark.parametrize("broken", [False, True], ids=["as it is", "no residual"])
@pytest.mark.parametrize("channels", [1, 16])
def test_accepted_and_resampled_draws_of_q_are_distributed_as_p(channels, broken):
    rng = np.random.default_rng([channels, 5])
    p, q = pair(channels, 1.0, rng)
    many_p, many_q = tiled(p, 6000), tiled(q, 6000)
    x = q.mean + q.std * rng.standard_normal((6000, channels))
    accepted, _ = host.accept(x, many_p, many_q, rng.random(6000))
    rows = np.flatnonzero(~accepted)
    normals = rng.standard_normal((4, len(rows), channels))
    uniforms = np.zeros((4, len(rows))) if broken else rng.random((4, len(rows)))
    x[rows], done = host.resample(many_p[rows], many_q[rows], normals, uniforms)
    if broken:  # every draw of p is kept
        x[rows] = p.mean + p.std * normals[0]
    else:
        for row in rows[~done]:
            x[row] = host.continue_residual(p, q, rng)
    assert (p_value_of_law(x, p, q, rng) > SIGNIFICANCE) != broken


def random_window(rng, shape, distance):
    p, q = random_pair(rng, shape, distance)
    proposed = q.mean + q.std * rng.standard_normal(shape)
    return proposed, p.mean, p.std, q.mean, q.std


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("window", [1, 8])
@pytest.mark.parametrize("distance", [0.0, 0.3, 5.0])
def test_windows(channels, window, distance):
    rng = np.random.default_rng([channels, window])
    arrays, u = random_window(rng, (60, window, channels), distance), rng.random((60, window))
    one, other = (np.random.Generator(np.random.PCG64(5)) for _ in range(2))
    count, emitted = host.verify_window(*arrays, u, one)
    expected, right = reference.verify_window(*arrays, u, other)
    np.testing.assert_array_equal(count, expected)
    np.testing.assert_allclose(emitted, right, rtol=1e-9, atol=1e-9)
    assert states(one) == states(other)
    assert (count == window).all() == (distance == 0)


def test_verified_windows_emit_chains_of_p(monkeypatch):
    monkeypatch.setattr(reference, "verify_window", host.verify_window)
    rng = np.random.default_rng(3)
    assert _p_value_of_chains(_speculative_chains(3000, 6, 3, rng)) > SIGNIFICANCE
    assert _p_value_of_chains(_speculative_chains(3000, 6, 3, rng, broken=True)) < SIGNIFICANCE


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", range(5))
def test_a_window_with_a_density_that_is_not_finite_is_refused_by_both(which, value):
    arrays = [a.copy() for a in random_window(np.random.default_rng(0), (3, 2, 4), 0.1)]
    arrays[which][1, 0, 2] = value
    for module in (host, reference):
        with pytest.raises(ArithmeticError, match="not finite"), np.errstate(all="ignore"):
            module.verify_window(*arrays, np.ones((3, 2)), np.random.default_rng(0))


@pytest.mark.parametrize("channels", CHANNELS)
def test_transitions_give_the_same_bits_as_float32_in_numpy(channels):
    rng = np.random.default_rng(channels)
    x, eps, v = rng.standard_normal((3, 90, channels)).astype(np.float32)
    tables = list(rng.uniform(0.1, 300, (6, 11)).astype(np.float32))
    step = rng.integers(0, 11, 90)
    mean, log_std, x0hat = host.transition(x, eps, v, step, tables)
    recip, recipm1, coef_x0, coef_x, base, slope = (table[step, None] for table in tables)
    np.testing.assert_array_equal(x0hat, recip * x - recipm1 * eps)
    np.testing.assert_array_equal(mean, coef_x0 * x0hat + coef_x * x)
    np.testing.assert_array_equal(log_std, base + slope * v)
    expected = reference.transition(
        x, eps, v, recip=recip, recipm1=recipm1, coef_x0=coef_x0, coef_x=coef_x,
        log_beta=2.0 * (base + slope), log_posterior=2.0 * (base - slope),
    )  # fmt: skip
    for one, other in zip((mean, log_std, x0hat), expected, strict=True):
        assert np.abs(one - other).max() <= 1e-6 * np.abs(other).max()


@pytest.mark.parametrize("step", [-1, 11])
def test_a_head_step_that_is_not_in_the_tables_is_a_mistake(step):
    row, tables = np.zeros((1, 2)), [np.ones(11, np.float32)] * 6
    with pytest.raises(ValueError, match=r"0\.\.10"):
        host.transition(row, row, row, [step], tables)


def test_empty_batches_come_back_empty():
    none = Density(*np.empty((3, 0, 4)))
    rng = np.random.default_rng(0)
    accepted, ratio = host.accept(np.empty((0, 4)), none, none, [])
    assert (accepted.shape, ratio.shape) == ((0,), (0,))
    x, done = host.resample(none, none, np.empty((3, 0, 4)), np.empty((3, 0)))
    assert (x.shape, done.shape) == ((0, 4), (0,))
    arrays = [np.empty((0, 5, 4))] * 5
    count, emitted = host.verify_window(*arrays, np.empty((0, 5)), rng)
    assert (count.shape, emitted.shape) == ((0,), (0, 5, 4))
    moved = host.transition(*[np.empty((0, 4))] * 3, [], [np.ones(2, np.float32)] * 6)
    assert [a.shape for a in moved] == [(0, 4)] * 3


def test_a_library_that_is_missing_is_refused_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv(host.ENVIRONMENT, str(tmp_path / "none.so"))
    with pytest.raises(host.HostLibraryError, match=r"none\.so.*--host-only") as refused:
        host.library()
    assert host.ENVIRONMENT in str(refused.value)


def test_a_library_of_another_version_is_refused(monkeypatch, tmp_path):
    source, path = tmp_path / "old.cpp", tmp_path / "old.so"
    source.write_text('extern "C" long long csd_abi_version() { return 99; }\n')
    try:
        compiler = build.host_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    subprocess.run([*compiler, "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    monkeypatch.setenv(host.ENVIRONMENT, str(path))
    with pytest.raises(host.HostLibraryError, match=r"interface 99, this csd needs.*build"):
        host.library()


def test_a_file_that_is_no_library_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "text.so"
    path.write_text("not a library\n")
    monkeypatch.setenv(host.ENVIRONMENT, str(path))
    with pytest.raises(host.HostLibraryError, match="cannot load"):
        host.library()


def test_operators_are_refused_where_the_library_is_switched_off(monkeypatch):
    monkeypatch.setenv(host.ENVIRONMENT, "off")
    assert host.library() is None
    with pytest.raises(host.HostLibraryError, match="not built"):
        host.continue_residual(*[density([0.0], [1.0])] * 2, np.random.default_rng(0))


@pytest.mark.parametrize("value", ["0", "off", "OFF", "no", "false", " off "])
def test_the_library_can_be_switched_off(value, monkeypatch):
    monkeypatch.setenv(host.ENVIRONMENT, value)
    assert host.find_library() is None


@pytest.mark.parametrize("value", ["1", "on", "yes", "true"])
def test_the_built_library_can_be_insisted_on(value, monkeypatch):
    monkeypatch.setenv(host.ENVIRONMENT, value)
    monkeypatch.setattr(host, "_built_library", lambda: Path("/built/_host.so"))
    assert host.find_library() == Path("/built/_host.so")
    monkeypatch.setattr(host, "_built_library", lambda: None)
    with pytest.raises(host.HostLibraryError, match=f"{value} and .* not built: run python -m csd"):
        host.library()
    monkeypatch.delenv(host.ENVIRONMENT)
    assert host.find_library() is None


def test_a_library_is_named_by_its_path_from_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(host.ENVIRONMENT, "on.so")
    assert host.find_library() == tmp_path / "on.so"
