from __future__ import annotations

import copy
import functools
import time

import numpy as np
import pytest
import torch

from csd.runtime import FixedNoise, GenerateOptions, NumericsError, SeededNoise
from csd.tools.bench import eager
from csd.tools.bench.eager import EagerSampler

from ...helpers import HEAD_STEPS, NUM_ITER, assert_parity


@pytest.fixture
def sampler(tiny_models):
    return EagerSampler(tiny_models["target"], threads=1)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["linear", "constant"])
def test_eager_reproduces_the_recorded_decodes(recorded, sampler, cfg, kind):
    noise = FixedNoise(recorded["orders"], recorded["noise"], recorded["inter_noise"])
    options = GenerateOptions(
        mode="target",
        num_iter=NUM_ITER,
        head_steps=HEAD_STEPS,
        cfg=cfg,
        cfg_schedule=kind,
        head="sequential",
    )
    latents = sampler.generate(recorded["labels"], options, noise)
    assert_parity(latents, recorded[f"ar_latents_{cfg}_{kind}"], "latents")


def test_eager_and_the_runtime_make_the_same_images_of_a_seed(sampler, tiny_session):
    options = GenerateOptions(
        mode="target", num_iter=5, head_steps=7, cfg=1.7, temperature=0.9, head="sequential"
    )
    labels = np.array([3, 10, 0])
    latents = sampler.generate(labels, options, SeededNoise(8))
    expected = tiny_session.generate(labels, options, seed=8).latents
    assert_parity(latents, expected, "latents")


def test_eager_evaluates_the_whole_head_at_every_head_step(sampler, monkeypatch):
    calls, head = [], sampler.model.head

    def counted(x, t, z):
        calls.append((len(x), int(t[0])))
        return head(x, t, z)

    monkeypatch.setattr(sampler, "_head", counted)
    options = GenerateOptions(mode="target", num_iter=2, head_steps=3, cfg=2.0, head="sequential")
    sampler.generate(np.array([1, 2]), options, SeededNoise(0))
    sizes = (2 * 2 * 5, 2 * 2 * 11)  # guidance, images, tokens of an AR step
    assert calls == [(size, t) for size in sizes for t in (999, 500, 0)]


def test_eager_says_where_its_time_goes(sampler):
    options = GenerateOptions(mode="target", num_iter=2, head_steps=3, head="sequential")
    sampler.generate(np.array([1]), options, SeededNoise(0))
    assert set(sampler.parts) == {"target backbone", "target head"}
    assert all(seconds > 0 for seconds in sampler.parts.values())
    assert sampler.device_memory_peak is sampler.device_seconds is None


def test_on_a_gpu_marks_are_events_of_the_device(monkeypatch):
    times = iter((10.0, 25.0, 31.0))

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.at = None

        def record(self):
            self.at = next(times)

        def elapsed_time(self, end):
            assert waits, "nobody waited for the device"
            return end.at - self.at

    waits = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    clock = eager._Clock(torch.device("cuda"))
    clock.mark("run")
    clock.mark("rest")
    assert clock.stop() == {"run": pytest.approx(0.015), "rest": pytest.approx(0.006)}


@pytest.mark.gpu
def test_on_a_gpu_the_whole_run_is_timed_by_events(tiny_models):
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")
    sampler = EagerSampler(copy.deepcopy(tiny_models["target"]), 1, device="cuda")
    options = GenerateOptions(mode="target", num_iter=2, head_steps=3, head="sequential")
    began = time.perf_counter()
    sampler.generate(np.array([1]), options, SeededNoise(0))
    wall = time.perf_counter() - began
    assert sum(sampler.parts.values()) < sampler.device_seconds < wall + 1e-3


@pytest.mark.parametrize(
    ("baseline", "least", "most"), [("eager-bf16", 1e-6, 0.2), ("compile", 0.0, 1e-3)]
)
def test_other_baselines_make_nearly_the_same_images(
    tiny_models, sampler, monkeypatch, baseline, least, most
):
    # What is tested is the sampler; PyTorch's own code generator takes a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model = copy.deepcopy(tiny_models["target"])
    options = GenerateOptions(mode="target", num_iter=2, head_steps=3, cfg=2.0, head="sequential")
    wanted, made = (
        one.generate(np.array([1, 2]), options, SeededNoise(3))
        for one in (sampler, EagerSampler(model, 1, baseline))
    )
    difference = np.abs(made - wanted).max() / np.abs(wanted).max()
    assert least <= difference <= most


def test_a_model_that_is_not_finite_makes_no_latents(tiny_models):
    model = copy.deepcopy(tiny_models["target"])
    with torch.no_grad():
        model.head_net.final_layer.linear.bias[0] = float("nan")
    options = GenerateOptions(mode="target", num_iter=1, head_steps=2, head="sequential")
    with pytest.raises(NumericsError, match="PyTorch's target returned values that are not finite"):
        EagerSampler(model, threads=1).generate(np.array([1]), options, SeededNoise(0))
