"""Runs with local AR steps, on the fixtures' models and ONNX Runtime."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from csd.runtime import Bundle, GenerateOptions, OptionError
from csd.runtime.backends.shapes import call_dims
from csd.runtime.cli import main as generate
from csd.runtime.decoding.demand import largest_calls
from csd.runtime.decoding.plan import Plan
from csd.runtime.session import Session
from csd.runtime.streaming.watch import Watch

from ..helpers import NUM_ITER, WatchedBackend, failure

LABELS = [3, 1, 4]
MODES = {
    "target": {"mode": "target"},
    "guided": {"mode": "target", "cfg": 2.0},
    "guided in the middle": {"mode": "target", "cfg": 2.0, "cfg_interval": (0.3, 0.7)},
    "draft": {"mode": "draft"},
    "parallel": {"mode": "target", "head": "parallel"},
    "speculative": {"mode": "target", "head": "speculative"},
    "annealed": {"mode": "target", "head_steps": (20, 12)},
    "block": {"mode": "csd", "gamma": 3},
    "guided block": {"mode": "csd", "gamma": 3, "cfg": 2.0, "head": "auto"},
    "prefix": {"mode": "csd", "gamma": 3, "verify": "prefix"},
}  # fmt: skip


def options(mode, **changes):
    return GenerateOptions(**{"num_iter": NUM_ITER, "head": "sequential", **MODES[mode], **changes})


@pytest.fixture
def watched(local_bundle, monkeypatch):
    """A session of the bundle whose calls are shown to `seen`."""
    calls = []
    monkeypatch.setattr(
        "csd.runtime.session.create_backend",
        lambda folder, manifest, *_: WatchedBackend(
            folder, manifest, lambda name, feeds, out: calls.append((name, feeds))
        ),
    )
    with Bundle.open(local_bundle, verify_files="never").session() as session:
        yield session, calls


@pytest.mark.parametrize("mode", MODES)
def test_with_every_step_full_the_tokens_are_those_of_the_plain_backbone(local_session, mode):
    wanted = local_session.generate(LABELS, options(mode), seed=3)
    made = local_session.generate(LABELS, options(mode, refresh=(2, 99)), seed=3)
    assert made.stats.local_steps == {}
    assert made.stats.backbone_rows == wanted.stats.backbone_rows
    scale = np.abs(wanted.tokens).max()
    error = np.abs(made.tokens - wanted.tokens).max() / scale
    print(f"{mode}: largest difference {error:.1e} of the largest token")
    assert error <= 1e-5


def test_a_refresh_at_every_step_runs_the_plain_backbone_and_no_other(watched):
    session, calls = watched
    for refresh in (1, (1, 3)):
        session.generate(LABELS, options("target", refresh=refresh), seed=3)
        assert {name for name, _ in calls if "backbone" in name} == {"target_backbone"}


@pytest.mark.parametrize("mode", MODES)
def test_local_steps_compute_fewer_rows_and_other_tokens(local_session, mode):
    wanted = local_session.generate(LABELS, options(mode), seed=3)
    # A verification is a call of the target: with a block of 3 AR steps there are few of them.
    made = local_session.generate(LABELS, options(mode, refresh=(2, 1)), seed=3)
    stats = made.stats
    assert sum(stats.local_steps.values()) > 0
    assert 0 < stats.backbone_rows_share < 1
    assert np.isfinite(made.tokens).all()
    if mode != "prefix":  # there the draft's calls alone are local
        assert np.abs(made.tokens - wanted.tokens).max() > 0
        assert set(stats.local_steps) == {*({"draft"} if mode == "draft" else {"target"}),
                                          *({"draft"} if "block" in mode else ())}  # fmt: skip
    else:
        assert set(stats.local_steps) == {"draft"}


@pytest.mark.parametrize("mode", ["target", "guided", "guided in the middle", "block", "prefix"])
def test_one_seed_is_one_image_whatever_the_batch(local_session, mode):
    given = options(mode, refresh=(3, 2))
    together = local_session.generate(LABELS, given, seed=3).tokens
    scale = np.abs(together).max()
    for image, label in enumerate(LABELS):
        alone = local_session.generate([label], given, seed=3, first_image=image).tokens
        np.testing.assert_allclose(alone[0], together[image], rtol=0, atol=2e-5 * scale)


def test_local_calls_follow_full_ones_and_take_what_these_kept(watched):
    session, calls = watched
    session.generate(LABELS, options("guided", refresh=(3, 2)), seed=3)
    names = [name for name, _ in calls if "backbone" in name]
    full, local = "target_backbone_full", "target_backbone_local"
    assert names == [full, full, local, local, full, local, local, full]
    new = [feeds["new"].shape for name, feeds in calls if name == local]
    sizes = Plan.of(options("guided").resolved(session.bundle.manifest.target, 20), 16)
    sizes = sizes.schedule.sizes
    assert new == [(6, sizes[1]), (6, sizes[1] + sizes[2]), (6, sizes[4]), (6, sizes[4] + sizes[5])]


def test_the_measured_error_decides_and_is_told_for_each_image(local_session):
    strict = local_session.generate(
        LABELS, options("target", refresh="auto", refresh_tolerance=1e-9), seed=3
    )
    loose = local_session.generate(
        LABELS, options("target", refresh="auto", refresh_tolerance=1e9), seed=3
    )
    plain = local_session.generate(LABELS, options("target"), seed=3)
    assert strict.stats.local_steps == {}
    scale = np.abs(plain.tokens).max()
    np.testing.assert_allclose(strict.tokens, plain.tokens, rtol=0, atol=1e-5 * scale)
    # Full ones first, then one that was measured as a second one.
    assert loose.stats.full_steps == {"target": 6}
    assert loose.stats.local_steps == {"target": 2}
    for result in (strict, loose):
        errors = result.stats.errors["target"]
        assert len(errors) == len(LABELS)
        assert all(error > 0 for error in errors)
        assert result.stats.largest_error == max(errors)
        assert result.stats.parts["refresh check"] > 0
    # What is measured is no part of what the head took.
    assert strict.stats.head_evaluations == plain.stats.head_evaluations
    assert strict.stats.aligned_evaluations == 0


def test_the_error_is_what_tokens_move_by_under_the_same_noise(local_session, watched):
    """Measured once more: the same run, its last step by a local call in place of a full one."""
    last = NUM_ITER - 1
    auto = options("target", refresh="auto", refresh_tolerance=1e-9)
    measured = local_session.generate([3], auto, seed=3)
    # Of the measured steps, 4 to the last: each follows full ones and is of one token or more.
    plan = Plan.of(options("target").resolved(local_session.bundle.manifest.target, 20), 16)
    moved = []
    plain = local_session.generate([3], options("target"), seed=3)
    for step in range(4, NUM_ITER):
        # Full until there, and this one local: what follows it differs, it alone is compared.
        one = local_session.generate([3], options("target", refresh=(2, step)), seed=3)
        positions = _positions(plan, step, plain)
        moved.append(one.tokens[0, positions] - plain.tokens[0, positions])
    assert len(moved) == last - 3
    wanted = float(np.sqrt(np.mean(np.square(np.concatenate(moved)))))
    assert measured.stats.errors["target"][0] == pytest.approx(wanted, rel=0.02)


def _positions(plan, step, result):
    from csd.runtime.noise import SeededNoise

    order = SeededNoise(3).orders(np.array([0]), 16)[0]
    start, stop = plan.schedule.bounds[step]
    return order[start:stop]


def test_progress_tells_local_steps_and_the_error(local_session):
    seen = []
    given = options("target", refresh="auto", refresh_tolerance=1e9)
    local_session.generate([3], given, seed=3, progress=seen.append)
    assert seen[-1].local == 2
    assert seen[3].error is None
    assert seen[-1].error == pytest.approx(seen[-1].error)
    assert seen[-1].error > 0


@pytest.mark.parametrize("mode", MODES)
def test_no_call_is_larger_than_was_announced(local_bundle, watched, monkeypatch, mode):
    session, calls = watched
    prepared, plain = [], WatchedBackend.prepare
    monkeypatch.setattr(
        WatchedBackend,
        "prepare",
        lambda self, demand: prepared.append(demand) or plain(self, demand),
    )
    session.generate(LABELS, options(mode, refresh="auto", refresh_tolerance=1e9), seed=3)
    announced = {name: largest.sizes for name, largest in prepared[0].items()}
    specs = session.bundle.manifest.graphs
    for call, feeds in calls:
        if call == "decoder":
            continue
        name = call.replace("_", ".", 1)
        dims = call_dims(name, specs[name], {key: value.shape for key, value in feeds.items()})
        assert not {key for key, size in dims.items() if size > announced[name][key]}, name


def test_a_backend_that_grants_fewer_sequences_gets_fewer_images_at_once(
    local_bundle, local_session, monkeypatch
):
    given, batches = options("guided", refresh=2), []

    class Small(WatchedBackend):
        def prepare(self, demand):
            granted = dict(super().prepare(demand))
            full = granted["target.backbone_full"]
            assert full["B"] == 6
            granted["target.backbone_full"] = {**full, "B": 5}
            return granted

    monkeypatch.setattr(
        "csd.runtime.session.create_backend",
        lambda folder, manifest, *_: Small(
            folder, manifest,
            lambda name, feeds, out: "backbone" in name and batches.append(len(feeds["query"])),
        ),
    )  # fmt: skip
    with Bundle.open(local_bundle, verify_files="never").session() as session:
        made = session.generate(LABELS, given, seed=3).tokens
    assert set(batches) == {4, 2}
    wanted = local_session.generate(LABELS, given, seed=3).tokens
    np.testing.assert_allclose(made, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_without_local_steps_nothing_more_is_planned(local_session):
    plan = Plan.of(options("target").resolved(local_session.bundle.manifest.target, 20), 16)
    models = {"target": local_session.model("target")}
    assert "target.backbone_full" not in largest_calls(plan, 2, models)
    local = largest_calls(plan, 2, models, local=True)
    assert "target.backbone" not in local
    assert local["target.backbone_full"].reader == "target.backbone_local"


def test_the_first_image_with_local_steps_is_not_charged_for_opening_graphs(
    local_bundle, monkeypatch
):
    events, plain, clock = [], Session.graph, Watch.__init__
    monkeypatch.setattr(
        Session,
        "graph",
        lambda self, *args, **kw: events.append(args[0]) or plain(self, *args, **kw),
    )
    monkeypatch.setattr(
        Watch, "__init__", lambda self, backend: events.append("clock") or clock(self, backend)
    )
    with Bundle.open(local_bundle, verify_files="never").session() as session:
        events.clear()
        for _ in range(2):
            session.generate([1], options("target", refresh=2))
    assert events == ["target.backbone_full", "target.backbone_local", "clock", "clock"]


@pytest.mark.parametrize("mode", ["target", "draft", "csd"])
def test_a_bundle_without_the_graphs_opens_and_names_the_command(tiny_session, mode):
    given = GenerateOptions(mode=mode, num_iter=4, refresh=2)
    with pytest.raises(OptionError, match="csd-export --local-steps, or give --refresh 1") as error:
        tiny_session.generate([1], given)
    assert "\n" not in str(error.value)
    tiny_session.generate([1], dataclasses.replace(given, refresh=(1, 9)))


def test_the_command_takes_the_option_and_writes_the_figures(
    local_bundle, tiny_bundle, tmp_path, capsys
):
    out, stats = tmp_path / "x.png", tmp_path / "x.json"
    argv = [str(local_bundle), "--labels", "3,1", "--num-iter", "8", "--out", str(out)]
    argv += ["--stats", str(stats)]
    assert generate([*argv, "--refresh", "2:3", "--head", "sequential"]) == 0
    assert "3 local steps, " in capsys.readouterr().out
    values = json.loads(stats.read_text(encoding="utf-8"))
    assert values["options"]["refresh"] == [2, 3]
    assert (values["full_steps"], values["local_steps"]) == ({"target": 5}, {"target": 3})
    assert values["backbone_rows"]["target"] < values["backbone_rows_if_all_full"]["target"]
    assert values["refresh_error"] == {}
    assert generate([*argv, "--refresh", "auto", "--refresh-tolerance", "1e9"]) == 0
    assert ", error " in capsys.readouterr().out
    values = json.loads(stats.read_text(encoding="utf-8"))
    assert len(values["refresh_error"]["target"]) == 2
    old = [str(tiny_bundle), *argv[1:]]
    assert "csd-export --local-steps" in failure(generate, [*old, "--refresh", "2"], capsys)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0", "give at least 1"), ("2:0", "give at least 1"), ("x", "give N, N:F"),
        ("", "give N, N:F"), ("2:", "give N, N:F"), ("2:3:4", "give N, N:F"),
        ("-1", "give N, N:F"), ("1.5", "give N, N:F"), ("9" * 12, "give N, N:F"),
        ("AUTO", "give N, N:F"),
    ],
)  # fmt: skip
def test_a_bad_value_is_one_line(local_bundle, tmp_path, capsys, text, wanted):
    argv = [local_bundle, "--labels", "3", f"--refresh={text}", "--out", tmp_path / "x.png"]
    message = failure(generate, argv, capsys)
    assert message.startswith("refresh is ")
    assert wanted in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf"])
def test_a_bad_tolerance_is_one_line(local_bundle, tmp_path, capsys, text):
    argv = [local_bundle, "--labels", "3", "--refresh", "auto", f"--refresh-tolerance={text}"]
    message = failure(generate, [*argv, "--out", tmp_path / "x.png"], capsys)
    assert "refresh-tolerance is " in message
    assert not list(tmp_path.iterdir())
