"""The CUDA kernels' own source on a CPU, through the emulator beside this file, and on a device.

What the emulator cannot show is what a compiler for the device makes of it; what it does show is
the arithmetic in float32, every index, the conversions, and that no lane waits for another in vain.
"""

from __future__ import annotations

import numpy as np
import pytest

from csd.plugins import launch, reference
from csd.plugins.reference import Density

from .emulation import EmulatedKernels, compile_emulated, plant
from .on_device import DeviceKernels
from .test_reference import SIGNIFICANCE, p_value_of_law, pair, tiled

DTYPES = ("float32", "float16", "bfloat16")
CHANNELS = (1, 3, 16, 33, 64)
# Half a unit in the last place of what is stored.
ROUNDING = {"float32": 2e-7, "float16": 6e-4, "bfloat16": 5e-3}


@pytest.fixture(scope="module", params=["emulated", pytest.param("device", marks=pytest.mark.gpu)])
def libraries(request, tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("kernels"), {}
    if request.param == "device":
        kernels = DeviceKernels(folder)
        return lambda dtype: kernels

    def library(dtype: str) -> EmulatedKernels:
        half = dtype != "float32"
        if half not in found:
            found[half] = EmulatedKernels(compile_emulated(folder / f"half{half}.so", half=half))
        return found[half]

    return library


class Bfloat16:
    """Arrays of bfloat16, which NumPy lacks, as the upper halves of float32."""

    @staticmethod
    def store(array):
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)

    @staticmethod
    def load(array):
        return (array.astype(np.uint32) << 16).view(np.float32)


def store(array, dtype):
    """An array of the element type, as its bytes lie in memory."""
    return Bfloat16.store(array) if dtype == "bfloat16" else np.asarray(array).astype(dtype)


def load(array, dtype):
    return (Bfloat16.load(array) if dtype == "bfloat16" else array).astype(np.float64)


def rounded(array, dtype):
    return load(store(array, dtype), dtype)


class Memory:
    """Arrays that a call points to, kept alive, where the kernels can reach them."""

    def __init__(self, kernels) -> None:
        self.kernels, self.arrays = kernels, []

    def put(self, array, dtype="float32") -> int:
        return self._keep(store(array, dtype))

    def integers(self, array) -> int:
        return self._keep(np.asarray(array, np.int32))

    def out(self, shape, dtype) -> tuple[np.ndarray, int]:
        # Filled with what no operator returns, so that an element left out is seen.
        address = self._keep(np.full(shape, 77, np.uint16 if dtype == "bfloat16" else dtype))
        return self.arrays[-1], address

    def _keep(self, array) -> int:
        self.arrays.append(self.kernels.array(array.shape, array.dtype))
        self.arrays[-1][...] = array
        return self.arrays[-1].ctypes.data

    def density(self, density, dtype) -> launch.DensityBuffers:
        parts = (density.mean, density.std, density.sum_log_std)
        return launch.DensityBuffers(*(self.put(part, dtype) for part in parts))


def rounded_density(density, dtype):
    return Density(*(rounded(a, dtype) for a in (density.mean, density.std, density.sum_log_std)))


def random_density(rng, shape):
    mean, log_std, sums = 0.5 * rng.standard_normal((3, *shape))
    return Density(mean, np.exp(log_std), 10 * sums)


def single(array):
    return np.asarray(array, np.float32)


def accept(library, x, p, q, u, dtype, *, blocks=None, **options):
    memory, (batch, tokens, channels) = Memory(library), np.shape(x)
    accepted, ratio, prefix, error = outputs = [
        memory.out(shape, kind)
        for shape, kind in (
            ((batch, tokens), "bool"), ((batch, tokens), "float32"),
            ((batch,), "int32"), ((batch,), "int32"),
        )
    ]  # fmt: skip
    call = launch.accept(
        memory.put(x, dtype), memory.density(p, dtype), memory.density(q, dtype), memory.put(u),
        launch.AcceptOutputs(*(pointer for _, pointer in outputs)), batch=batch, tokens=tokens,
        channels=channels, dtype=dtype, **options,
    )  # fmt: skip
    assert library.run(call, blocks) == 0
    return accepted[0], ratio[0], prefix[0], error[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", ["paper", "relaxed"])
def test_acceptance(libraries, dtype, channels, kind):
    rng = np.random.default_rng(channels)
    shape = (3, 37, channels)
    p = random_density(rng, shape)
    q = Density(
        p.mean + 0.1 * rng.standard_normal(shape), p.std, p.sum_log_std + rng.normal(0, 0.05, shape)
    )
    p, q = rounded_density(p, dtype), rounded_density(q, dtype)
    x, u = rounded(rng.standard_normal(shape), dtype), single(rng.random(shape[:2]))
    accepted, ratio, prefix, error = accept(
        libraries(dtype), x, p, q, u, dtype, kind=kind, inner_temperature=1.5
    )
    expected, log_ratio = reference.accept(x, p, q, u, kind=kind, inner_temperature=1.5)
    largest = np.abs(ratio - log_ratio).max()
    print(f"log ratio: largest error {largest:.1e} of {np.abs(log_ratio).max():.3g}")
    assert largest <= 1e-5 * max(1.0, np.abs(log_ratio).max())
    clear = np.abs(np.log(u) - np.minimum(log_ratio, 0)) > 1e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(accepted[clear], expected[clear])
    assert 0 < accepted.mean() < 1
    np.testing.assert_array_equal(prefix, reference.accepted_prefix(accepted))
    assert not error.any()


def test_equal_densities_are_all_accepted_and_far_ones_are_not(libraries):
    rng = np.random.default_rng(0)
    shape = (2, 9, 16)
    p, x = random_density(rng, shape), rng.standard_normal(shape)
    u = np.full(shape[:2], np.nextafter(np.float32(1), np.float32(0)))
    accepted, ratio, prefix, error = accept(libraries("float32"), x, p, p, u, "float32")
    assert accepted.all()
    assert not ratio.any()
    assert prefix.tolist() == [9, 9]
    far = Density(p.mean + 1e6, p.std, p.sum_log_std)
    accepted, ratio, prefix, error = accept(libraries("float32"), x, far, p, u, "float32")
    assert not accepted.any()
    assert prefix.tolist() == [0, 0]
    assert not error.any()


@pytest.mark.parametrize("field", ["x", "mean", "std", "sum_log_std", "u"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_an_error_of_its_row_alone(libraries, field, value):
    rng = np.random.default_rng(0)
    shape = (3, 4, 5)
    p, q = random_density(rng, shape), random_density(rng, shape)
    x, u = rng.standard_normal(shape), rng.random(shape[:2])
    {"x": x, "u": u}.get(field, getattr(p, field, None))[1, 2] = value
    accepted, _, _, error = accept(libraries("float32"), x, p, q, u, "float32")
    assert error.tolist() == [0, 1, 0]
    if np.isnan(value):
        assert not accepted[1, 2]


def resample(library, p, q, normals, uniforms, dtype, *, blocks=None, **options):
    memory, (tries, tokens, channels) = Memory(library), np.shape(normals)
    x, done, error = outputs = [
        memory.out(shape, kind)
        for shape, kind in (((tokens, channels), dtype), ((tokens,), "bool"), ((tokens,), "int32"))
    ]
    call = launch.resample(
        memory.density(p, dtype), memory.density(q, dtype), memory.put(normals),
        memory.put(uniforms), launch.ResampleOutputs(*(pointer for _, pointer in outputs)),
        tries=tries, tokens=tokens, channels=channels, dtype=dtype, **options,
    )  # fmt: skip
    assert library.run(call, blocks) == 0
    return load(x[0], dtype), done[0], error[0]


def _clear(p, q, normals, uniforms, kind):
    """Tokens none of whose verdicts hangs on the last digits."""
    keep = reference.residual_keep(p.mean + p.std * normals, p, q, kind=kind)
    return (np.abs(keep - uniforms) > 1e-4).all(axis=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", ["paper", "relaxed"])
def test_resampling(libraries, dtype, channels, kind):
    rng = np.random.default_rng(channels)
    shape = (50, channels)
    p = random_density(rng, shape)
    q = Density(p.mean + 0.2 * rng.standard_normal(shape), p.std, p.sum_log_std + 0.1 / channels)
    p, q = rounded_density(p, dtype), rounded_density(q, dtype)
    normals, uniforms = single(rng.standard_normal((5, *shape))), single(rng.random((5, 50)))
    x, done, error = resample(libraries(dtype), p, q, normals, uniforms, dtype, kind=kind)
    expected, kept = reference.resample(p, q, normals, uniforms, kind=kind)
    clear = _clear(p, q, normals, uniforms, kind)
    assert clear.mean() > 0.9
    assert done.mean() > 0
    np.testing.assert_array_equal(done[clear], kept[clear])
    error_of_x = np.abs(x - expected)[clear].max() / np.abs(expected).max()
    print(f"x: largest error {error_of_x:.1e}")
    assert error_of_x <= ROUNDING[dtype]
    assert not error.any()


def test_a_pool_that_ends_and_one_that_is_empty_are_not_done(libraries):
    rng = np.random.default_rng(0)
    p = random_density(rng, (4, 3))
    p.mean[2] = np.nan
    normals, uniforms = rng.standard_normal((2, 4, 3)), np.full((2, 4), 0.99999)
    x, done, error = resample(libraries("float32"), p, p, normals, uniforms, "float32")
    assert not done.any()
    assert error.tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(x[0], p.mean[0] + p.std[0] * normals[0, 0], rtol=1e-5)
    x, done, _ = resample(libraries("float32"), p, p, normals[:0], uniforms[:0], "float32")
    assert not done.any()
    assert np.isnan(x).all()


def verify(library, window, uniforms, index, normals, pool, dtype, *, blocks=None):
    memory, (tokens, length, channels) = Memory(library), np.shape(window[0])
    accepted, next_index, state, status = outputs = [
        memory.out((tokens,), "int32"), memory.out((tokens,), "int32"),
        memory.out((tokens, channels), dtype), memory.out((tokens,), "int32"),
    ]  # fmt: skip
    call = launch.verify_window(
        launch.WindowBuffers(
            *(memory.put(a, dtype) for a in window), memory.put(uniforms), memory.integers(index),
            memory.put(normals), memory.put(pool),
        ),
        launch.WindowOutputs(*(pointer for _, pointer in outputs)),
        tokens=tokens, window=length, channels=channels, tries=len(normals), dtype=dtype,
    )  # fmt: skip
    assert library.run(call, blocks) == 0
    return accepted[0], next_index[0], load(state[0], dtype), status[0]


def expected_walk(window, uniforms, index, normals, pool):
    """The walk of one token after another, with the reference's functions."""
    proposed, mean_p, std_p, mean_q, std_q = window
    zero = np.zeros_like(mean_p)
    p, q = Density(mean_p, std_p, zero), Density(mean_q, std_q, zero)
    results = []
    for n, first in enumerate(index):
        accepted, state, status = 0, None, 0
        following, clear = first, True
        for j in range(proposed.shape[1]):
            i = first - j
            if i == 0:
                accepted, following, state = accepted + 1, -1, mean_p[n, j]
                break
            one = (slice(n, n + 1), j)
            ratio = reference.log_density_ratio(proposed[one], p[one], q[one])[0]
            clear &= abs(np.log(uniforms[n, j]) - ratio) > 1e-3
            following = i - 1
            if not np.log(uniforms[n, j]) < ratio:
                rows = slice(n, n + 1)
                clear &= _clear(p[one], q[one], normals[:, rows], pool[:, rows], "paper")[0]
                x, done = reference.resample(p[one], q[one], normals[:, rows], pool[:, rows])
                state, status = (x[0], 0) if done[0] else (np.full_like(x[0], np.nan), 1)
                break
            accepted, state = accepted + 1, proposed[n, j]
        results.append((accepted, following, state, status, clear))
    return (np.stack(part) for part in zip(*results, strict=True))


def random_window(rng, tokens, length, channels, dtype, distance=0.3):
    shape = (tokens, length, channels)
    mean_p, log_std = rng.standard_normal((2, *shape))
    std_p = np.exp(log_std)
    scale = distance / np.sqrt(channels)
    mean_q = mean_p + scale * std_p * rng.standard_normal(shape)
    std_q = std_p * np.exp(0.5 * scale * rng.standard_normal(shape))
    proposed = mean_q + std_q * rng.standard_normal(shape)
    return [rounded(a, dtype) for a in (proposed, mean_p, std_p, mean_q, std_q)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_the_walk(libraries, dtype, channels):
    rng = np.random.default_rng(channels)
    tokens, length = 60, 6
    window = random_window(rng, tokens, length, channels, dtype)
    uniforms, index = single(rng.random((tokens, length))), rng.integers(0, 12, tokens)
    normals = single(rng.standard_normal((4, tokens, channels)))
    pool = single(rng.random((4, tokens)))
    found = verify(libraries(dtype), window, uniforms, index, normals, pool, dtype)
    *expected, clear = expected_walk(window, uniforms, index, normals, pool)
    assert clear.mean() > 0.8
    for what, one, other in zip(
        ("accepted", "next", "state", "status"), found, expected, strict=True
    ):
        if what != "state":
            np.testing.assert_array_equal(one[clear], other[clear], err_msg=what)
    state, right = found[2][clear], expected[2][clear]
    np.testing.assert_allclose(state, right, rtol=ROUNDING[dtype], atol=2 * ROUNDING[dtype])
    assert set(expected[3]) == {0, 1}
    assert set(expected[0]) >= {0, 1, 6}


def test_a_walk_says_where_a_density_is_not_finite_and_skips_ended_tokens(libraries):
    rng = np.random.default_rng(0)
    window = random_window(rng, 4, 3, 5, "float32")
    for a, b in ((1, 3), (2, 4)):  # p is q: everything before is accepted
        window[b][:] = window[a]
    window[1][0, 1, 2] = np.nan  # at head step 9
    window[2][1, 1] = np.nan  # not looked at: head step 0 has no standard deviation
    window[1][3, 0, 4] = np.inf
    uniforms, index = np.full((4, 3), 0.5), [10, 1, -1, 0]
    normals, pool = rng.standard_normal((2, 4, 5)), rng.random((2, 4))
    accepted, following, state, status = verify(
        libraries("float32"), window, uniforms, index, normals, pool, "float32"
    )
    assert accepted.tolist() == [1, 2, 0, 0]
    assert following.tolist() == [9, -1, -1, 0]
    assert status.tolist() == [2, 0, 0, 2]
    assert np.isnan(state[[0, 3]]).all()
    np.testing.assert_array_equal(state[1], single(window[1][1, 1]))
    np.testing.assert_array_equal(state[2], np.zeros(5))


def transition(library, x, eps, v, noise, step, tables, dtype, *, guidance=None, blocks=None):
    memory, (rows, channels) = Memory(library), np.shape(x)
    outputs = [memory.out((rows, channels), kind) for kind in (dtype, *["float32"] * 3)]
    other, scale = (0, 0) if guidance is None else (
        memory.put(guidance[0], dtype), memory.put(guidance[1])
    )  # fmt: skip
    call = launch.transition(
        launch.TransitionBuffers(
            memory.put(x, dtype), memory.put(eps, dtype), memory.put(v, dtype), other, scale,
            memory.put(noise), memory.integers(step), memory.put(tables),
        ),
        launch.TransitionOutputs(*(pointer for _, pointer in outputs)),
        rows=rows, channels=channels, steps=len(tables), temperature=0.9, dtype=dtype,
    )  # fmt: skip
    assert library.run(call, blocks) == 0
    return load(outputs[0][0], dtype), *(array for array, _ in outputs[1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("guided", [False, True])
def test_the_transition(libraries, dtype, channels, guided):
    rng = np.random.default_rng(channels)
    rows, steps = 41, 7
    x, eps, other, v = (rounded(a, dtype) for a in rng.uniform(-1, 1, (4, rows, channels)))
    noise, scale = single(rng.standard_normal((rows, channels))), single(rng.uniform(1, 4, rows))
    step, tables = rng.integers(0, steps, rows), single(rng.uniform(0.1, 2, (steps, 6)))
    noise[step == 0] = np.nan  # is not used there
    guidance = (other, scale) if guided else None
    found = transition(libraries(dtype), x, eps, v, noise, step, tables, dtype, guidance=guidance)
    mixed = other + scale[:, None] * (eps - other) if guided else eps
    recip, recipm1, coef_x0, coef_x, base, slope = tables.astype(np.float64)[step].T[..., None]
    mean, log_std, x0hat = reference.transition(
        x, mixed, v, recip=recip, recipm1=recipm1, coef_x0=coef_x0, coef_x=coef_x,
        log_beta=2 * (base + slope), log_posterior=2 * (base - slope),
    )  # fmt: skip
    moved = np.where(step[:, None] == 0, mean, mean + 0.9 * np.exp(log_std) * noise)
    for one, expected, tolerance in zip(
        found, (moved, mean, log_std, x0hat), (ROUNDING[dtype], 1e-6, 1e-6, 1e-6), strict=True
    ):
        largest = np.abs(one - expected).max() / np.abs(expected).max()
        print(f"largest error {largest:.1e}")
        assert largest <= tolerance + 1e-6


def test_rows_of_a_head_step_that_is_not_there_are_not_numbers(libraries):
    ones = np.ones((3, 2))
    tables = np.ones((4, 6))
    found = transition(libraries("float32"), ones, ones, ones, ones, [-1, 3, 4], tables, "float32")
    for array in found:
        assert np.isnan(array).any(axis=1).tolist() == [True, False, True]


def test_any_grid_computes_the_same(libraries):
    rng, library = np.random.default_rng(0), libraries("float32")
    p, q = random_density(rng, (40, 3)), random_density(rng, (40, 3))
    normals, uniforms = rng.standard_normal((3, 40, 3)), rng.random((3, 40))
    window = random_window(rng, 40, 4, 3, "float32")
    walk = (window, rng.random((40, 4)), rng.integers(0, 9, 40), normals, uniforms, "float32")
    rows = (*rng.standard_normal((4, 40, 3)), rng.integers(0, 5, 40), np.ones((5, 6)), "float32")
    cube = [
        a.reshape(8, 5, -1) for a in (p.mean, p.std, p.sum_log_std, q.mean, q.std, q.sum_log_std)
    ]
    batch = (normals[0].reshape(8, 5, 3), Density(*cube[:3]), Density(*cube[3:]),
             uniforms[0].reshape(8, 5), "float32")  # fmt: skip
    for function, arguments in (
        (accept, batch), (resample, (p, q, normals, uniforms, "float32")), (verify, walk),
        (transition, rows),
    ):  # fmt: skip
        right = function(library, *arguments)
        for blocks in (1, 3, 50):
            for one, other in zip(function(library, *arguments, blocks=blocks), right, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("broken", [False, True], ids=["as it is", "no rejection"])
def test_the_kernels_turn_draws_of_q_into_draws_of_p(libraries, broken):
    rng = np.random.default_rng(1)
    count, library = 4000, libraries("float32")
    p, q = pair(2, 1.0, rng)
    many_p, many_q = tiled(p, count), tiled(q, count)
    x = q.mean + q.std * rng.standard_normal((count, 2))
    batched = [
        Density(*(a[None] for a in (d.mean, d.std, d.sum_log_std))) for d in (many_p, many_q)
    ]
    u = np.zeros(count) if broken else rng.random(count)
    accepted, *_ = accept(library, x[None], *batched, u[None], "float32")
    rows = np.flatnonzero(~accepted[0])
    if len(rows):
        pool = rng.standard_normal((40, len(rows), 2)), rng.random((40, len(rows)))
        x[rows], done, _ = resample(library, many_p[rows], many_q[rows], *pool, "float32")
        for row in rows[~done]:
            x[row] = reference.continue_residual(p, q, rng)
    assert (p_value_of_law(x, p, q, rng) > SIGNIFICANCE) != broken


def test_the_emulator_finds_lanes_that_wait_in_vain(tmp_path):
    """A planted bug: all lanes of a warp are named where only some take part."""
    source = plant(tmp_path, {"__shfl_xor_sync(mask,": "__shfl_xor_sync(~0u,"})
    library = EmulatedKernels(compile_emulated(tmp_path / "broken.so", source))
    rng = np.random.default_rng(0)
    p, x = random_density(rng, (1, 3, 4)), np.zeros((1, 3, 4))
    with pytest.raises(AssertionError, match="== 0"):
        accept(library, x, p, p, np.full((1, 3), 0.5), "float32")
