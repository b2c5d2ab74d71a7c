from __future__ import annotations

import dataclasses
import gzip
import json
import math
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from csd.models import MAR
from csd.models.kl_decoder import load_kl_decoder
from csd.models.training.__main__ import build_parser, run
from csd.models.training.classifier import Classifier, classify, load_classifier
from csd.models.training.data import framed, load_images, read_idx
from csd.models.training.latents import Latents, load_latents, save_latents
from csd.models.training.loop import RunFiles
from csd.models.training.loss import DiffusionLoss
from csd.models.training.rate import warmup_stable_decay
from csd.models.training.silent_channels import without_silent_channels
from csd.models.training.trainer import (
    Recipe,
    TokenPosteriors,
    draw,
    first_step_error,
    repeated_head,
    train,
)
from csd.runtime import CsdError, MARConfig
from csd.runtime.command.parser import run_command

from ..helpers import failure, run_python
from ..mar_reference import respaced

CONFIG = MARConfig(
    img_size=8, vae_stride=1, patch_size=2, vae_embed_dim=1, class_num=3, buffer_size=2,
    encoder_embed_dim=16, encoder_depth=1, encoder_num_heads=2, decoder_embed_dim=16,
    decoder_depth=1, decoder_num_heads=2, diffloss_d=1, diffloss_w=16, beta_schedule="linear",
    image_kind="pixel",
)  # fmt: skip
RECIPE = Recipe(steps=6, decay_steps=2, batch=4, warmup=2, head_repeats=2, seed=5)
MEANS = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LATENTS = Latents(MEANS, torch.full_like(MEANS, 0.1))
LABELS = torch.arange(20) % 3


def _train(folder, recipe=RECIPE, config=CONFIG, latents=LATENTS, **options):
    folder.mkdir(exist_ok=True)
    files = RunFiles(folder / "checkpoint", folder / "log.jsonl")
    options = {"save_every": 2, "log_every": 2, **options}
    return train(config, recipe, latents, LABELS, files, device=torch.device("cpu"), **options)


def _changed(**values):
    return dataclasses.replace(RECIPE, **values)


def _assert_equal(left, right):
    assert list(left) == list(right)
    for name, tensor in left.items():
        np.testing.assert_array_equal(tensor, right[name], err_msg=name)


def _gaussian_kl(mean_a, var_a, mean_b, var_b):
    """KL(a || b) of scalar Gaussians."""
    return 0.5 * (math.log(var_b / var_a) - 1 + (var_a + (mean_a - mean_b) ** 2) / var_b)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("t", [0, 1, 2, 300, 998])
def test_loss_equals_the_mean_squared_error_and_the_bound_written_out(name, t):
    rng = np.random.default_rng(t)
    eps, v, x0, noise = rng.standard_normal((4, 6)) * [[1], [0.4], [1], [1]]
    _, alpha_bar = respaced(name, 1000)
    share, before = alpha_bar[t], alpha_bar[t - 1] if t else 1.0
    beta = 1 - share / before
    x_t = math.sqrt(share) * x0 + math.sqrt(1 - share) * noise
    bound = []
    for c in range(6):
        x0hat = (x_t[c] - math.sqrt(1 - share) * eps[c]) / math.sqrt(share)

        def posterior_mean(start, now=x_t[c]):
            a = beta * math.sqrt(before) / (1 - share)
            return a * start + (1 - before) * math.sqrt(1 - beta) / (1 - share) * now

        clipped = max(t, 1)
        beta_c = 1 - alpha_bar[clipped] / alpha_bar[clipped - 1]
        posterior = beta_c * (1 - alpha_bar[clipped - 1]) / (1 - alpha_bar[clipped])
        variance = beta ** ((v[c] + 1) / 2) * posterior ** ((1 - v[c]) / 2)
        if t == 0:
            density = math.exp(-0.5 * (x0[c] - posterior_mean(x0hat)) ** 2 / variance)
            bound.append(-math.log(density / math.sqrt(2 * math.pi * variance)))
        else:
            bound.append(
                _gaussian_kl(posterior_mean(x0[c]), posterior, posterior_mean(x0hat), variance)
            )
    loss = DiffusionLoss(name, torch.device("cpu"))
    args = (torch.tensor(a, dtype=torch.float32)[None] for a in (eps, v, x0, x_t))
    mse, bits = loss(*args, torch.tensor([t]), torch.tensor(noise, dtype=torch.float32)[None])
    assert mse.item() == pytest.approx(np.mean((eps - noise) ** 2), rel=1e-5)
    assert bits.item() == pytest.approx(np.mean(bound) / math.log(2), rel=2e-3, abs=1e-5)


def test_noised_tokens_keep_the_share_of_signal_of_their_timestep():
    _, alpha_bar = respaced("cosine", 1000)
    x0, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 500, 999])
    x_t = DiffusionLoss("cosine", torch.device("cpu")).noised(x0, t, noise)
    for row, share in enumerate(alpha_bar[i] for i in t):
        wanted = math.sqrt(share) * x0[row] + math.sqrt(1 - share) * noise[row]
        np.testing.assert_allclose(x_t[row], wanted, rtol=1e-5, atol=1e-6)


def test_the_bound_moves_the_variance_but_not_the_mean():
    rng = torch.Generator().manual_seed(0)
    eps, v, x0, noise = torch.randn(4, 5, 3, generator=rng).unbind()
    eps.requires_grad_()
    v.requires_grad_()
    loss = DiffusionLoss("linear", torch.device("cpu"))
    t = torch.tensor([0, 1, 10, 500, 999])
    _, bound = loss(eps, v, x0, loss.noised(x0, t, noise), t, noise)
    bound.backward()
    assert eps.grad is None or eps.grad.abs().max() == 0
    assert (v.grad != 0).all()


def test_the_rate_rises_stays_and_falls_to_zero():
    recipe = Recipe(steps=110, decay_steps=50, learning_rate=2.0, warmup=10)
    assert [recipe.rate(s) for s in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert {recipe.rate(s) for s in range(9, 61)} == {2.0}
    assert [recipe.rate(s) for s in (61, 85, 109, 110)] == pytest.approx([1.96, 1.0, 0.04, 0.0])


def test_a_rate_without_warm_up_or_decay_is_constant():
    shares = [
        warmup_stable_decay(step, warmup=0, decay_start=50, decay_steps=0) for step in (0, 49, 99)
    ]
    assert shares == [1.0, 1.0, 1.0]


def test_the_same_seed_trains_the_same_model_and_another_seed_another_one(tmp_path):
    models = [
        _train(tmp_path / name, _changed(steps=3, seed=seed)).state_dict()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    _assert_equal(models[0], models[1])
    assert (models[0]["z_proj.weight"] != models[2]["z_proj.weight"]).any()


@pytest.mark.parametrize("done", [3, 7], ids=["stable", "decay"])
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    done, tmp_path, capsys
):
    recipe = _changed(steps=8, decay_steps=4)
    whole = _train(tmp_path / "whole", recipe)
    calls = []

    class Interrupted(torch.optim.AdamW):
        def step(self, *args, **kwargs):
            if len(calls) == done:
                raise KeyboardInterrupt
            calls.append(1)
            return super().step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            _train(tmp_path / "parts", recipe)
    capsys.readouterr()
    resumed = _train(tmp_path / "parts", recipe)
    assert f"at step {done - 1}" in capsys.readouterr().out
    _assert_equal(whole.state_dict(), resumed.state_dict())
    for name in ("checkpoint", "checkpoint.decay"):
        ends = [torch.load(tmp_path / n / name, weights_only=True) for n in ("whole", "parts")]
        _assert_equal(ends[0]["model"], ends[1]["model"])


def test_a_run_whose_decay_is_done_goes_on_as_if_it_had_not_been(tmp_path, capsys):
    whole = _train(tmp_path / "whole", _changed(steps=8))
    _train(tmp_path / "parts", _changed(steps=6))
    capsys.readouterr()
    longer = _train(tmp_path / "parts", _changed(steps=8))
    assert "at step 4" in capsys.readouterr().out
    _assert_equal(whole.state_dict(), longer.state_dict())


def test_a_decay_can_be_made_of_another_length(tmp_path):
    _train(tmp_path / "run", _changed(steps=6, decay_steps=2))
    first = _train(tmp_path / "run", _changed(steps=7, decay_steps=3)).state_dict()
    _assert_equal(first, _train(tmp_path / "whole", _changed(steps=7, decay_steps=3)).state_dict())


def test_a_run_that_is_past_the_start_of_the_decay_is_told_the_least_steps(tmp_path):
    _train(tmp_path / "run", _changed(steps=8))
    with pytest.raises(CsdError, match=r"at step 6, .* from step 3: give --steps 8 or more"):
        _train(tmp_path / "run", _changed(steps=5))


def test_a_finished_run_is_not_trained_further(tmp_path, capsys):
    first = {k: v.clone() for k, v in _train(tmp_path / "run").state_dict().items()}
    capsys.readouterr()
    _assert_equal(first, _train(tmp_path / "run").state_dict())
    assert capsys.readouterr().out.splitlines()[-1].endswith("at step 6")


def test_the_average_differs_from_the_model_and_both_have_learned(tmp_path):
    _train(tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoint.decay", weights_only=True)
    name = "diffloss.net.final_layer.linear.weight"  # zero at first
    assert state["model"][name].abs().max() > 0
    assert state["model_ema"][name].abs().max() > 0
    assert (state["model"][name] != state["model_ema"][name]).any()


def test_a_run_begins_with_weights_that_it_is_given(tmp_path):
    start = tmp_path / "start.safetensors"
    first = _train(tmp_path / "first")
    save_file({k: v.contiguous() for k, v in first.state_dict().items()}, start)
    still = _changed(steps=2, decay_steps=0, learning_rate=1e-9)
    begun = _train(tmp_path / "begun", still, start=start)
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(begun.state_dict()[name], tensor, rtol=0, atol=1e-6)
    save_file({k: 2 * v for k, v in first.state_dict().items()}, start)
    with pytest.raises(CsdError, match="was trained with sha256"):  # a run that began elsewhere
        _train(tmp_path / "begun", still, start=start)
    with pytest.raises(CsdError, match="nowhere"):
        _train(tmp_path / "other", start=tmp_path / "nowhere")


def test_training_lowers_the_loss(tmp_path):
    mean = MEANS[:1].expand(20, -1, -1, -1)  # one image to learn by heart
    recipe = Recipe(steps=60, batch=8, warmup=5, learning_rate=5e-3)
    latents = Latents(mean, torch.zeros_like(mean))
    _train(tmp_path / "run", recipe, latents=latents, log_every=20)
    lines = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [record["eps_mse"] for record in map(json.loads, lines) if "eps_mse" in record]
    assert len(losses) == 3
    assert losses[-1] < 0.8 * losses[0]


def test_the_log_has_a_line_for_each_interval(tmp_path):
    _train(tmp_path / "run")
    lines = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "eps_mse" in record]
    assert [record["step"] for record in records] == [2, 4, 6]
    for key in ("eps_mse", "bound_bits", "gradient_norm", "learning_rate", "seconds"):
        assert all(math.isfinite(record[key]) for record in records)
    assert records[0]["learning_rate"] == pytest.approx(RECIPE.rate(1))


@pytest.mark.parametrize(
    ("change", "named"),
    [({"learning_rate": 0.5}, "learning_rate = 0.001, not 0.5"), ({"seed": 6}, "seed = 5, not 6")],
)
def test_a_checkpoint_of_another_recipe_is_refused_by_the_value_that_differs(
    change, named, tmp_path
):
    _train(tmp_path / "run")
    with pytest.raises(CsdError, match=named):
        _train(tmp_path / "run", _changed(**change))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    _train(tmp_path / "run")
    other = MARConfig.from_dict({**CONFIG.to_dict(), "diffloss_w": 24})
    with pytest.raises(CsdError, match="diffloss_w = 16, not 24"):
        _train(tmp_path / "run", config=other)


@pytest.mark.parametrize(("name", "steps"), [("checkpoint", 8), ("checkpoint.decay", 6)])
def test_a_damaged_checkpoint_is_reported_as_an_error_of_the_user(name, steps, tmp_path):
    _train(tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CsdError, match=rf"{name} .*delete it to start over"):
        _train(tmp_path / "run", _changed(steps=steps))


def test_a_loss_that_is_not_finite_stops_the_run_with_a_remedy(tmp_path):
    with pytest.raises(CsdError, match=r"not finite at step 1: lower --learning-rate"):
        _train(tmp_path / "run", latents=Latents(MEANS * math.nan, MEANS))


def test_the_head_in_training_is_the_head(tmp_path):
    model = MAR(CONFIG)
    model.initialize()
    rng = torch.Generator().manual_seed(0)
    for parameter in model.head_net.parameters():  # the output layer starts as zeros
        torch.nn.init.normal_(parameter, std=0.3, generator=rng)
    rows = 7 * RECIPE.head_repeats
    x, t = torch.randn(rows, 4, generator=rng), torch.randint(1000, (rows,), generator=rng)
    z = torch.randn(7, 16, generator=rng)
    with torch.no_grad():
        made = repeated_head(model.head_net, x, t, z)
        wanted = model.head(x, t, z.repeat(RECIPE.head_repeats, 1))
    for left, right in zip(made, wanted, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_a_step_draws_every_timestep_about_equally_often_and_known_or_unknown_tokens():
    data = TokenPosteriors.of(LATENTS, LABELS, CONFIG, torch.device("cpu"))
    recipe = _changed(batch=20)
    batch = draw(CONFIG, recipe, data, step=1)
    assert (batch.t.sort().values.diff() <= 2 * 1000 / len(batch.t)).all()
    places = torch.cat([batch.visible, batch.query], dim=1).sort(dim=1).values
    assert (places == torch.arange(16)).all()
    assert len(batch.x0) == len(batch.t) == 20 * batch.query.shape[1] * recipe.head_repeats


def test_masked_shares_follow_the_cosine_over_any_run_of_steps():
    data = TokenPosteriors.of(LATENTS, LABELS, CONFIG, torch.device("cpu"))
    for first in (0, 1000):
        masked = sorted(
            draw(CONFIG, RECIPE, data, step=first + step).query.shape[1] for step in range(100)
        )
        wanted = [math.ceil(16 * math.cos(math.pi / 2 * (k + 0.5) / 100)) for k in range(100)]
        assert np.abs(np.array(masked) - sorted(wanted)).max() <= 1


def test_tokens_are_drawn_from_their_posterior_and_scaled():
    mean = torch.linspace(-1, 1, 20).reshape(20, 1, 1, 1).expand(-1, 1, 8, 8)
    std = torch.where(mean > 0, 0.5, 0.01)
    config = dataclasses.replace(CONFIG, latent_scale=2.0)
    data = TokenPosteriors.of(Latents(mean, std), torch.arange(20), config, torch.device("cpu"))
    config = dataclasses.replace(config, class_num=20)
    batch = draw(config, _changed(batch=4000, label_dropout=0.0, head_repeats=1), data, step=0)
    tokens = batch.x0.reshape(4000, -1)
    for label in (0, 19):
        found = tokens[batch.label == label]
        assert abs(found.mean() - 2 * mean[label].mean()) < 0.02
        assert float(found.std()) == pytest.approx(float(2 * std[label].mean()), rel=0.05)


def test_the_error_of_the_first_step_is_the_distance_of_eps_from_x():
    model = MAR(CONFIG)
    model.initialize()  # the output layer is zero, so eps is: what is left is the size of x
    assert first_step_error(model, images=200) == pytest.approx(1.0, abs=0.02)


def _idx(shape, values, kind=8):
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + bytes(values)


def test_idx_files_are_read_in_their_shape(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(_idx((2, 3), range(6))))
    np.testing.assert_array_equal(read_idx(tmp_path / "x.gz"), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not gzip at all",
        gzip.compress(b""),
        gzip.compress(b"\0\0"),
        gzip.compress(_idx((2, 3), range(5))),
        gzip.compress(_idx((2, 3), range(6), kind=13)),
        gzip.compress(_idx((2, 3), range(6)))[:-9],
        gzip.compress(_idx((2, 3), range(6)))[:15] + b"\xff" * 20,
        gzip.compress(_idx((100,), range(100)))[:20] + b"\0" * 40,
    ],
    ids=["empty", "text", "no header", "half a header", "short", "floats", "truncated", "garbage",
         "zeros"],
)  # fmt: skip
def test_damaged_idx_files_are_reported_with_a_remedy(raw, tmp_path):
    (tmp_path / "x.gz").write_bytes(raw)
    with pytest.raises(CsdError, match=r"cannot read .*x\.gz: .*install the data set again"):
        read_idx(tmp_path / "x.gz")


def test_missing_data_names_the_package_that_brings_it(tmp_path):
    with pytest.raises(CsdError, match="apt-get install dataset-fashion-mnist"):
        load_images(tmp_path, "train")


def test_images_lie_in_minus_one_to_one(tmp_path):
    pixels = gzip.compress(_idx((1, 2, 2), [0, 255, 51, 204]))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(pixels)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx((1,), [7])))
    images, labels = load_images(tmp_path, "t10k")
    np.testing.assert_allclose(images, [[[[-1, 1], [-0.6, 0.6]]]], atol=1e-6)
    assert labels.tolist() == [7]


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 600), ("t10k", 40)):
        pixels, labels = rng.integers(256, size=(count, 28, 28)), rng.integers(10, size=count)
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            raw = _idx(array.shape, array.astype(np.uint8).tobytes())
            (tmp_path / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(raw))
    return tmp_path


def _command(argv):
    return run_command(run, build_parser(), [str(part) for part in argv])


def test_frames_are_black_and_leave_the_image_as_it_is():
    images = torch.rand(2, 1, 28, 28)
    framed_images = framed(images)
    assert framed_images.shape == (2, 1, 32, 32)
    np.testing.assert_array_equal(framed_images[:, :, 2:-2, 2:-2], images)
    assert framed_images.sum() == pytest.approx(float(images.sum()) - 2 * (32**2 - 28**2), rel=1e-5)


def test_the_scale_of_latents_gives_what_is_drawn_from_them_unit_deviation():
    rng = torch.Generator().manual_seed(0)
    mean = 3 * torch.randn(400, 2, 4, 4, generator=rng)
    std = 4 * torch.rand(400, 2, 4, 4, generator=rng)
    drawn = mean + std * torch.randn(mean.shape, generator=rng)
    assert float(drawn.std()) * Latents(mean, std).scale == pytest.approx(1, rel=0.02)


def test_latents_are_read_back_as_they_were_written(tmp_path):
    save_latents(LATENTS, tmp_path / "latents")
    found = load_latents(tmp_path / "latents")
    np.testing.assert_allclose(found.mean, LATENTS.mean, atol=2e-3)
    np.testing.assert_allclose(found.std, LATENTS.std, atol=1e-4)


def test_missing_and_damaged_latents_are_reported_with_a_remedy(tmp_path):
    with pytest.raises(CsdError, match="train the autoencoder with the same --out first"):
        load_latents(tmp_path / "latents")
    (tmp_path / "latents").write_bytes(b"nothing")
    with pytest.raises(CsdError, match=r"cannot read the latents .*train the autoencoder again"):
        load_latents(tmp_path / "latents")


def _save_random_latents(folder):
    folder.mkdir()
    mean = torch.randn(600, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    save_latents(Latents(mean, torch.full_like(mean, 0.1)), folder / "latents.safetensors")


def test_the_command_trains_and_writes_weights_that_load(data):
    code = "import runpy; runpy.run_module('csd.models.training', run_name='__main__')"
    _save_random_latents(data / "out")
    argv = ["draft", "--data", data, "--out", data / "out", "--steps", 2, "--batch", 2]
    done = run_python(code, *argv, "--threads", 1)
    assert done.returncode == 0, done.stderr
    from csd.models import load_mar

    model = load_mar(data / "out/draft.safetensors", MARConfig.load(data / "out/draft.json"))
    preset = MARConfig.load("fashion_latent_draft")
    assert model.config == dataclasses.replace(preset, latent_scale=model.config.latent_scale)
    assert model.config.latent_scale == pytest.approx(1 / math.sqrt(1.01), rel=0.01)


def test_the_command_trains_an_autoencoder_whose_decoder_loads(data, capsys, monkeypatch):
    def one_channel(model, images):
        return without_silent_channels(model, images, least=math.inf)

    monkeypatch.setattr("csd.models.training.__main__.without_silent_channels", one_channel)
    argv = ["autoencoder", "--data", data, "--out", data, "--steps", 2, "--batch", 2]
    assert _command([*argv, "--threads", 1]) == 0
    assert "dB on 40 test images" in capsys.readouterr().out
    decoder = load_kl_decoder(data / "decoder.safetensors")
    assert (decoder.upscale, decoder.latent_channels) == (4, 1)
    whole = load_kl_decoder(data / "autoencoder.safetensors")
    _assert_equal(decoder.state_dict(), whole.state_dict())
    # Half precision, and no encoder.
    assert (data / "decoder.safetensors").stat().st_size < 1.5e6
    latents = load_latents(data / "latents.safetensors")
    assert latents.mean.shape == latents.std.shape == (600, 1, 8, 8)
    figures = json.loads((data / "autoencoder.json").read_text(encoding="utf-8"))
    assert figures["latent_scale"] == pytest.approx(latents.scale, rel=1e-2)
    assert math.isfinite(figures["test_psnr"])
    assert figures["kept_channels"] == 1


def test_the_command_trains_the_decoder_further(data, capsys):
    small = ["--data", data, "--out", data, "--steps", 2, "--batch", 2, "--threads", 1]
    assert _command(["autoencoder", *small]) == 0
    first = load_kl_decoder(data / "decoder.safetensors").state_dict()
    latents = load_latents(data / "latents.safetensors")
    (data / "latents.safetensors").unlink()
    assert _command(["latents", *small]) == 0
    again = load_latents(data / "latents.safetensors")
    torch.testing.assert_close(again.mean, latents.mean)
    torch.testing.assert_close(again.std, latents.std)
    torch.save({"model": Classifier().state_dict()}, data / "other.pth")
    assert _command(["decoder", *small, "--features", data / "other.pth"]) == 0
    assert "decoder: " in capsys.readouterr().out
    second = load_kl_decoder(data / "decoder.safetensors").state_dict()
    assert list(first) == list(second)
    name = "decoder.conv_in.weight"
    assert (first[name] != second[name]).any()
    figures = json.loads((data / "decoder.json").read_text(encoding="utf-8"))
    assert math.isfinite(figures["test_psnr"])


def test_the_command_trains_a_classifier_that_onnx_runtime_runs(data):
    from csd.runtime.backends import OnnxLoader

    argv = ["classifier", "--data", data, "--out", data, "--epochs", 1, "--threads", 1]
    assert _command(argv) == 0
    images = framed(load_images(data, "t10k")[0])
    made = OnnxLoader(1).load(data / "classifier.onnx").run({"image": images.numpy()})
    model = load_classifier(data / "classifier.safetensors")
    with torch.inference_mode():
        wanted = model(images)
    for name, tensor in zip(("logits", "features"), wanted, strict=True):
        np.testing.assert_allclose(made[name], tensor, rtol=1e-3, atol=1e-4)
    classes, features = classify(model, images)
    np.testing.assert_array_equal(classes, made["logits"].argmax(axis=1))
    assert features.shape == (40, 64)
    images[3, 0, 5, 5] = float("nan")
    with pytest.raises(CsdError, match="the classifier returned values that are not finite"):
        classify(model, images)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["draft", "--data", "nowhere"], "no data at nowhere/train-images"),
        (["draft"], "train the autoencoder with the same --out first"),
        (["draft", "--steps", "5", "--decay-steps", "6"], "decay-steps is 6: give 0 to 5"),
        (["draft", "--head-repeats", "0"], "head_repeats is 0"),
        (["draft", "--save-every", "0"], "save_every is 0"),
        (["decoder"], "give a classifier of another seed"),
        (["draft", "--device", "quantum"], "no device 'quantum'"),
        (["draft", "--device", "cuda:99"], "no device 'cuda:99'"),
        (["draft", "--steps", "0"], "steps is 0"),
        (["draft", "--batch", "0"], "batch is 0"),
        (["draft", "--threads", "0"], "threads is 0"),
        (["draft", "--learning-rate", "nan"], "learning-rate is nan"),
        (["classifier", "--epochs", "0"], "epochs is 0"),
    ],
)
def test_bad_arguments_of_the_command_are_one_line(argv, message, data, capsys):
    if "--data" not in argv:
        argv = [*argv, "--data", data]
    assert message in failure(_command, ["--threads", 1, *argv, "--out", data / "out"], capsys)


def test_the_help_shows_defaults_and_an_example():
    text = build_parser().format_help()
    assert "example: python -m csd.models.training" in text
    assert "(default: 7000)" in text
