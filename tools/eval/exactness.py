"""Is the speculative head exact here: two-sample tests in fixed contexts, and a bug they must find.

In each context the sequential head and the speculative one draw as many tokens, through the graphs,
backend and samplers that images are made with. Tokens, a state on their way and the sums of log
standard deviations of their chains are compared by the energy distance. All p-values are corrected
together (Holm), so a false alarm has at most the stated chance.

The planted bug keeps every drafted transition without a test: the network is asked at every
`BUG_WINDOW`-th head step only, and its prediction of the clean token is taken in between. A test
that does not find that has seen too little to certify anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...export.progress import OnStep
from ...runtime.arrays import Float32, Int64
from ...runtime.command.frame import raise_if_stopped
from ...runtime.decoding.evaluator import Conditions
from ...runtime.decoding.model import RuntimeModel
from ...runtime.head import HeadRequest, HeadSchedule, SequentialSampler
from ...runtime.head.request import Evaluate
from ...runtime.options import CHAIN_STEPS, GenerateOptions
from ...runtime.session import Session
from ...runtime.stats import Stats
from ..measure.head_curve import collect_conditions
from .metrics.halves import Float
from .metrics.two_sample import energy_test, holm

SEQUENTIAL, SPECULATIVE, BUG = "sequential", "speculative", "planted bug"
LOOKED_AT = ("tokens", "states", "log stds")
BUG_WINDOW = 8
PERMUTATIONS = 9_999


@dataclass(frozen=True, eq=False)
class Drawn:
    """Tokens of one sampler, context after context.

    Attributes:
        values: what is compared, by `LOOKED_AT`, each `[N, ..]`.
        rounds: sequential evaluations of a token.
    """

    values: dict[str, Float]
    rounds: float


@dataclass(frozen=True)
class Finding:
    """One comparison.

    Attributes:
        role: whose head.
        context: number of the context.
        looked_at: of `LOOKED_AT`.
        p_value: of one law, as it is.
        adjusted: the same, corrected for the number of tests.
    """

    role: str
    context: int
    looked_at: str
    p_value: float
    adjusted: float


@dataclass(frozen=True)
class Certificate:
    """What was found of a bundle's heads.

    Attributes:
        tests: of the speculative head.
        control: of the planted bug.
        rounds: sequential evaluations of a token by role, of the speculative head.
        level: chance of a false alarm.
        steps: head steps S.
    """

    tests: Sequence[Finding]
    control: Sequence[Finding]
    rounds: dict[str, float]
    level: float
    steps: int

    @property
    def exact(self) -> bool:
        """Whether no difference was seen."""
        return all(test.adjusted >= self.level for test in self.tests)

    @property
    def sharp(self) -> bool:
        """Whether the planted bug was found in every head."""
        found = {test.role for test in self.control if test.adjusted < self.level}
        return found == {test.role for test in self.control}


def certify(
    session: Session, *, contexts: int, tokens: int, level: float, cfg: float, seed: int,
    step: OnStep,
) -> Certificate:  # fmt: skip
    """Compare both heads of every model of a bundle.

    Args:
        session: of the bundle, on the backend that is certified.
        contexts: fixed contexts of each model.
        tokens: of each sampler in each context.
        level: chance of a false alarm in all tests together.
        cfg: guidance scale; 1 is none.
        seed: of contexts, noise and permutations.
        step: called with what is done.

    Raises:
        CsdError: a network failed, or returned a value that is not finite.
    """
    tests: list[Finding] = []
    control: list[Finding] = []
    rounds: dict[str, float] = {}
    steps = CHAIN_STEPS if session.bundle.manifest.target.solved else (
        session.bundle.manifest.head_steps
    )  # fmt: skip
    roles = [*session.bundle.manifest.models]
    for place, role in enumerate(roles):
        model = session.model(role)
        few = collect_conditions(session, role, contexts, cfg, seed)
        many = few[np.repeat(np.arange(contexts), tokens)]
        drawn: dict[str, Drawn] = {}
        for kind, name in enumerate((SEQUENTIAL, SPECULATIVE, BUG)):
            step(f"{role}, {name}", 3 * place + kind, 3 * len(roles))
            raise_if_stopped()
            rng = np.random.default_rng((seed, place, kind))
            draw = _bugged if name == BUG else _sampled
            drawn[name] = draw(model, many, steps, name, rng)
        rounds[role] = drawn[SPECULATIVE].rounds
        rng = np.random.default_rng((seed, place, 9))
        for found, name in ((tests, SPECULATIVE), (control, BUG)):
            found += _tests(role, drawn[SEQUENTIAL], drawn[name], contexts, tokens, rng)
    return Certificate(_adjusted(tests), _adjusted(control), rounds, level, steps)


def _sampled(
    model: RuntimeModel, conditions: Conditions, steps: int, head: str, rng: np.random.Generator
) -> Drawn:
    """Tokens as images have them: through the model's own choice of code, on its backend."""
    count, channels = len(conditions), model.config.token_dim
    request = HeadRequest.drawn(model.samplers.schedule(steps), count, channels, rng, 1.0, None)
    stats = Stats(1)
    chains = model.sample(
        conditions, request, GenerateOptions(head=head, head_steps=steps), together=1, images=count,
        most_tokens=None, where="a certificate", stats=stats,
    )  # fmt: skip
    rounds = stats.head_rounds[model.role] / stats.head_tokens[model.role]
    return _drawn(chains.trajectory, chains.density.sum_log_std, rounds)


def _bugged(
    model: RuntimeModel, conditions: Conditions, steps: int, head: str, rng: np.random.Generator
) -> Drawn:
    del head
    schedule = model.samplers.schedule(steps)
    timesteps: Int64 | Float32 = schedule.timesteps.astype(np.int64)
    if model.config.solved:
        timesteps = schedule.timesteps.astype(np.float32)
    size = model.chunk_tokens(len(conditions), steps, 2)
    trajectories: list[Float32] = []
    sums: list[Float32] = []
    for start in range(0, len(conditions), size):
        part = conditions[slice(start, start + size)]
        evaluate = model.evaluator(part, timesteps, "a planted bug")
        _, report = SequentialSampler(schedule).sample(
            without_tests(schedule, evaluate, len(part), model.config.token_dim),
            n_tokens=len(part), channels=model.config.token_dim, rng=rng,
        )  # fmt: skip
        trajectories.append(report.trajectory)
        sums.append(report.sum_log_std)
    return _drawn(np.concatenate(trajectories, axis=1), np.concatenate(sums), float(steps))


def without_tests(
    schedule: HeadSchedule, evaluate: Evaluate, tokens: int, channels: int
) -> Evaluate:
    """Return a network whose prediction of the clean token is kept for `BUG_WINDOW` head steps.

    Args:
        schedule: of the head.
        evaluate: the network.
        tokens: N.
        channels: C.
    """
    kept = np.zeros((2, tokens, channels), dtype=np.float32)  # x0hat and v
    recip, recipm1 = schedule.columns[:2]

    def stale(x: Float32, step: Int64, token: Int64) -> tuple[Float32, Float32]:
        fresh = (schedule.steps - 1 - step) % BUG_WINDOW == 0
        if fresh.any():
            at = step[fresh]
            eps, v = evaluate(x[fresh], at, token[fresh])
            kept[:, token[fresh]] = recip[at] * x[fresh] - recipm1[at] * eps, v
        x0hat, v = kept[:, token]
        return (recip[step] * x - x0hat) / recipm1[step], v.copy()

    return stale


def _drawn(trajectory: Float32, sum_log_std: Float32, rounds: float) -> Drawn:
    middle = max(1, (len(trajectory) - 1) // 3) if len(trajectory) > 2 else 0
    values = (trajectory[0], trajectory[middle], sum_log_std)
    named = zip(LOOKED_AT, (v.astype(np.float64) for v in values), strict=True)
    return Drawn(dict(named), rounds)


def _tests(
    role: str, one: Drawn, other: Drawn, contexts: int, tokens: int, rng: np.random.Generator
) -> list[Finding]:
    found: list[Finding] = []
    for context in range(contexts):
        rows = slice(context * tokens, (context + 1) * tokens)
        for name in LOOKED_AT:
            a, b = one.values[name][rows], other.values[name][rows]
            p_value = energy_test(a, b, rng, paired=False, most=PERMUTATIONS)
            found.append(Finding(role, context, name, p_value, p_value))
    return found


def _adjusted(tests: Sequence[Finding]) -> list[Finding]:
    values = holm([test.p_value for test in tests])
    return [
        Finding(test.role, test.context, test.looked_at, test.p_value, value)
        for test, value in zip(tests, values, strict=True)
    ]
