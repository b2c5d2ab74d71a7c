"""Whole runs of models of other families, on ONNX Runtime, against the released code's numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from csd.runtime import Bundle, FixedNoise, GenerateOptions, OptionError
from csd.runtime.cli import main
from csd.runtime.decoding.demand import largest_calls
from csd.runtime.decoding.plan import Plan
from csd.runtime.schedule import ARSchedule
from csd.tools.bench.eager import EagerSampler

from ..helpers import DATA, WatchedBackend, assert_parity, failure
from ..kept import exported_once
from ..made import one_token

RUNS = {
    "plain": GenerateOptions(),
    "interval": GenerateOptions(cfg=4.0),
    "linear": GenerateOptions(
        cfg=3.0, cfg_schedule="linear", cfg_interval=(0, 1), num_iter=8, head="solver"
    ),
}
GUIDED = {"plain": 0, "interval": 3, "linear": 8}


@pytest.fixture(scope="module")
def emigm():
    with np.load(DATA / "emigm" / "reference.npz") as arrays:
        return dict(arrays)


def given(recorded):
    noise = recorded["noise"]
    return FixedNoise(recorded["orders"], noise, np.zeros((*noise.shape[:2], 0, noise.shape[2])))


@pytest.mark.parametrize("name", RUNS)
def test_emigm_reproduces_the_recorded_decodes(emigm, emigm_session, name):
    result = emigm_session.generate(emigm["labels"], RUNS[name], noise=given(emigm))
    assert_parity(result.tokens, emigm[f"ar_tokens_{name}"], f"tokens, {name}")
    stats, options = result.stats.to_dict(), result.options
    assert stats["guided_ar_steps"] == GUIDED[name]
    assert stats["ar_steps"] == options.num_iter
    # A row is evaluated twice in guided AR steps only.
    sizes = np.array(ARSchedule(64, options.num_iter, "exp").sizes)
    scales = emigm[f"ar_scales_{name}"]
    assert stats["head_rows"]["target"] == 3 * 8 * int(sizes @ np.where(scales == 1, 1, 2))
    assert stats["head_evaluations"]["target"] == 8 * options.num_iter
    assert result.to_dict()["options"]["head"] == "solver"


@pytest.mark.parametrize("name", RUNS)
def test_guidance_is_that_of_the_released_sampler(emigm, emigm_session, name):
    manifest = emigm_session.bundle.manifest
    plan = Plan.of(RUNS[name].resolved(manifest.target, manifest.head_steps), 64)
    np.testing.assert_allclose(plan.guidance, emigm[f"ar_scales_{name}"], rtol=1e-6)


def test_eager_makes_the_same_latents(emigm, emigm_session):
    from csd.models import load_mar

    config = emigm_session.bundle.manifest.target
    model = load_mar(DATA / "emigm" / "weights.pth", config)
    options = GenerateOptions(cfg=4.0, num_iter=6)
    wanted = emigm_session.generate(emigm["labels"], options, noise=given(emigm)).latents
    made = EagerSampler(model, threads=1).generate(emigm["labels"], options, given(emigm))
    assert_parity(made, wanted, "latents")


def test_an_image_of_a_solver_does_not_depend_on_its_batch(emigm_session):
    options = GenerateOptions(cfg=4.0, num_iter=6)
    together = emigm_session.generate([3, 4, 5], options, seed=2).tokens
    alone = emigm_session.generate([4], options, seed=2, first_image=1).tokens
    np.testing.assert_allclose(alone[0], together[1], rtol=1e-3, atol=1e-3)


def test_a_model_with_a_solver_can_draw_from_the_chain_too(emigm_session):
    made = {
        head: emigm_session.generate(
            [1, 2], GenerateOptions(head=head, head_steps=20, num_iter=4), seed=1
        )
        for head in ("sequential", "parallel")
    }
    assert made["sequential"].stats.head_evaluations["target"] == 4 * 20
    assert_parity(made["parallel"].tokens, made["sequential"].tokens, "parallel", 0.05)


def test_calls_of_a_run_with_and_without_guidance_are_announced(
    emigm_bundle, emigm_session, monkeypatch
):
    seen: dict[str, list[dict[str, int]]] = {}

    def watch(name, feeds, outputs):
        count = {"B": "label", "N": "z", "R": "x"}
        sizes = {key: len(feeds[name]) for key, name in count.items() if name in feeds}
        seen.setdefault(name.removeprefix("target_"), []).append(sizes)

    monkeypatch.setattr(
        "csd.runtime.session.create_backend",
        lambda folder, manifest, options, _: WatchedBackend(folder, manifest, watch),
    )
    options = GenerateOptions(cfg=4.0)
    with Bundle.open(emigm_bundle).session() as session:
        session.generate([1, 2], options, seed=3)
    assert [call["B"] for call in seen["backbone"]] == [2] * 11 + [4] * 3 + [2] * 2
    manifest = emigm_session.bundle.manifest
    plan = Plan.of(options.resolved(manifest.target, manifest.head_steps), 64)
    demand = largest_calls(plan, 2, {"target": emigm_session.model("target")})
    for kind, dims in (("backbone", "B"), ("head_modulation", "N"), ("head_step", "R")):
        largest = max(call[dims] for call in seen[kind])
        assert largest == demand[f"target.{kind}"].sizes[dims], kind


def test_a_bundle_says_how_its_model_samples(emigm_bundle):
    manifest = json.loads((emigm_bundle / "manifest.json").read_text(encoding="utf-8"))
    target = manifest["models"]["target"]
    assert (target["family"], target["mask_strategy"], target["num_iter"]) == ("emigm", "exp", 16)
    assert (manifest["head_steps"], manifest["calibration"]) == (8, None)
    inputs = manifest["graphs"]["target.head_modulation"]["inputs"]
    assert {tensor["name"]: tensor["dtype"] for tensor in inputs}["timestep"] == "float32"
    assert all(row["passed"] for row in manifest["parity"])


def test_a_solver_is_refused_by_a_model_that_has_none(tiny_session):
    with pytest.raises(OptionError, match=r'target was exported for whole timesteps.*"dpm-solver"'):
        tiny_session.generate([1], GenerateOptions(head="solver"))


def test_options_of_the_command_reach_the_run(emigm_bundle, tmp_path, capsys):
    stats = tmp_path / "stats.json"
    argv = [emigm_bundle, "--labels", "1", "--save-latents", tmp_path / "latents.npy", "--quiet"]
    given = ["--cfg", "4", "--cfg-interval", "0.5:1", "--mask-schedule", "log", "--num-iter", "4"]
    assert main([str(part) for part in [*argv, *given, "--stats", stats]]) == 0
    written = json.loads(stats.read_text(encoding="utf-8"))
    assert written["guided_ar_steps"] == 2  # 3/4 and 1/2 are left after them
    assert written["options"]["mask_schedule"] == "log"
    message = failure(main, [*argv, "--cfg-interval", "0.5"], capsys)
    assert message.startswith("cfg-interval is '0.5': give two shares")
    assert "temperature is 0.9" in failure(main, [*argv, "--temperature", "0.9"], capsys)


@pytest.fixture(scope="module")
def one_token_session(tmp_path_factory):
    with Bundle.open(
        exported_once(tmp_path_factory, "one-token", one_token) / "bundle"
    ).session() as s:
        yield s


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_images_of_one_token_are_the_recorded_ones(one_token_session, cfg):
    with np.load(DATA / "mar_one_token" / "reference.npz") as arrays:
        recorded = dict(arrays)
    noise = FixedNoise(recorded["orders"], recorded["noise"], recorded["inter_noise"])
    result = one_token_session.generate(
        recorded["labels"], GenerateOptions(cfg=cfg, head="sequential"), noise=noise
    )
    assert_parity(result.latents, recorded[f"ar_latents_{cfg}"], "latents")


@pytest.mark.parametrize("verify", ["block", "prefix"])
@pytest.mark.parametrize("mode", ["target", "draft", "csd"])
def test_images_of_one_token_are_decoded_in_every_mode(one_token_session, mode, verify):
    options = GenerateOptions(mode=mode, verify=verify, cfg=2.0, head="auto", prefill=0.0)
    result = one_token_session.generate([0, 4], options, seed=1)
    assert np.isfinite(result.tokens).all()
    assert result.tokens.shape == (2, 1, 4)
