"""Alignment: the target's chains follow the draft's own noise, and start from its trajectory.

The draft of these tests is the target: the same graphs and the same calibration under both names.
So the aligned chain is the draft's chain again, whatever sampler made that: each draft is accepted
with a log ratio of nearly 0, and the sweeps of a parallel sampler find nothing left to move.
"""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from csd.plugins import reference
from csd.runtime import Bundle, GenerateOptions
from csd.runtime.bundle.manifest import file_sha256
from csd.runtime.decoding.chains import Chains
from csd.runtime.decoding.loop import Decoder

from ...helpers import edit_manifest

LABELS, SEED, NUM_ITER = [4, 8], 3, 8
HEADS = ("sequential", "speculative", "parallel", "auto")
# Tolerance of the parallel sampler: far below what a planted bug makes, and far above rounding.
TIGHT = 1e-3


@pytest.fixture(scope="module")
def twins(zoo_bundle, tmp_path_factory):
    """A session of a bundle whose target is the shipped draft too, calibration included."""
    folder = shutil.copytree(zoo_bundle, tmp_path_factory.mktemp("twins") / "bundle")

    def change(values):
        values["models"]["target"] = values["models"]["draft"]
        for name in ("backbone", "head_modulation", "head_step"):
            values["graphs"][f"target.{name}"] = values["graphs"][f"draft.{name}"]
        file = folder / values["calibration"]["file"]
        with np.load(file) as arrays:
            kept = {name: arrays[name] for name in arrays if name.startswith("draft.")}
        np.savez(file, **kept, **{name.replace("draft.", "target."): kept[name] for name in kept})
        values["calibration"]["sha256"] = file_sha256(file)

    edit_manifest(folder, change)
    with Bundle.open(folder, verify_files="never").session() as session:
        yield session


@dataclasses.dataclass(frozen=True)
class Case:
    """How twins decode. A block of one AR step is conditioned as its draft was."""

    head: str
    verify: str
    cfg: float = 1.0
    head_steps: int | tuple[int, int] = 100
    gamma: int = 1
    # Evaluations of a batch of the target's chains at most, or 0 where those start from no
    # trajectory. One shows that nothing has to move, but where rounding is in the way.
    sweeps: float = 1.5

    def __str__(self):
        extra = ["guided"] * (self.cfg > 1) + ["annealed"] * isinstance(self.head_steps, tuple)
        return "-".join([self.head, self.verify, *extra])

    @property
    def options(self):
        return GenerateOptions(
            mode="csd", num_iter=NUM_ITER, gamma=self.gamma, verify=self.verify, cfg=self.cfg,
            head=self.head, head_steps=self.head_steps, prefill=0.0, inner_temperature=1.0,
            head_tolerance=TIGHT,
        )  # fmt: skip


ANNEALED = (24, 21)
# A parallel leader is settled within the tolerance, so that its follower may sweep once more.
CASES = [
    Case("sequential", "block", cfg=2.0, head_steps=20, sweeps=0),
    Case("sequential", "prefix", head_steps=ANNEALED, gamma=4, sweeps=0),
    Case("speculative", "block"),
    Case("speculative", "block", cfg=2.0, head_steps=ANNEALED),
    Case("speculative", "prefix", gamma=4),
    Case("speculative", "prefix", cfg=2.0, head_steps=ANNEALED, gamma=4),
    Case("parallel", "block", head_steps=ANNEALED, sweeps=2.5),
    Case("parallel", "prefix", cfg=2.0, head_steps=20, gamma=4, sweeps=2.5),
    # `auto` verifies blocks of many tokens sequentially.
    Case("auto", "block", sweeps=0),
    Case("auto", "prefix", cfg=2.0, head_steps=ANNEALED, gamma=4, sweeps=0),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture
def verified(monkeypatch):
    """Log ratios of what was verified, `[N]` of each verification, which must be aligned.

    The check is made where tokens are verified, so that a run with a bug ends at its first one.
    """
    seen, plain = [], reference.accept

    def checked(x, p, q, u, **kwargs):
        accepted, ratio = plain(x, p, q, u, **kwargs)
        # The aligned chain ends in the Gaussian that the leader's chain ended in.
        assert np.abs((p.mean - q.mean) / q.std).max() < 0.05
        np.testing.assert_allclose(p.std, q.std, rtol=1e-3)
        np.testing.assert_allclose(p.sum_log_std, q.sum_log_std, atol=1e-2)
        np.testing.assert_array_equal(np.float32(x), np.float32(q.mean))
        assert np.abs(ratio).max() < 0.05
        seen.append(ratio)
        return accepted, ratio

    monkeypatch.setattr(reference, "accept", checked)
    return seen


def check_aligned(session, case, verified):
    """Decode with twins and assert all that alignment promises."""
    verified.clear()
    result = session.generate(LABELS, case.options, seed=SEED)
    assert verified
    stats = result.stats
    assert stats.acceptance_rate == 1
    assert stats.resampled == stats.dropped == 0
    if case.sweeps:
        assert stats.aligned_evaluations <= case.sweeps * _chains_verified(stats, case)
    return result


def _chains_verified(stats, case):
    """How many batches of chains the verifications consist of."""
    if isinstance(case.head_steps, int) or case.gamma == 1:
        return stats.verifications
    first, last = case.head_steps
    steps = np.rint(np.linspace(first, last, NUM_ITER)).astype(int)
    drafted, batches, step = case.gamma, 0, 0
    while step < NUM_ITER:
        batches += len(set(steps[step : step + drafted]))
        step += drafted + 1  # prefix verification adds a step when all are accepted
    return batches * len(LABELS)


@every_case
def test_a_draft_that_is_the_target_is_verified_in_one_evaluation_and_reproduces_it(
    twins, verified, case
):
    made = check_aligned(twins, case, verified)
    alone = dataclasses.replace(case.options, mode="target")
    # Prefix verification decodes images one by one, which `auto` depends on.
    size = 1 if case.verify == "prefix" else len(LABELS)
    wanted = [
        twins.generate(LABELS[i : i + size], alone, seed=SEED, first_image=i).tokens
        for i in range(0, len(LABELS), size)
    ]
    np.testing.assert_allclose(made.tokens, np.concatenate(wanted), rtol=1e-3, atol=1e-3)


def test_a_block_that_is_guided_in_part_is_aligned(twins):
    case = Case("sequential", "prefix", cfg=3.0, head_steps=20, gamma=4)
    options = dataclasses.replace(case.options, cfg_interval=(0.3, 0.7))
    made = twins.generate(LABELS, options, seed=SEED)
    assert made.stats.acceptance_rate == 1
    alone = dataclasses.replace(options, mode="target")
    wanted = twins.generate(LABELS, alone, seed=SEED)
    np.testing.assert_allclose(made.tokens, wanted.tokens, rtol=1e-3, atol=1e-3)
    assert wanted.stats.guided_ar_steps == 3  # after which 5/8, 4/8 and 3/8 are left
    everywhere = dataclasses.replace(alone, cfg_interval=None)
    assert np.abs(twins.generate(LABELS, everywhere, seed=SEED).tokens - wanted.tokens).max() > 0.01


def test_an_accepted_token_is_the_draft_s_and_not_the_aligned_chain_s(twins):
    case = Case("speculative", "block")
    drafted = dataclasses.replace(case.options, mode="draft")
    made = twins.generate(LABELS, case.options, seed=SEED).tokens
    np.testing.assert_array_equal(made, twins.generate(LABELS, drafted, seed=SEED).tokens)


def fresh(values, axis):
    """Other normals than the leader's."""
    return np.random.default_rng(0).standard_normal(values.shape, dtype=np.float32)


def another_token(values, axis):
    return np.roll(values, 1, axis)


def off_by_one(values, axis):
    return np.roll(values, 1, 1 - axis)


@dataclasses.dataclass(frozen=True)
class Bug:
    """What is handed over in place of the leader's noise or trajectory."""

    field: str
    change: object

    def __str__(self):
        return f"{self.field}-{self.change.__name__}"


BUGS = [
    Bug("noise", fresh),
    Bug("noise", another_token),
    Bug("noise", off_by_one),
    Bug("trajectory", another_token),
    Bug("trajectory", off_by_one),
]


def plant(monkeypatch, change):
    """Let `change(decoder, positions, chains)` spoil what every aligned chain follows."""
    plain = Decoder._sample

    def spoiled(self, model, conditions, block, aligned_with=None):
        if aligned_with is not None:
            chains = change(self, aligned_with.positions, aligned_with.chains)
            aligned_with = dataclasses.replace(aligned_with, chains=chains)
        return plain(self, model, conditions, block, aligned_with)

    monkeypatch.setattr(Decoder, "_sample", spoiled)


def assert_found(twins, case, verified):
    with pytest.raises(AssertionError):
        check_aligned(twins, case, verified)


@pytest.mark.parametrize("bug", BUGS, ids=str)
@every_case
def test_a_planted_bug_is_found(twins, verified, monkeypatch, case, bug):
    if bug.field == "trajectory" and not case.sweeps:
        pytest.skip("a sequential chain starts from no trajectory")

    def change(decoder, positions, chains: Chains):
        values = getattr(chains, bug.field)
        axis = 0 if values.shape[0] == len(chains.tokens) else 1
        return dataclasses.replace(chains, **{bug.field: bug.change(values, axis)})

    plant(monkeypatch, change)
    assert_found(twins, case, verified)


@pytest.mark.parametrize("case", [c for c in CASES if c.head in ("speculative", "auto")], ids=str)
def test_the_seed_s_noise_in_place_of_the_recorded_one_is_found(twins, verified, monkeypatch, case):
    """Where the draft samples speculatively, its chain is not the one that its noise proposed."""

    def change(decoder, positions, chains: Chains):
        images = np.repeat(decoder.canvas.images, positions.shape[1])
        shape = chains.noise.shape[1:]
        noise = decoder.noise.per_step(images, positions.reshape(-1), *shape)
        return dataclasses.replace(chains, noise=noise)

    plant(monkeypatch, change)
    assert_found(twins, case, verified)


@every_case
def test_the_noise_of_another_image_is_found(twins, verified, monkeypatch, case):
    def change(decoder, positions, chains: Chains):
        images = np.repeat(decoder.canvas.images + 1, positions.shape[1])
        shape = chains.noise.shape[1:]
        noise = decoder.noise.per_step(images, positions.reshape(-1), *shape)
        return dataclasses.replace(chains, noise=noise)

    plant(monkeypatch, change)
    assert_found(twins, case, verified)
