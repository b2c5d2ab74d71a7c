from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from csd.models import load_mar
from csd.runtime import MARConfig
from csd.runtime.head import HeadSchedule, SequentialSampler
from csd.runtime.schedule import diffusion_tables
from csd.tools.random_model import main

SMALL = {
    "img_size": 32, "encoder_embed_dim": 32, "encoder_depth": 1, "encoder_num_heads": 2,
    "decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2, "class_num": 3,
    "buffer_size": 2, "diffloss_d": 2, "diffloss_w": 64,
}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SMALL), encoding="utf-8")
    return path


def weights(config, out, *argv):
    assert main(["--config", str(config), "--out", str(out), *argv]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["small.json", "small.safetensors"]
    return load_mar(out / "small.safetensors", MARConfig.load(out / "small.json"))


def test_the_head_makes_tokens_of_usual_size(config, tmp_path):
    model = weights(config, tmp_path / "out")
    rng, schedule = np.random.default_rng(0), HeadSchedule(diffusion_tables("linear", 50))
    z = torch.randn(40, 32)

    def evaluate(x, step, token):
        t = torch.from_numpy(schedule.tables.timesteps[step])
        with torch.inference_mode():
            eps, v = model.head(torch.from_numpy(x), t, z[torch.from_numpy(token)])
        return eps.numpy(), v.numpy()

    tokens, _ = SequentialSampler(schedule).sample(evaluate, n_tokens=40, channels=16, rng=rng)
    assert 0.2 < tokens.std() < 3


def test_one_seed_gives_the_same_weights_and_another_gives_others(config, tmp_path):
    first, same, other = (
        weights(config, tmp_path / name, "--seed", seed).state_dict()
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["z_proj.weight"], other["z_proj.weight"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config", "mar_tiny"], "no configuration 'mar_tiny'"),
    ],
)
def test_bad_arguments_are_one_line_and_write_nothing(argv, message, tmp_path, capsys):
    assert main([*argv, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_configuration_that_is_read_is_not_written_over(config, capsys):
    before = config.read_bytes()
    argv = ["--config", str(config), "--out", str(config.parent)]
    assert main(argv) == 2
    assert "belongs to the configuration" in capsys.readouterr().err
    assert [path.name for path in config.parent.iterdir()] == [config.name]
    assert config.read_bytes() == before
