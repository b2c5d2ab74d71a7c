"""Mutants that change nothing that anybody gets, and those that are left: each with its reason."""

# ruff: noqa: E501 (a mutant is named by the whole expression)
from __future__ import annotations

_FRESH = "a new Philox has these values already, and the next stream overwrites the others"
_INTEGER = "NumPy's integers have 64 bits unless told otherwise"
_CAST = "what is computed is written into an array of float32, rounded once either way"
_UNKNOWN = "NumPy takes any negative size for the one that it works out"
_LENGTH = "both arrays of the noise are as long"
_WIDE = "something that it is computed with is float64 already"
_EDGE = "differs where a uniform is a certain number: once in 2**53 draws"
_TYPE = "a name of a type, which nothing reads when it runs"
_LAST = "the last axis of an array of two axes"
_SETTLED = (
    "what lies beyond a window, or at head step 0, is left out once more where a round is settled"
)
_GUARD = "keeps a feature that does not vary from a division by 0, whatever the small number"

EQUIVALENT: dict[str, dict[str, str]] = {
    "runtime/noise.py": {
        "_PassingGenerator.__init__: 0 -> 1": _FRESH,
        "_PassingGenerator.__init__: 'buffer_pos' -> 'buffer_pos?'": _FRESH,
        "_PassingGenerator.__init__: 'has_uint32' -> 'has_uint32?'": _FRESH,
        "_PassingGenerator.__init__: 4 -> 5": "4 and more say that the buffer is used up",
        "FixedNoise.__init__: np.sort(self._orders, axis=1) -> np.sort(self._orders)": _LAST,
    },
    "runtime/schedule.py": {
        "respaced_timesteps: 1.0 -> 2.0": "one step has no next one that the stride would lead to",
        "respaced_timesteps: np.array(chosen, dtype=np.int64) -> np.array(chosen)": _INTEGER,
        "_diffusion_tables: np.cumprod(1 - training_betas(beta_schedule), dtype=np.float64) -> np.cumprod(1 - training_betas(beta_schedule))": _WIDE,
    },
    "runtime/decoding/chains.py": {
        "Chains.scattered: 0 -> 1 (#2)": "all parts have as many channels, and there are two or more",
    },
    "runtime/decoding/loop.py": {
        "Decoder._predict_prefixes: 0 -> 1 (#3)": "what is predicted where a row is padded is left out",
        "_joined: 1 -> 2 (#3)": _UNKNOWN,
    },
    "runtime/decoding/plan.py": {
        "Plan.of: np.array(head_steps, dtype=np.int64) -> np.array(head_steps)": _INTEGER,
    },
    "runtime/decoding/verification.py": {
        "module: 512 -> 513": "tries come in batches: after 496 there is one more, after 1008 none",
        "module: 512 -> 511": "tries come in batches: after 496 there is one more, after 1008 none",
    },
    "runtime/head/draft.py": {
        "Rollout.__init__: np.eye(channels, dtype=np.float32) -> np.eye(channels)": _CAST,
        "_ridge: features.std(axis=0) + 1e-08 -> features.std(axis=0) - 1e-08": _GUARD,
        "_ridge: 1e-08 -> 2e-08": _GUARD,
        "_ridge: wanted - target_center -> wanted + target_center": "features have mean 0, so that "
        "a constant has no part in their products",
        "_survival: np.zeros((steps, HORIZON), dtype=np.float32) -> np.zeros((steps, HORIZON))": _CAST,
        "_survival: 1 -> 2 (#5)": "the loop ends at head step 0 by itself",
        "_survival: break -> continue": "head step 0 is the last one of the loop",
        "_moved: np.full(len(x0hat), i, dtype=np.int64) -> np.full(len(x0hat), i)": _INTEGER,
    },
    "runtime/head/native.py": {
        "_Keeper.__call__: np.ascontiguousarray(array, dtype=dtype) -> np.ascontiguousarray(array)":
        "arrays have the type already, or hold nothing but zeros of the same size",
        "_Copied.__init__: 0 -> 1": "these rows are never used",
        "_Chains.__init__: np.full(count, steps - 1, dtype=np.int64) -> np.full(count, steps - 1)":
        _INTEGER,
        "_Chains.__init__: 1 -> 2 (#2)": "a longer array than is needed",
        "_fail: status < 0 -> status <= 0": "it is not called with 0",
        "_fail: 0 -> 1": "it is not called with 0",
        "_Speculation.__init__: np.array(generators, dtype=np.uint64) -> np.array(generators)":
        "addresses are below 2**63, and are made uint64 in the same line",
        "drafted_trajectory: np.arange(1, steps + 1, dtype=np.int64) -> np.arange(1, steps + 1)":
        _INTEGER,
    },
    "runtime/head/parallel.py": {
        "ParallelSampler._in_parts: count > size -> count >= size": "one part that is the whole",
        "ParallelSampler._in_parts: count > size -> count >= size (#2)": "one part that is the whole",
        "ParallelSampler._iterate: np.full(n_tokens, steps - 1, dtype=np.int64) -> np.full(n_tokens, steps - 1)":
        _INTEGER,
        "ParallelSampler._iterate: np.zeros(n_tokens, dtype=np.int64) -> np.zeros(n_tokens)":
        "counts are whole numbers",
        "ParallelSampler._sweep: 1 -> 2": "a column more, in which nothing is valid",
        "ParallelSampler._drafted: 0 -> 1": "the token itself is the result of a sweep, not its start",
    },
    "runtime/head/request.py": {
        "HeadRequest.__len__: 0 -> 1": _LENGTH,
        "evaluated: transition.mean.sum() + transition.log_std.sum() -> transition.mean.sum() - transition.log_std.sum()":
        "neither is finite unless both sums are",
        "log_uniforms_of: 1 -> 2 (#3)": _UNKNOWN,
    },
    "runtime/head/sequential.py": {
        "SequentialSampler._compiled: 0.0 -> 1.0": "in a window of 1 nothing moves",
        "SequentialSampler._plain: np.arange(count, dtype=np.int64) -> np.arange(count)": _INTEGER,
        "SequentialSampler._plain: np.full(count, i, dtype=np.int64) -> np.full(count, i)": _INTEGER,
        "SequentialSampler._plain: np.full(count, steps, dtype=np.int64) -> np.full(count, steps)":
        _INTEGER,
    },
    "runtime/head/slopes.py": {
        "Slopes.of: np.eye(channels, dtype=np.float32) -> np.eye(channels)": _CAST,
    },
    "runtime/head/speculative.py": {
        "SpeculativeSampler.__init__: 1 -> 2": "windows of a frozen draft do not depend on channels",
        "SpeculativeSampler.__init__: 1 -> 0": "windows of a frozen draft do not depend on channels",
        "SpeculativeSampler._first_guess: np.arange(len(initial), dtype=np.int64) -> np.arange(len(initial))":
        _INTEGER,
        "SpeculativeSampler._first_guess: np.full(len(initial), self.schedule.steps - 1, dtype=np.int64) -> np.full(len(initial), self.schedule.steps - 1)":
        _INTEGER,
        "_Run.start: np.full(count, steps - 1, dtype=np.int64) -> np.full(count, steps - 1)": _INTEGER,
        "_Run.start: np.zeros(count, dtype=np.int64) -> np.zeros(count)": "counts are whole numbers",
        "_Run.round: self.log_uniforms[active[:, None], index] < ratio -> self.log_uniforms[active[:, None], index] <= ratio":
        _EDGE,
        "_Run.round: passed &= inside & (index > 0) -> nothing": _SETTLED,
        "_Run.round: inside & (index > 0) -> inside | (index > 0)": _SETTLED,
        "_Run.round: index > 0 -> index >= 0": _SETTLED,
        "_Run._evaluate: 1 -> 2 (#4)": _UNKNOWN,
        "_Run._evaluate: 1 -> 2 (#5)": _UNKNOWN,
    },
    "plugins/reference.py": {
        "module: 'paper' -> 'paper?'": _TYPE,
        "module: 'relaxed' -> 'relaxed?'": _TYPE,
        "log_density_ratio: np.asarray(x, dtype=np.float64) -> np.asarray(x)": _WIDE,
        "accept: 0.0 -> 1.0": "uniforms are below 1, so that their logarithms are below both",
        "resample: np.asarray(normals, dtype=np.float64) -> np.asarray(normals)": _WIDE,
        "continue_residual: 0:2 * pairs:2 -> :2 * pairs:2": "a slice begins at 0 by itself",
        "continue_residual: np.searchsorted(np.cumsum(masses), component * total, side='right') -> np.searchsorted(np.cumsum(masses), component * total)":
        _EDGE,
        "continue_residual: sign[rows] < 0.5 -> sign[rows] <= 0.5": _EDGE,
        "continue_residual: keep * np.where(tilted, bound, 1.0) < -np.expm1(-np.maximum(ratio, 0.0)) -> keep * np.where(tilted, bound, 1.0) <= -np.expm1(-np.maximum(ratio, 0.0))":
        _EDGE,
        "continue_residual: -1 -> 1 (#2)": _LAST,
        "continue_residual: -1 -> 1 (#3)": _LAST,
        "accepted_prefix: np.asarray(accepted, dtype=np.int64) -> np.asarray(accepted)":
        "NumPy multiplies truth values as integers",
        "verify_window: np.log(np.asarray(uniforms)) < log_ratio -> np.log(np.asarray(uniforms)) <= log_ratio":
        _EDGE,
        "verify_window: -1 -> 1": "zeros of any number have the sum 0",
        "verify_window: 1 -> 2": "zeros of any number have the sum 0",
        "verify_window: 1 -> 0": "zeros of any number have the sum 0",
        "verify_window: np.asarray(a, dtype=np.float64) -> np.asarray(a)": "a `Density` is float64",
    },
}  # fmt: skip

_OTHER_DRAWS = "the draws that an estimate is made from: others are as good"
_TIME = "how many tokens are iterated together: the same tokens, in other time and memory"
# Mutants that are left although they change something: file -> mutant -> reason.
KNOWN: dict[str, dict[str, str]] = {
    "runtime/head/draft.py": {
        "Rollout.__init__: np.zeros((steps, 2 * channels, 2 * channels), dtype=np.float32) -> np.zeros((steps, 2 * channels, 2 * channels))":
        "the same products in float64: drafts differ by rounding",
        "_survival: 0 -> 1 (#2)": _OTHER_DRAWS,
        "_survival: rng.standard_normal(held.x.shape, dtype=np.float32) -> rng.standard_normal(held.x.shape)":
        _OTHER_DRAWS,
    },
    "runtime/head/slopes.py": {
        "module: 1 -> 2": _TIME,
        "module: 26 -> 27": _TIME,
        "module: 26 -> 25": _TIME,
    },
}  # fmt: skip
