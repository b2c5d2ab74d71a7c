from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from csd.models import MAR, MARConfig
from csd.models.training import evaluate
from csd.models.training.autoencoder import AutoencoderRecipe
from csd.models.training.classifier import Classifier
from csd.models.training.kl_encoder import KLAutoencoder
from csd.models.training.latents import Latents
from csd.models.training.loop import RunFiles
from csd.models.training.sampling import as_bytes, decode_shown, sample_latents
from csd.models.training.trainer import Recipe, train
from csd.runtime.command.parser import run_command

from ..helpers import failure
from .test_training import CONFIG

MEAN, STD = 0.5, 0.7  # of the tokens that the analytic head believes in


class GaussianHead(torch.nn.Module):
    """eps of tokens that are N(mean, STD^2), whatever the condition; v = 0.

    The conditional mean is MEAN and the unconditional one 0: the last channel of z tells.
    """

    def __init__(self) -> None:
        super().__init__()
        betas = np.linspace(1e-4, 0.02, 1000)
        self.share = torch.from_numpy(np.cumprod(1 - betas)).float()

    def forward(self, x, t, z):
        share = self.share[t][:, None]
        mean = torch.where(z[:, -1:] > 0, MEAN, 0.0)
        eps = (1 - share).sqrt() * (x - share.sqrt() * mean) / (share * STD**2 + 1 - share)
        return eps, torch.zeros_like(x)


@pytest.fixture
def model(monkeypatch):
    model = MAR(CONFIG)
    model.initialize()
    model.diffloss.net = GaussianHead()

    def conditions(self, known, visible, query, label):
        assert known.shape[1] == visible.shape[1]
        z = torch.zeros(*query.shape, 3)
        z[..., -1] = torch.where(label < CONFIG.class_num, 1.0, -1.0)[:, None]
        return z

    monkeypatch.setattr("csd.models.training.sampling.Backbone.forward", conditions)
    return model.eval()


@pytest.mark.parametrize(("cfg", "mean"), [(1.0, MEAN), (3.0, None)])
def test_tokens_follow_the_law_that_the_head_stands_for(cfg, mean, model):
    labels = torch.zeros(600, dtype=torch.int64)
    latents = sample_latents(model, labels, cfg=cfg, num_iter=4, head_steps=100, seed=0)
    assert latents.shape == (600, 1, 8, 8)
    count = latents.numel()
    if mean is not None:
        # 4 standard errors, and what 100 in place of 1000 head steps move.
        assert abs(latents.mean() - mean) < 4 * STD / math.sqrt(count) + 0.01
        assert float(latents.std()) == pytest.approx(STD, rel=0.03)
    else:
        assert float(latents.mean()) > 1.3 * MEAN  # guidance pushes away from the free mean


def test_one_seed_makes_one_image_and_another_seed_another(model):
    labels = torch.tensor([0, 1])
    made = [
        sample_latents(model, labels, cfg=1.0, num_iter=3, head_steps=4, seed=seed)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(made[0], made[1])
    assert (made[0] != made[2]).all()


def test_every_position_is_decoded_once(model):
    latents = sample_latents(
        model, torch.zeros(3, dtype=torch.int64), cfg=1.0, num_iter=16, head_steps=2, seed=0
    )
    assert (latents != 0).all()


def test_shown_images_are_bytes():
    image = as_bytes(torch.tensor([-1.2, -1.0, 0.001, 0.5, 1.3]))
    values = (image + 1) * 127.5
    np.testing.assert_allclose(values, values.round(), atol=1e-4)
    assert image[0] == image[1] == -1
    assert image[-1] == 1


def test_latents_are_decoded_after_the_scale_is_taken_off():
    decoder = KLAutoencoder(3, (32, 32), (32, 32)).eval()
    latents = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = as_bytes(decoder(latents / 0.5)[:, :1])
    np.testing.assert_array_equal(decode_shown(decoder, latents, 0.5), wanted)


LATENT_CONFIG = MARConfig.from_dict(
    {**CONFIG.to_dict(), "img_size": 32, "vae_stride": 4, "patch_size": 2, "vae_embed_dim": 3,
     "class_num": 10, "image_kind": "latent"}
)  # fmt: skip


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A directory as training leaves it, with random images in place of the data set."""
    torch.manual_seed(0)
    classifier = Classifier()
    torch.save({"model": classifier.state_dict()}, tmp_path / "classifier.safetensors")
    recipe = AutoencoderRecipe(steps=1, latent_channels=3)
    autoencoder = KLAutoencoder(3, recipe.widths, recipe.encoder_widths)
    torch.save({"model": autoencoder.state_dict()}, tmp_path / "autoencoder.safetensors")
    monkeypatch.setattr(evaluate, "load_autoencoder", lambda path: autoencoder.eval())
    monkeypatch.setattr(evaluate, "load_kl_decoder", lambda path: autoencoder.eval())
    monkeypatch.setattr(evaluate, "load_classifier", lambda path: classifier.eval())
    mean = torch.randn(20, 3, 8, 8)
    latents = Latents(mean, torch.full_like(mean, 0.1))
    files = RunFiles(tmp_path / "draft.checkpoint", tmp_path / "draft.log.jsonl")
    train(
        LATENT_CONFIG, Recipe(steps=3, decay_steps=1, batch=2), latents, torch.arange(20) % 10,
        files, device=torch.device("cpu"),
    )  # fmt: skip
    images = torch.rand(50, 1, 28, 28) * 2 - 1
    monkeypatch.setattr(
        evaluate, "load_images", lambda folder, split: (images, torch.arange(50) % 10)
    )
    return tmp_path


def _evaluate(argv):
    return run_command(evaluate.run, evaluate.build_parser(), [str(part) for part in argv])


def test_the_command_measures_a_model_and_what_it_is_compared_with(zoo):
    argv = [zoo, "--what", "draft", "--images", 40, "--scales", "1,2", "--num-iter", 2]
    assert _evaluate([*argv, "--head-steps", 2, "--png", zoo / "sheet.png"]) == 0
    (line,) = (zoo / "draft.evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    record = json.loads(line)
    assert (record["model"], record["step"], record["images"]) == ("draft", 3, 40)
    assert [row["cfg"] for row in record["generated"]] == [1.0, 2.0]
    for row in record["generated"]:
        assert 0 <= row["recognised"] <= 1
        assert row["distance"] > 0
    assert record["real"] < record["noisy"]
    assert (zoo / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_the_state_that_is_furthest_is_measured(zoo):
    assert evaluate.load_average(zoo, "draft")[1] == 3
    (zoo / "draft.checkpoint.decay").unlink()
    assert evaluate.load_average(zoo, "draft")[1] == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--images", "1"], "images is 1: give at least 2"),
        (["--num-iter", "0"], "num_iter is 0: give at least 1"),
        (["--what", "target"], "train the target first"),
        (["--scales", "many"], "scales is 'many'"),
    ],
)
def test_bad_arguments_of_the_evaluation_are_one_line(argv, message, zoo, capsys):
    assert message in failure(_evaluate, [zoo, *argv], capsys)
