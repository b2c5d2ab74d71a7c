from __future__ import annotations

import pytest
import torch

from csd.models import MARConfig


@pytest.fixture(scope="session")
def config() -> MARConfig:
    return MARConfig(
        img_size=4, vae_stride=1, patch_size=2, vae_embed_dim=1, class_num=2, buffer_size=2,
        encoder_embed_dim=8, encoder_depth=1, encoder_num_heads=2, decoder_embed_dim=8,
        decoder_depth=1, decoder_num_heads=2, diffloss_d=1, diffloss_w=8,
    )  # fmt: skip


@pytest.fixture
def state(config: MARConfig) -> dict[str, torch.Tensor]:
    """Random weights in the order of the released model's parameters."""
    from csd.models import MAR

    from ...mar_reference import random_state

    drawn = random_state(config, 0)
    return {name: drawn[name] for name in MAR(config).state_dict()}


@pytest.fixture
def other(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that must not be taken for those of `state`."""
    return {name: tensor + 1 for name, tensor in state.items()}
