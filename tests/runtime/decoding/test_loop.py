from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from csd.runtime import (
    Bundle,
    FixedNoise,
    GenerateOptions,
    NumericsError,
    OptionError,
    SeededNoise,
    Stats,
)
from csd.runtime.decoding.loop import decode
from csd.runtime.decoding.plan import Canvas, Plan
from csd.runtime.schedule import ARSchedule

from ...helpers import (
    DATA,
    NUM_ITER,
    ScriptedNoise,
    WatchedBackend,
    assert_parity,
    draft_is_target,
    tiny_config,
)
from ...mar_reference import Reference, masked_after
from ...pairwise import pairwise
from . import toy


class PlainCSD:
    """Continuous speculative decoding of one image, step for step, with verdicts given.

    A rejected token becomes the target's aligned mean: next to tokens of these sizes, the last
    step's standard deviation vanishes.
    """

    def __init__(self, recorded, num_iter=NUM_ITER, cfg=1.0):
        self.models = {}
        for role in ("target", "draft"):
            state = torch.load(DATA / f"{role}.pth", weights_only=True)["model_ema"]
            self.models[role] = Reference(tiny_config(role), state)
        arrays = (recorded[name][0] for name in ("orders", "noise", "inter_noise"))
        self.order, self.initial, self.per_step = map(torch.from_numpy, arrays)
        self.label = torch.from_numpy(recorded["labels"][:1])
        self.num_iter, self.cfg = num_iter, cfg
        left = masked_after(16, num_iter)
        self.guidance = [1 + (cfg - 1) * (16 - m) / 16 for m in left]
        edges = [16, *left[:-1], 0]
        self.at = [self.order[b:a] for a, b in itertools.pairwise(edges)]
        self.known = [self.order[a:] for a in edges[:-1]]

    def predict(self, role, tokens, prefix, step):
        """Tokens of an AR step given those that are known before AR step `prefix`."""
        model, at = self.models[role], self.at[step]
        mask = torch.ones(1, 16)
        mask[0, self.known[prefix]] = 0
        zs = [model.condition(tokens[None], mask, label)[0, at] for label in (self.label, [10])]
        other = None if self.cfg == 1 else zs[1]
        args = (zs[0], self.initial[at], self.per_step[at], 1.0, other, self.guidance[step])
        return model.chain(*args).tokens

    def decode(self, verify, gamma, prefill, rejected):
        tokens = torch.zeros(16, 16, dtype=torch.float64)
        counts = dict.fromkeys(
            ("drafted", "accepted", "resampled", "dropped", "verifications", "ar_steps"), 0
        )
        step = math.ceil(prefill * self.num_iter)
        for early in range(step):
            tokens[self.at[early]] = self.predict("target", tokens, early, early)
        counts["ar_steps"] = step
        while step < self.num_iter:
            block = range(step, min(step + gamma, self.num_iter))
            drafted = tokens.clone()
            for k in block:
                drafted[self.at[k]] = self.predict("draft", drafted, k, k)
            counts["ar_steps"] += len(block)
            counts["verifications"] += 1
            counts["drafted"] += sum(len(self.at[k]) for k in block)
            before, tokens = tokens, drafted
            means = {
                k: self.predict("target", drafted, k, k)
                if verify == "prefix"
                else self.predict("target", before, step, k)
                for k in block
            }
            for k in block:
                bad = [i for i, p in enumerate(self.at[k].tolist()) if p in rejected]
                tokens[self.at[k][bad]] = means[k][bad]
                counts["resampled"] += len(bad)
                counts["accepted"] += len(self.at[k]) - len(bad)
                step = k + 1
                if bad and verify == "prefix":
                    counts["dropped"] += sum(len(self.at[j]) for j in range(step, block.stop))
                    break
            else:
                if verify == "prefix" and step < self.num_iter:
                    tokens[self.at[step]] = self.predict("target", tokens, step, step)
                    counts["ar_steps"] += 1
                    step += 1
        return tokens, counts


def _scripted(recorded, rejected):
    arrays = (recorded[name][:1] for name in ("orders", "noise", "inter_noise"))
    return ScriptedNoise(*arrays, rejected=[(0, position) for position in rejected])


RANDOM = [sorted(np.random.default_rng(k).choice(16, size=k, replace=False)) for k in (2, 4, 8)]


@pytest.mark.parametrize("verify", ["block", "prefix"])
@pytest.mark.parametrize(
    ("gamma", "prefill", "cfg", "rejected"),
    [
        (3, 0.0, 1.0, []),
        (3, 0.15, 1.0, range(16)),
        (2, 0.05, 2.0, RANDOM[0]),
        (4, 0.5, 1.0, RANDOM[1]),
        (8, 0.0, 1.0, RANDOM[2]),
        (1, 0.0, 1.0, RANDOM[1]),
        (5, 1.0, 1.0, range(16)),
    ],
)
def test_speculative_decoding_follows_the_algorithm_step_for_step(
    recorded, tiny_session, verify, gamma, prefill, cfg, rejected
):
    expected, counts = PlainCSD(recorded, cfg=cfg).decode(verify, gamma, prefill, set(rejected))
    options = GenerateOptions(
        mode="csd",
        num_iter=NUM_ITER,
        gamma=gamma,
        prefill=prefill,
        verify=verify,
        cfg=cfg,
        head="sequential",
    )
    result = tiny_session.generate(
        recorded["labels"][:1], options, noise=_scripted(recorded, rejected)
    )
    assert_parity(result.tokens[0], expected, "tokens")
    assert {name: getattr(result.stats, name) for name in counts} == counts


def test_prefix_verification_drops_what_followed_a_rejection_and_drafts_it_again(
    recorded, tiny_session
):
    bounds = ARSchedule(16, NUM_ITER).bounds
    rejected = recorded["orders"][0, bounds[1][0] : bounds[1][1]]  # all of AR step 1
    options = GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=3, prefill=0.0, verify="prefix", head="sequential"
    )
    stats = tiny_session.generate(
        recorded["labels"][:1], options, noise=_scripted(recorded, rejected)
    ).stats
    # Blocks 0 1 2, then 2 3 4 with the target's bonus step 5, then 6 7 without one.
    assert [stop - start for start, stop in bounds] == [1, 1, 1, 2, 3, 2, 3, 3]
    assert stats.drafted_by_step.tolist() == [1, 1, 2, 2, 3, 0, 3, 3]
    assert stats.accepted_by_step.tolist() == [1, 0, 1, 2, 3, 0, 3, 3]
    assert (stats.dropped, stats.resampled, stats.verifications) == (1, 1, 3)
    assert stats.ar_steps == 3 + 3 + 1 + 2


def test_block_verification_never_drops_a_token(recorded, tiny_session):
    options = GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=8, prefill=0.0, head="sequential"
    )
    stats = tiny_session.generate(
        recorded["labels"][:1], options, noise=_scripted(recorded, range(16))
    ).stats
    assert (stats.dropped, stats.resampled, stats.drafted, stats.verifications) == (0, 16, 16, 1)


@pytest.fixture
def watched(tiny_bundle, monkeypatch):
    """Open a session whose calls are watched."""

    def opened(watch, bundle=tiny_bundle):
        monkeypatch.setattr(
            "csd.runtime.session.create_backend",
            lambda folder, manifest, options, _: WatchedBackend(
                folder, manifest, watch, options.threads
            ),
        )
        return Bundle.open(bundle).session()

    return opened


def test_prefix_verification_shows_the_target_every_drafted_prefix_in_one_call(recorded, watched):
    calls = []

    def watch(graph, feeds, outputs):
        if graph == "target_backbone":
            calls.append({name: value.copy() for name, value in feeds.items()})

    options = GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=4, prefill=0.0, verify="prefix", head="sequential"
    )
    with watched(watch) as session:
        noise = _scripted(recorded, [])
        tokens = session.generate(recorded["labels"][:1], options, noise=noise).tokens[0]
    order, bounds = recorded["orders"][0], ARSchedule(16, NUM_ITER).bounds
    for call, steps in zip(calls, (range(5), range(5, 8)), strict=True):
        assert len(call["visible"]) == len(steps)
        for row, step in enumerate(steps):
            start, stop = bounds[step]
            seen = call["visible"][row]
            assert sorted(seen[seen < 16]) == sorted(order[stop:])
            np.testing.assert_array_equal(call["tokens"][row][seen < 16], tokens[seen[seen < 16]])
            assert set(order[start:stop]) <= set(call["query"][row])


def test_block_verification_shows_the_target_only_the_old_prefix(recorded, watched):
    calls = []

    def watch(graph, feeds, outputs):
        if graph.endswith("backbone"):
            calls.append((graph[:6], feeds["visible"].shape[1], feeds["query"].shape[1]))

    options = GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=3, prefill=0.25, head="sequential"
    )
    with watched(watch) as session:
        session.generate(recorded["labels"], options, seed=1)
    assert calls == [
        ("target", 0, 1), ("target", 1, 1),
        ("draft_", 2, 1), ("draft_", 3, 2), ("draft_", 5, 3), ("target", 2, 6),
        ("draft_", 8, 2), ("draft_", 10, 3), ("draft_", 13, 3), ("target", 8, 8),
    ]  # fmt: skip


@pairwise(
    "how, acceptance, cfg",
    [("block", 1, 1.0), ("block", 1, 42.0), ("prefix", 1, 42.0), ("prefix", 4, 42.0),
     ("prefix", 32, 42.0)],
    ["paper", "relaxed"], [1.0, 2.0],
)  # fmt: skip
def test_a_draft_that_is_the_target_is_accepted_and_reproduces_it(
    make_bundle, how, acceptance, cfg
):
    verify, gamma, temperature = how
    options = GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=gamma, verify=verify, acceptance=acceptance, cfg=cfg,
        inner_temperature=temperature, head="sequential",
    )  # fmt: skip
    alone = GenerateOptions(mode="target", num_iter=NUM_ITER, cfg=cfg, head="sequential")
    with Bundle.open(make_bundle(draft_is_target)).session() as session:
        expected = session.generate([4, 8, 10], alone, seed=3)
        result = session.generate([4, 8, 10], options, seed=3)
    assert result.stats.acceptance_rate == 1
    assert result.stats.resampled == result.stats.dropped == 0
    assert_parity(result.tokens, expected.tokens, "tokens")


def test_a_draft_that_is_the_target_is_accepted_where_a_block_begins(make_bundle):
    options = GenerateOptions(
        mode="csd",
        num_iter=NUM_ITER,
        gamma=3,
        prefill=0.0,
        inner_temperature=1.0,
        head="sequential",
    )
    with Bundle.open(make_bundle(draft_is_target)).session() as session:
        stats = session.generate([4, 8], options, seed=3).stats
    rates = stats.accepted_by_step / stats.drafted_by_step
    # Later steps of a block differ: the draft saw its own tokens there, the target did not.
    assert rates[[0, 3, 6]].tolist() == [1, 1, 1]
    assert rates.min() < 1


@pairwise(
    "verify, acceptance, temperature", ["block", "prefix"], ["paper", "relaxed"], [1.0, 42.0, 1e9]
)
def test_statistics_are_consistent(tiny_session, verify, acceptance, temperature):
    options = GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=3, verify=verify, acceptance=acceptance, prefill=0.05,
        inner_temperature=temperature, head_steps=5, head="sequential",
    )  # fmt: skip
    stats = tiny_session.generate([1, 2, 3], options, seed=9).stats
    assert stats.drafted == stats.accepted + stats.resampled + stats.dropped
    assert stats.drafted_by_step.sum() == stats.drafted
    assert stats.accepted_by_step.sum() == stats.accepted
    assert stats.drafted_by_step[0] == 0  # pre-filled
    assert stats.unreachable <= stats.resampled
    if verify == "block":
        assert (stats.dropped, stats.drafted, stats.verifications) == (0, 3 * 15, 3)
        assert stats.head_evaluations == {"target": 5 * (1 + 3), "draft": 5 * 7}
        assert stats.head_rows == {"target": 5 * 3 * 16, "draft": 5 * 3 * 15}
    assert 0 < sum(stats.parts.values()) <= stats.seconds
    report = stats.to_dict()
    assert report["acceptance_rate"] == pytest.approx(stats.accepted / stats.drafted)
    assert report["acceptance_rate_by_ar_step"][0] is None


def test_guidance_doubles_the_rows_of_the_head_and_not_its_evaluations(tiny_session):
    made = {}
    for cfg in (1.0, 2.0):
        options = GenerateOptions(
            mode="target", num_iter=4, head_steps=5, cfg=cfg, head="sequential"
        )
        made[cfg] = tiny_session.generate([1], options).stats
    assert made[1.0].head_evaluations == made[2.0].head_evaluations == {"target": 20}
    assert made[2.0].head_rows["target"] == 2 * made[1.0].head_rows["target"]


@pytest.mark.parametrize(
    ("mode", "prefill", "expected"),
    [("target", 0.05, ["target"]), ("draft", 0.05, ["draft"]), ("csd", 1.0, ["target"])],
)
def test_models_that_a_mode_does_not_need_are_not_run(watched, mode, prefill, expected):
    seen = set()
    with watched(lambda graph, feeds, outputs: seen.add(graph.split("_")[0])) as session:
        options = GenerateOptions(
            mode=mode, prefill=prefill, num_iter=3, head_steps=2, head="sequential"
        )
        stats = session.generate([1], options).stats
    assert seen == {*expected, "decoder"}
    assert stats.acceptance_rate is None


@pytest.mark.parametrize("options", [
    GenerateOptions(mode="target", num_iter=5, head_steps=2, head="sequential"),
    GenerateOptions(mode="csd", num_iter=NUM_ITER, head_steps=2, gamma=3, head="sequential"),
    GenerateOptions(
        mode="csd", num_iter=NUM_ITER, head_steps=2, gamma=3, verify="prefix", head="sequential"
    ),
], ids=["target", "block", "prefix"])  # fmt: skip
def test_progress_runs_from_the_first_ar_step_to_the_last(tiny_session, options):
    seen = []
    stats = tiny_session.generate([1, 2], options, progress=seen.append).stats
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total
    assert seen[-1].total == options.num_iter * (2 if options.verify == "prefix" else 1)
    assert (seen[-1].drafted, seen[-1].accepted) == (stats.drafted, stats.accepted)


@pairwise("role, output, value", ["target", "draft"], ["eps", "v"], [np.nan, np.inf, -np.inf])
def test_a_head_that_is_not_finite_is_named_with_its_place(watched, role, output, value):
    ar_steps = []

    def spoil(graph, feeds, outputs):
        if graph == f"{role}_backbone":
            ar_steps.append(graph)
        if graph == f"{role}_head_step" and len(ar_steps) == 3 and (feeds["step"] == 7).any():
            outputs[output][-1, 3] = value

    options = GenerateOptions(mode=role, num_iter=NUM_ITER, head="sequential")
    with watched(spoil) as session, pytest.raises(NumericsError) as error:
        session.generate([1, 2], options)
    assert f"{role}.head_step" in str(error.value)
    assert "AR step 2, head step 7" in str(error.value)


@pytest.mark.parametrize("mode", ["target", "csd"])
def test_a_backbone_that_is_not_finite_is_named_with_its_place(watched, mode):
    calls = []

    def spoil(graph, feeds, outputs):
        if graph == "target_backbone":
            calls.append(graph)
            if len(calls) == 2:
                outputs["z"][0, 0, 0] = np.nan

    options = GenerateOptions(
        mode=mode, num_iter=NUM_ITER, gamma=3, prefill=0.05, head_steps=2, head="sequential"
    )
    with (
        watched(spoil) as session,
        pytest.raises(NumericsError, match=r"target\.backbone") as error,
    ):
        session.generate([1], options)
    assert "AR step 1" in str(error.value)


def test_a_decoder_that_is_not_finite_is_named(watched):
    def spoil(graph, feeds, outputs):
        if graph == "decoder":
            outputs["image"][0, 0, 0, 0] = np.nan

    options = GenerateOptions(mode="target", num_iter=2, head_steps=2, head="sequential")
    with watched(spoil) as session, pytest.raises(NumericsError, match="decoder"):
        session.generate([1], options)


def test_large_but_finite_outputs_are_not_an_error(watched):
    def swell(graph, feeds, outputs):
        if graph == "target_head_step":
            outputs["v"][:] = 0
            outputs["eps"][:, :2] = 3e38  # their sum overflows
            outputs["eps"][:, 2:] = 0

    options = GenerateOptions(mode="target", num_iter=1, head_steps=1, head="sequential")
    noise = FixedNoise(np.arange(16)[None], np.zeros((1, 16, 16)), np.zeros((1, 16, 1, 16)))
    with watched(swell) as session, np.errstate(over="ignore"):
        session.generate([1], options, noise=noise)


class PlainToys:
    """`PlainCSD` of toys, for one image: every token from the definition, one at a time."""

    def __init__(self, image, label, plan, noise, gains):
        self.plan, self.gains, self.label, self.image = plan, gains, label, image
        order = noise.orders(np.array([image]), toy.LENGTH)[0]
        masked = [toy.LENGTH, *masked_after(toy.LENGTH, plan.num_iter)[:-1], 0]
        self.at = [order[stop:start] for start, stop in itertools.pairwise(masked)]
        self.noise, self.advanced, self.drafted_noise = noise, [], {}

    def predict(self, role, tokens, prefix, step, together=None):
        """`together` are the AR steps of one call; all have guidance where one has."""
        guided = self.plan.guided(together or range(step, step + 1))
        made = {}
        known = [(int(p), tokens[p]) for at in self.at[:prefix] for p in at]
        steps = int(self.plan.head_steps[step])
        for position in self.at[step]:
            where = np.array([self.image]), np.array([position])
            initial = self.noise.initial(*where, toy.CHANNELS)[0]
            per_step = self.noise.per_step(*where, steps, toy.CHANNELS)[0]
            if role == "aligned":  # with the noise that the draft's chain says it was made with
                per_step = per_step + np.float32(0.01)
            made[position] = toy.token(
                toy.context_of(known), position, self.label, self.plan.guidance[step],
                guided, self.gains["target" if role == "aligned" else role], initial,
                per_step[1:],
            )  # fmt: skip
        return made

    def decode(self, rejected):
        options, num_iter = self.plan.options, self.plan.num_iter
        tokens, counts = np.zeros((toy.LENGTH, toy.CHANNELS)), dict.fromkeys(COUNTS, 0)

        def put(made):
            for position, value in made.items():
                tokens[position] = value

        step = num_iter
        if options.mode == "csd":
            step = math.ceil(options.prefill * num_iter)
        for early in range(step):
            put(self.predict("target" if options.mode == "csd" else options.mode, tokens, early,
                             early))  # fmt: skip
            self.advanced.append(1)
        counts["ar_steps"] = step
        while step < num_iter:
            first, block = step, range(step, min(step + options.gamma, num_iter))
            before = tokens.copy()
            for k in block:
                put(self.predict("draft", tokens, k, k))
            prefix = options.verify == "prefix"
            means = {
                k: self.predict("aligned", *((tokens, k) if prefix else (before, step)), k, block)
                for k in block
            }
            counts["verifications"] += 1
            counts["ar_steps"] += len(block)
            counts["drafted"] += sum(len(self.at[k]) for k in block)
            failed = False
            for k in block:
                bad = {p: means[k][p] for p in self.at[k] if (self.image, int(p)) in rejected}
                put(bad)
                counts["resampled"] += len(bad)
                counts["accepted"] += len(self.at[k]) - len(bad)
                step = k + 1
                if failed := prefix and bool(bad):
                    counts["dropped"] += sum(len(self.at[j]) for j in range(step, block.stop))
                    break
            self.advanced.append(step - first)
            if prefix and not failed and step < num_iter:
                put(self.predict("target", tokens, step, step))
                counts["ar_steps"] += 1
                step += 1
                self.advanced.append(1)
        return tokens, counts


COUNTS = ("drafted", "accepted", "resampled", "dropped", "verifications", "ar_steps")
TOY_CONFIG = SimpleNamespace(seq_len=toy.LENGTH, token_dim=toy.CHANNELS)


class ScriptedSeed(SeededNoise):
    """Noise of a seed with chosen verdicts."""

    def accept(self, images, positions):
        pairs = zip(images.tolist(), positions.tolist(), strict=True)
        return np.array([np.nextafter(1.0, 0.0) if pair in REJECTED else 0.0 for pair in pairs])


REJECTED = {(5, 3), (5, 11), (6, 0), (6, 7), (6, 8)}
GAINS = {"target": 0.8, "draft": 1.3}


def toys(**changes):
    return {role: toy.Toy(role, gain, **changes) for role, gain in GAINS.items()}


def decoded(options, images, models=None, **limits):
    plan, noise = Plan.of(toy.resolved(options), toy.LENGTH), ScriptedSeed(3)
    images = np.array(images)
    canvas = Canvas.blank(TOY_CONFIG, noise, images % 4, images)
    stats = Stats(plan.num_iter)
    changes = list(decode(canvas, models or toys(), plan, noise, stats, **limits))
    settled = [0, *(change.settled for change in changes if change.kind != "drafted")]
    return canvas, stats, [int(n) for n in np.diff(settled)]


@pairwise(
    "how, images, cfg, head_steps, gamma, prefill",
    [("target", "block"), ("draft", "block"), ("csd", "block"), ("csd", "prefix")],
    [(5,), (6,), (5, 6), (9,)], [1.0, 2.5], [4, (6, 3)], [1, 3, 20], [0.0, 0.3],
)  # fmt: skip
def test_every_mode_decodes_toys_as_the_definition_does(
    how, images, cfg, head_steps, gamma, prefill
):
    options = GenerateOptions(
        mode=how[0], verify=how[1], num_iter=NUM_ITER, cfg=cfg, head_steps=head_steps, gamma=gamma,
        prefill=prefill, inner_temperature=1.0,
    )  # fmt: skip
    images = images[:1] if how[1] == "prefix" else images
    canvas, stats, advanced = decoded(options, images)
    total = dict.fromkeys(COUNTS, 0)
    for row, image in enumerate(images):
        plain = PlainToys(
            image, image % 4, Plan.of(toy.resolved(options), toy.LENGTH), ScriptedSeed(3), GAINS
        )
        tokens, counts = plain.decode(REJECTED)
        np.testing.assert_allclose(canvas.tokens[row], tokens, atol=1e-4)
        for name in COUNTS:
            together = name in ("verifications", "ar_steps")
            total[name] = counts[name] if together else total[name] + counts[name]
        assert advanced == plain.advanced
    assert {name: getattr(stats, name) for name in COUNTS} == total
    assert stats.drafted_by_step.sum() == stats.drafted
    assert stats.accepted_by_step.sum() == stats.accepted
    assert stats.unreachable == 0


def test_models_are_told_what_they_are_called_for():
    options = GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=3, prefill=0.3, head_steps=4, inner_temperature=1.0
    )
    sizes, models = ARSchedule(toy.LENGTH, NUM_ITER).sizes, toys()
    decoded(options, [5, 6], models, most_tokens={"draft": 7})
    drafted = [(f"AR step {k}", 2 * size, size, 7, False) for k, size in enumerate(sizes) if k >= 3]
    assert models["draft"].samples == drafted
    early = [(f"AR step {k}", 2 * sizes[k], sizes[k], None, False) for k in range(3)]
    blocks = [
        (f"AR step {k}", 2 * sum(sizes[k : k + 3]), sum(sizes[k : k + 3]), None, True)
        for k in (3, 6)
    ]
    assert models["target"].samples == [*early, *blocks]
    assert models["target"].calls == [(f"AR step {k}", 2) for k in (0, 1, 2, 3, 6)]


@pytest.mark.parametrize(("given", "told"), [({}, 2), ({"at_once": 5}, 5)])
def test_models_are_told_how_many_images_a_run_decodes_at_once(given, told):
    models = toys()
    options = GenerateOptions(mode="csd", num_iter=NUM_ITER, gamma=3, head_steps=4)
    decoded(options, [5, 6], models, **given)
    for model in models.values():
        assert set(model.at_once) == {told}


def test_prefixes_are_told_apart_and_stand_in_one_call():
    options = GenerateOptions(
        mode="csd", verify="prefix", num_iter=NUM_ITER, gamma=3, prefill=0.0, head_steps=4,
        inner_temperature=1.0,
    )  # fmt: skip
    models = toys()
    decoded(options, [9], models)  # nothing is rejected
    # Three prefixes and that of the step after them, twice, but for the last.
    assert models["target"].calls == [("AR step 0", 4), ("AR step 4", 4)]
    assert [call[-1] for call in models["target"].samples] == [True, False, True, False]


@pytest.mark.parametrize("verify", ["block", "prefix"])
def test_residuals_out_of_reach_are_counted(verify):
    options = GenerateOptions(
        mode="csd", verify=verify, num_iter=NUM_ITER, gamma=NUM_ITER, prefill=0.0, head_steps=4,
        inner_temperature=1.0,
    )  # fmt: skip
    models = {
        "target": toy.Toy("target", std=1e6, log_std=100.0), "draft": toy.Toy("draft", std=1e6)
    }  # fmt: skip

    class NeverSure(SeededNoise):
        def accept(self, images, positions):
            return np.full(len(images), 0.5)

    plan, noise, images = Plan.of(toy.resolved(options), toy.LENGTH), NeverSure(3), np.array([5])
    canvas, stats = Canvas.blank(TOY_CONFIG, noise, images, images), Stats(NUM_ITER)
    for _ in decode(canvas, models, plan, noise, stats):
        pass
    assert stats.accepted == 0
    # What is dropped was given up too, before it was known that it would be.
    assert stats.unreachable == stats.resampled + stats.dropped == stats.drafted


@pytest.mark.parametrize(
    ("mode", "there", "said"),
    [
        ("target", "draft", "mode target needs a target, and there is none"),
        ("draft", "target", "mode draft needs a draft, and there is none"),
        ("csd", "target", "mode csd needs a draft, and there is none"),
    ],
)
def test_a_model_that_is_not_there_is_named(mode, there, said):
    options = GenerateOptions(mode=mode, num_iter=2, head_steps=2)
    with pytest.raises(OptionError) as error:
        decoded(options, [5], {there: toy.Toy(there)})
    assert str(error.value) == said
