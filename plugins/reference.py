"""The operators of continuous speculative decoding in NumPy, float64.

Every other implementation is held against this one. p is the target, q the draft; densities are
diagonal Gaussians over the C channels of a token. Wang et al., arXiv 2411.11925, write:

| paper | here | shape |
| --- | --- | --- |
| x, a drafted token | `x` | `[N, C]` |
| mu_p, sigma_p: last denoising step of the target | `p.mean`, `p.std` | `[N, C]` |
| mu_q, sigma_q: last denoising step of the draft | `q.mean`, `q.std` | `[N, C]` |
| sum of log sigma over the earlier steps, i >= 1 | `p.sum_log_std`, `q.sum_log_std` | `[N, C]` |
| Sigma = prod_i sigma_q / sigma_p, its logarithm | `log_sigma` | `[N]` |
| r = p(x) / q(x) | `exp(log_ratio)` | `[N]` |
| epsilon ~ U(0, 1), the acceptance draw | `u` | `[N]` |

`kind="paper"` follows the paper's equations; `kind="relaxed"` follows the authors' released code,
which has Sigma upside down and is used with an inner temperature of 42.

For the exact head sampler (`transition`, `verify_window`) p and q are the two densities of one
denoising transition, Sigma is 1, and the emitted value is exactly p-distributed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
AcceptanceKind = Literal["paper", "relaxed"]

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Density:
    """What a denoising chain leaves for the density ratio, each `[N, C]`, kept as float64.

    Attributes:
        mean: mean of the last head step (i = 0).
        std: standard deviation of the last head step, temperature included.
        sum_log_std: sum of log standard deviations of the steps i >= 1, without temperature.
    """

    mean: NDArray[Any]
    std: NDArray[Any]
    sum_log_std: NDArray[Any]

    def __post_init__(self) -> None:
        for name in ("mean", "std", "sum_log_std"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))

    def __getitem__(self, rows: Any) -> Density:
        """Return some of the tokens."""
        return Density(self.mean[rows], self.std[rows], self.sum_log_std[rows])

    def __setitem__(self, rows: Any, other: Density) -> None:
        """Overwrite some of the tokens."""
        self.mean[rows] = other.mean
        self.std[rows] = other.std
        self.sum_log_std[rows] = other.sum_log_std

    @classmethod
    def empty(cls, tokens: int, channels: int) -> Density:
        """Return densities to be filled in, `[N, C]` each."""
        return cls(*(np.empty((tokens, channels)) for _ in range(3)))


def log_normal(x: ArrayLike, mean: ArrayLike, std: ArrayLike) -> Float64:
    """Log density of a diagonal Gaussian, summed over the last axis: `[..., C]` -> `[...]`."""
    x, mean, std = (np.asarray(a, dtype=np.float64) for a in (x, mean, std))
    return np.sum(-0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * _LOG_2PI, axis=-1)


def log_sigma(p: Density, q: Density, kind: AcceptanceKind = "paper") -> Float64:
    """Logarithm of the paper's Sigma, `[N]`; `relaxed` has the opposite sign."""
    total = np.sum(q.sum_log_std - p.sum_log_std, axis=-1)
    return total if kind == "paper" else -total


def log_density_ratio(
    x: ArrayLike,
    p: Density,
    q: Density,
    *,
    kind: AcceptanceKind = "paper",
    inner_temperature: float = 1.0,
) -> Float64:
    """Log of the aligned density ratio r, `[N]`.

    `log Sigma + log N(x; p) - log N(x; q)`, with `(x - mean)/std` divided by
    `inner_temperature` in both Gaussians (their normalisers keep the untempered std).

    Args:
        x: drafted tokens `[N, C]`.
        p: target densities.
        q: draft densities.
        kind: `paper` or `relaxed`.
        inner_temperature: T; 1 is the paper's formula.
    """
    x = np.asarray(x, dtype=np.float64)
    # With a tempered exponent, log N(x; m, s) is log N((x - m)/T; 0, s).
    log_p = log_normal((x - p.mean) / inner_temperature, 0.0, p.std)
    log_q = log_normal((x - q.mean) / inner_temperature, 0.0, q.std)
    return log_sigma(p, q, kind) + log_p - log_q


def accept(
    x: ArrayLike,
    p: Density,
    q: Density,
    u: ArrayLike,
    *,
    kind: AcceptanceKind = "paper",
    inner_temperature: float = 1.0,
) -> tuple[Bool, Float64]:
    """Density-ratio acceptance: accept where `log u < min(0, log r)`.

    Args:
        x: drafted tokens `[N, C]`.
        p: target densities.
        q: draft densities.
        u: uniforms in [0, 1) `[N]`.
        kind: `paper` or `relaxed`.
        inner_temperature: T, see `log_density_ratio`.

    Returns:
        `(accepted [N], log_ratio [N])`. A ratio that is not a number is never accepted.
    """
    ratio = log_density_ratio(x, p, q, kind=kind, inner_temperature=inner_temperature)
    with np.errstate(divide="ignore"):
        accepted = np.less(np.log(np.asarray(u, dtype=np.float64)), np.minimum(0.0, ratio))
    return np.asarray(accepted), ratio


def residual_keep(x: ArrayLike, p: Density, q: Density, *, kind: AcceptanceKind) -> Float64:
    """Probability `max(0, 1 - q/(Sigma p))` of keeping a draw `x` from p, `[N]`."""
    ratio = log_sigma(p, q, kind) + log_normal(x, p.mean, p.std) - log_normal(x, q.mean, q.std)
    return -np.expm1(-np.maximum(ratio, 0.0))


def resample(
    p: Density,
    q: Density,
    normals: ArrayLike,
    uniforms: ArrayLike,
    *,
    kind: AcceptanceKind = "paper",
) -> tuple[Float64, Bool]:
    """Residual resampling with a given pool of K tries for each token.

    Try k proposes `mean_p + std_p * normals[k]` and keeps it if `uniforms[k]` is below
    `residual_keep`. The first kept try is the result.

    Args:
        p: target densities.
        q: draft densities.
        normals: `[K, N, C]`.
        uniforms: `[K, N]`.
        kind: `paper` or `relaxed`.

    Returns:
        `(x [N, C], done [N])`. Where `done` is false the pool ended and `x` is not a sample: go on
        with another pool or with `continue_residual`.
    """
    normals = np.asarray(normals, dtype=np.float64)
    proposals = p.mean + p.std * normals
    kept = np.asarray(uniforms) < residual_keep(proposals, p, q, kind=kind)
    first = np.argmax(kept, axis=0)
    return proposals[first, np.arange(proposals.shape[1])], np.asarray(kept.any(axis=0))


def continue_residual(
    p: Density,
    q: Density,
    rng: np.random.Generator,
    *,
    kind: AcceptanceKind = "paper",
    max_tries: int = 1 << 20,
) -> Float64 | None:
    """Sample the residual `max(0, p - q/Sigma)/Z` of one token when its pool has ended.

    Draws from p succeed with a probability near the total variation distance, which may be
    arbitrarily small. So every other try comes from a proposal that is tilted towards the
    residual. With `y = (x - mean_p)/std_p` the log ratio is a quadratic,

        l(y) = sum_c (a_c y_c^2 + b_c y_c) + d,
        1 - exp(-l) <= l <= U(y) = sum_c (max(a_c, 0) y_c^2 + |b_c| |y_c|) + max(d, 0),

    and `N(y) U(y)` is a mixture whose terms are sampled directly: one coordinate has the size of a
    chi variable with 3 (or 2) degrees of freedom and a random sign, the others are normal. A tilted
    draw is kept with probability `max(0, 1 - exp(-l)) / U`. Both kinds of try have the
    residual as their law given that they are kept, so their order does not matter, and the tilted
    one's rate does not vanish when p and q come together.

    Args:
        p: target density of one token, `[C]` each.
        q: draft density of that token.
        rng: source of the tries.
        kind: `paper` or `relaxed`.
        max_tries: how many tries at most.

    Returns:
        A sample `[C]`, or None if the residual is empty (r <= 1 everywhere under the bound) or
        was not hit in `max_tries`; with Sigma = 1 neither can happen to a rejected token but with
        negligible probability.
    """
    rho, delta = p.std / q.std, (p.mean - q.mean) / q.std
    a, b = 0.5 * (rho**2 - 1), rho * delta
    d = float(log_sigma(p, q, kind)) + float(np.sum(0.5 * delta**2 - np.log(rho)))
    quadratic, linear, constant = np.maximum(a, 0), np.abs(b), max(d, 0.0)
    masses = np.concatenate([quadratic, linear * math.sqrt(2 / math.pi), [constant]])
    total = masses.sum()
    if not total > 0 or not np.isfinite(total):
        return None
    channels, tries, batch = len(p.mean), 0, 16
    pairs = (channels + 1) // 2
    while tries < max_tries:
        # Normals come from uniforms, so that any implementation can draw the same ones.
        u = rng.random((batch, 2 * pairs + 6))
        y = np.stack(_normal_pairs(u[:, 0 : 2 * pairs : 2], u[:, 1 : 2 * pairs : 2]), axis=2)
        y = y.reshape(batch, 2 * pairs)[:, :channels]
        component, sign, size, first, second, keep = u[:, 2 * pairs :].T
        tilted = np.arange(batch) % 2 == 1
        chosen = np.searchsorted(np.cumsum(masses), component * total, side="right")
        rows = np.flatnonzero(tilted & (chosen < 2 * channels))
        squares = -2 * np.log1p(-size[rows])
        squares += (chosen[rows] < channels) * _normal_pairs(first[rows], second[rows])[0] ** 2
        y[rows, chosen[rows] % channels] = np.where(sign[rows] < 0.5, -1, 1) * np.sqrt(squares)
        ratio = np.sum(a * y**2 + b * y, axis=-1) + d
        bound = np.sum(quadratic * y**2 + linear * np.abs(y), axis=-1) + constant
        kept = keep * np.where(tilted, bound, 1.0) < -np.expm1(-np.maximum(ratio, 0.0))
        if kept.any():
            return p.mean + p.std * y[int(np.argmax(kept))]
        tries += batch
        batch = min(2 * batch, 4096)
    return None


def _normal_pairs(u: Float64, w: Float64) -> tuple[Float64, Float64]:
    """Two independent normals from two uniforms in [0, 1) (Box and Muller, 1958)."""
    radius, angle = np.sqrt(-2 * np.log1p(-u)), 2 * math.pi * w
    return radius * np.cos(angle), radius * np.sin(angle)


def accepted_prefix(accepted: ArrayLike) -> NDArray[np.int64]:
    """Number of leading accepted entries: `[..., K]` bool -> `[...]`."""
    return np.cumprod(np.asarray(accepted, dtype=np.int64), axis=-1).sum(axis=-1)


def transition(
    x: ArrayLike,
    eps: ArrayLike,
    v: ArrayLike,
    *,
    recip: ArrayLike,
    recipm1: ArrayLike,
    coef_x0: ArrayLike,
    coef_x: ArrayLike,
    log_beta: ArrayLike,
    log_posterior: ArrayLike,
) -> tuple[Float64, Float64, Float64]:
    """Mean and log standard deviation of one reverse transition (section 3 of the design).

    Args:
        x: states `[..., C]`.
        eps: predicted noise `[..., C]`, guidance applied.
        v: predicted variance share in [-1, 1] `[..., C]`.
        recip: `sqrt(1/abar_i)`; this and the others broadcast against `[..., C]`.
        recipm1: `sqrt(1/abar_i - 1)`.
        coef_x0: weight of x0hat in the mean.
        coef_x: weight of x in the mean.
        log_beta: upper end of the log variance.
        log_posterior: lower end of the log variance.

    Returns:
        `(mean, log_std, x0hat)`, each `[..., C]`.
    """
    x, eps, v = (np.asarray(a, dtype=np.float64) for a in (x, eps, v))
    x0hat = np.asarray(recip) * x - np.asarray(recipm1) * eps
    mean = np.asarray(coef_x0) * x0hat + np.asarray(coef_x) * x
    share = (v + 1) / 2
    logvar = share * np.asarray(log_beta) + (1 - share) * np.asarray(log_posterior)
    return mean, 0.5 * logvar, x0hat


def verify_window(
    proposed: ArrayLike,
    mean_p: ArrayLike,
    std_p: ArrayLike,
    mean_q: ArrayLike,
    std_q: ArrayLike,
    uniforms: ArrayLike,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], Float64]:
    """Walk K proposed transitions of each token and stop at the first rejection.

    Transition j is accepted with probability `min(1, p/q)`; the first rejected one is replaced
    by a sample of the residual `max(0, p - q)/Z`. Everything up to and including it is exactly
    p-distributed (maximal coupling, step by step).

    Args:
        proposed: `[N, K, C]`, entry j drawn from q given entry j - 1.
        mean_p: target means given the same predecessors, `[N, K, C]`; likewise the next three.
        std_p: target standard deviations.
        mean_q: draft means.
        std_q: draft standard deviations.
        uniforms: acceptance draws `[N, K]`.
        rng: source of residual draws.

    Returns:
        `(accepted [N], states [N, K, C])`: how many were accepted, and the proposals with the first
        rejected one replaced; states after that are meaningless.

    Raises:
        ArithmeticError: a density is not finite.
    """
    states = np.array(proposed, dtype=np.float64)
    log_ratio = log_normal(states, mean_p, std_p) - log_normal(states, mean_q, std_q)
    if not np.isfinite(log_ratio).all():
        raise ArithmeticError("a transition density is not finite")
    with np.errstate(divide="ignore"):
        count = accepted_prefix(np.log(np.asarray(uniforms)) < log_ratio)
    zero = np.zeros(states.shape[-1])
    arrays = [np.asarray(a, dtype=np.float64) for a in (mean_p, std_p, mean_q, std_q)]
    for row in np.flatnonzero(count < states.shape[1]):
        at = (row, count[row])
        mp, sp, mq, sq = (a[at] for a in arrays)
        sample = continue_residual(Density(mp, sp, zero), Density(mq, sq, zero), rng)
        if sample is None:
            raise ArithmeticError("the residual of a rejected transition was not hit")
        states[at] = sample
    return count, states
