from __future__ import annotations

import dataclasses

import pytest
import torch

from csd.export.onnx.graphs import model_graphs
from csd.models.mar import MAR

from ...helpers import tiny_config


@pytest.mark.parametrize("tokens", [1, 4])
def test_graphs_of_the_smallest_images_run_at_all_sizes_that_are_checked(tokens):
    config = tiny_config("target")
    side = round(tokens**0.5) * config.vae_stride * config.patch_size
    model = MAR(dataclasses.replace(config, img_size=side)).eval()
    assert model.config.seq_len == tokens
    for graph in model_graphs("target", model):
        for sizes in graph.trials:
            feeds = graph.feeds(sizes, torch.Generator().manual_seed(0))
            with torch.no_grad():
                made = graph.module(*feeds)
            for value in made if isinstance(made, tuple) else (made,):
                assert torch.isfinite(value).all()
