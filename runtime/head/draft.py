"""Drafting head transitions without the network: an affine predictor for each head step.

After the transition from `x_i` to `x_{i-1}` the prediction of the clean token moves from `x0hat_i`
to `x0hat_{i-1}`. The move is well described by an affine map of what is known without another
evaluation,

    x0hat_{i-1} = x0hat_i + [x_{i-1} - mean_i ; x_i ; x0hat_i ; v_i] A_i + b_i,

and the variance share moves along its mean over tokens, `v_{i-1} = v_i + vbar_{i-1} - vbar_i`.
`A_i [4C, C]` and `b_i [C]` are fitted per head step by ridge regression over the model's own
trajectories. The innovation `x_{i-1} - mean_i` carries the middle and the end of a chain, `x_i` and
`x0hat_i` its high-noise start. A wrong map costs rounds and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32, Int64
from ..errors import NumericsError
from .schedule import HeadSchedule

# Longest window that is looked ahead at in calibration.
HORIZON = 64
# What a network row costs in units of a call without rows: 1/16 on two CPU cores for the shipped
# head, 1/10 for one of MAR-B's size. It is not measured on the spot because a window changes which
# drafts are tried: one seed must give one image.
ROW_COST = 1 / 16
# A frozen draft has no calibration: roughly the chance that one of its transitions is accepted.
FROZEN_ACCEPTANCE = 0.9


@dataclass(frozen=True, eq=False)
class AffineDraft:
    """Fitted maps for one model at S head steps.

    Attributes:
        weight: A, `[S, 4C, C]`; entry i moves the prediction from index i to i - 1.
        bias: b, `[S, C]`.
        share: vbar, mean variance share, `[S, C]`.
        start: `[C + 1, C]`, affine map from the initial noise to x0hat at index S - 1.
        survival: held-out probability that j + 1 transitions drafted from index i on are all
            accepted, `[S, HORIZON]`.

    Raises:
        ValueError: the shapes do not fit each other.
    """

    weight: Float32
    bias: Float32
    share: Float32
    start: Float32
    survival: Float32

    def __post_init__(self) -> None:
        steps, channels = self.bias.shape
        shapes = {
            "weight": (steps, 4 * channels, channels),
            "share": (steps, channels),
            "start": (channels + 1, channels),
            "survival": (steps, HORIZON),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"draft {name} is {getattr(self, name).shape}, not {shape}")

    @classmethod
    @functools.lru_cache(maxsize=4)
    def frozen(cls, steps: int, channels: int) -> AffineDraft:
        """The draft that keeps the last verified prediction (A = 0)."""
        shapes = (steps, 4 * channels, channels), (steps, channels), (steps, channels)
        zeros = (np.zeros(shape, dtype=np.float32) for shape in (*shapes, (channels + 1, channels)))
        survival = FROZEN_ACCEPTANCE ** np.arange(1, HORIZON + 1, dtype=np.float32)
        return cls(*zeros, survival=np.tile(survival, (steps, 1)))

    @property
    def steps(self) -> int:
        """Number S of head steps."""
        return len(self.bias)

    @property
    def channels(self) -> int:
        """Number C of channels."""
        return self.bias.shape[1]

    @property
    def acceptance(self) -> Float32:
        """Held-out probability that one drafted transition is accepted, `[S]`."""
        return self.survival[:, 0]

    @property
    def jacobian(self) -> Float32:
        """Estimate of `d x0hat_i / d x_i`, `[S, C, C]` (row vectors times it); zero at S - 1."""
        out = np.zeros((self.steps, self.channels, self.channels), dtype=np.float32)
        out[:-1] = self.weight[1:, : self.channels]
        return out

    def windows(self, row_cost: float = ROW_COST) -> Int64:
        """Window for each head step that a round may start at, `[S]`.

        The one with the most expected progress for its cost,
        `sum_{j < K} survival[i, j] / (1 + row_cost K)`.

        Args:
            row_cost: what one more transition in every token's window costs, in units of a call:
                tokens that are sampled together make a row each, and guidance another.
        """
        lengths = np.arange(1, HORIZON + 1)
        progress = np.cumsum(self.survival, axis=1)
        best = np.argmax(progress / (1 + row_cost * lengths), axis=1) + 1
        return np.minimum(best, np.arange(1, self.steps + 1))

    def first(self, x: Float32) -> tuple[Float32, Float32]:
        """Guess `(x0hat, v)` at index S - 1 from the initial noise `[N, C]`."""
        x0hat: Float32 = x @ self.start[:-1] + self.start[-1]
        return x0hat, np.repeat(self.share[-1:], len(x), axis=0)

    def move(
        self, step: Int64, innovation: Float32, x: Float32, x0hat: Float32, v: Float32
    ) -> tuple[Float32, Float32]:
        """Guess `(x0hat, v)` after the transition at index `step [N]`; all others `[N, C]`."""
        features = np.concatenate([innovation, x, x0hat, v], axis=1)[:, None]
        change = np.matmul(features, self.weight[step])[:, 0] + self.bias[step]
        change_v: Float32 = self.share[np.maximum(step - 1, 0)] - self.share[step]
        return x0hat + change, v + change_v


@dataclass(frozen=True)
class HeadCalibration:
    """What is known of a model's head besides its weights.

    Attributes:
        draft: fitted predictor of its transitions, or None.
        row_cost: what a row of the head costs in units of a call.
    """

    draft: AffineDraft | None = None
    row_cost: float = ROW_COST


class Rollout:
    """A draft and a schedule, joined for drafting many transitions at once.

    With the variance shares known in advance, `[y, x0hat]` follows a linear recursion
    `h_{j+1} = h_j M_i + c_j`, so a drafted transition costs one small matrix product.
    """

    def __init__(self, schedule: HeadSchedule, draft: AffineDraft) -> None:
        self.schedule, self.draft = schedule, draft
        steps, channels = draft.steps, draft.channels
        identity = np.eye(channels, dtype=np.float32)
        coef_x0, coef_x = schedule.mean_coefficients
        own, state, guess, share = np.split(draft.weight, 4, axis=1)
        # The last head step draws nothing, and nothing is drafted after it.
        self._matrix = np.zeros((steps, 2 * channels, 2 * channels), dtype=np.float32)
        self._matrix[:, :channels, :channels] = coef_x[:, None] * identity
        self._matrix[:, channels:, :channels] = coef_x0[:, None] * identity
        self._matrix[:, :channels, channels:] = state
        self._matrix[:, channels:, channels:] = identity + guess
        self._drive = np.concatenate([own, share], axis=1)  # [S, 2C, C]

    def __call__(
        self,
        index: Int64,
        x: Float32,
        x0hat: Float32,
        v: Float32,
        normals: Float32,
        temperature: float,
    ) -> tuple[Float32, Float32, Float32]:
        """Draft K transitions of each token.

        Args:
            index: head steps `[n, K]`.
            x: states before the first, `[n, C]`.
            x0hat: guesses at them, `[n, C]`.
            v: variance shares at them, `[n, C]`.
            normals: `[n, K, C]`.
            temperature: factor of the noise.

        Returns:
            `(states [n, K + 1, C], mean [n, K, C], log_std [n, K, C])`; state j + 1 is mean j plus
            its scaled normals.
        """
        count, width, channels = normals.shape
        share = self.draft.share
        v_along: Float32 = v[:, None] + np.subtract(share[index], share[index[:, :1]])
        log_std = self.schedule.log_std(v_along, index)
        innovation = np.float32(temperature) * np.exp(log_std) * normals
        constant = np.concatenate([innovation, v_along], axis=2)[:, :, None]
        constant = np.matmul(constant, self._drive[index])[:, :, 0] + self.draft.bias[index]
        constant = np.concatenate([innovation, constant], axis=2)
        path = np.empty((count, width + 1, 2 * channels), dtype=np.float32)
        path[:, 0, :channels], path[:, 0, channels:] = x, x0hat
        matrices = self._matrix[index]
        for j in range(width):
            np.matmul(path[:, j, None], matrices[:, j], out=path[:, j + 1, None])
            path[:, j + 1] += constant[:, j]
        states = path[:, :, :channels]
        return states, states[:, 1:] - innovation, log_std


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Recorded chains of n tokens; index i of axis 0 belongs to head step i, each `[S, n, C]`.

    Attributes:
        x: the state that head step i was evaluated at.
        mean: mean of the transition from it.
        log_std: its log standard deviation, without temperature.
        x0hat: predicted clean token.
        v: variance share.
    """

    x: Float32
    mean: Float32
    log_std: Float32
    x0hat: Float32
    v: Float32

    def tokens(self, rows: slice | NDArray[np.int64]) -> Trajectories:
        """Return the chains of some tokens."""
        arrays = (self.x, self.mean, self.log_std, self.x0hat, self.v)
        return Trajectories(*(array[:, rows] for array in arrays))


def fit_affine_draft(
    schedule: HeadSchedule, recorded: Trajectories, *, ridge: float = 1e-3, held_out: float = 0.2
) -> AffineDraft:
    """Fit maps by ridge regression on standardised features, and measure held-out survival.

    Args:
        schedule: the head schedule of the chains.
        recorded: chains of n tokens.
        ridge: penalty as a share of the number of tokens.
        held_out: share of tokens, the last ones, that the survival is measured on.

    Raises:
        NumericsError: the chains are so far apart that the fit is not finite.
    """
    steps, count, channels = recorded.x.shape
    kept = max(1, count - int(count * held_out))
    train = recorded.tokens(slice(0, kept))
    x0hat = train.x0hat.astype(np.float64)
    weight, bias = np.zeros((steps, 4 * channels, channels)), np.zeros((steps, channels))
    for i in range(1, steps):
        innovation = train.x[i - 1] - train.mean[i]
        features = np.concatenate([innovation, train.x[i], x0hat[i], train.v[i]], axis=1)
        weight[i], bias[i] = _ridge(features, x0hat[i - 1] - x0hat[i], ridge)
    slope, offset = _ridge(train.x[-1].astype(np.float64), x0hat[-1], ridge)
    draft = AffineDraft(
        weight=weight.astype(np.float32),
        bias=bias.astype(np.float32),
        share=train.v.mean(axis=1),
        start=np.concatenate([slope, offset[None]]).astype(np.float32),
        survival=np.zeros((steps, HORIZON), dtype=np.float32),
    )
    with np.errstate(over="ignore", invalid="ignore"):
        draft.survival[:] = _survival(schedule, draft, recorded.tokens(slice(kept, None)))
    for field in dataclasses.fields(draft):
        if not np.isfinite(getattr(draft, field.name)).all():
            raise NumericsError(
                f"the fitted draft's {field.name} holds values that are not finite: check the "
                "weights, or fit none (--calibration-tokens 0)"
            )
    return draft


def _ridge(
    features: NDArray[np.float64], wanted: NDArray[np.float64], ridge: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return `(weight, bias)` for raw features."""
    center, scale = features.mean(axis=0), features.std(axis=0) + 1e-8
    standard, target_center = (features - center) / scale, wanted.mean(axis=0)
    gram = standard.T @ standard + ridge * len(features) * np.eye(features.shape[1])
    weight = np.linalg.solve(gram, standard.T @ (wanted - target_center)) / scale[:, None]
    return weight, target_center - center @ weight


def _survival(schedule: HeadSchedule, draft: AffineDraft, held: Trajectories) -> Float32:
    """Probability that drafts from index i on survive j + 1 acceptances, along recorded chains.

    A draft follows the recorded states in place of its own, so no evaluation is needed. The first
    round of a chain has no verified prediction and drafts from `AffineDraft.first`.
    """
    steps, count, _ = held.x.shape
    out = np.zeros((steps, HORIZON), dtype=np.float32)
    if count == 0:
        return out
    rng = np.random.Generator(np.random.Philox(0))
    normals = rng.standard_normal(held.x.shape, dtype=np.float32)
    for start in range(steps):
        alive = np.ones(count)
        if start == steps - 1:
            x0hat, v = draft.first(held.x[start])
        else:
            # A round starts right after a verified transition.
            x0hat, v = _moved(draft, held, start + 1, held.x0hat[start + 1], held.v[start + 1])
        for j in range(min(HORIZON, start + 1)):
            i = start - j
            if i == 0:  # deterministic: counts if it is reached
                out[start, j] = alive.mean()
                break
            drafted = schedule.from_x0hat(held.x[i], x0hat, v, i)
            ratio, _ = log_acceptance(
                normals[i], drafted.mean, drafted.log_std, held.mean[i], held.log_std[i]
            )
            # A draft so far off that the ratio is no number is not accepted.
            alive *= np.exp(np.minimum(np.nan_to_num(ratio, nan=-np.inf), 0))
            out[start, j] = alive.mean()
            x0hat, v = _moved(draft, held, i, x0hat, v)
    return out


def _moved(
    draft: AffineDraft, held: Trajectories, i: int, x0hat: Float32, v: Float32
) -> tuple[Float32, Float32]:
    step = np.full(len(x0hat), i, dtype=np.int64)
    return draft.move(step, held.x[i - 1] - held.mean[i], held.x[i], x0hat, v)


def log_acceptance(
    normals: NDArray[np.floating],
    mean_q: Float32,
    log_std_q: Float32,
    mean_p: Float32,
    log_std_p: Float32,
    temperature: float = 1.0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log of p/q at `y = mean_q + temperature exp(log_std_q) normals`, and y standardised under p.

    It works on the normals and never on `y`, so it does not suffer where a standard deviation is
    below the rounding of `y`, and is exactly 0 where p and q are equal.

    Args:
        normals: `[..., C]`, as all others.
        mean_q: mean of the draft.
        log_std_q: log standard deviation of the draft, without temperature.
        mean_p: mean of the target.
        log_std_p: log standard deviation of the target, without temperature.
        temperature: factor of both standard deviations.

    Returns:
        `(log_ratio [...], standard [..., C])`.
    """
    difference = log_std_q.astype(np.float64) - log_std_p
    shift = (mean_q.astype(np.float64) - mean_p) * np.exp(-log_std_p.astype(np.float64))
    standard = shift / temperature + np.exp(difference) * normals
    ratio = np.sum(0.5 * (np.square(normals) - standard**2) + difference, axis=-1)
    return ratio, standard
