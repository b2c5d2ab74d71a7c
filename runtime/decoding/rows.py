"""Rows of the backbone's calls: both branches of guidance, and how many are computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Float32
from ..config import MARConfig
from ..errors import NumericsError
from .evaluator import Conditions


class Rows(NamedTuple):
    """Rows of a call.

    Attributes:
        total: rows times the blocks that compute them, over encoder and decoder.
        mean: rows of the mean block: what backends choose threads by.
    """

    total: int
    mean: int

    @classmethod
    def of(cls, config: MARConfig, batch: int, encoder: int, decoder: int) -> Rows:
        """Count, given the rows that a block of the encoder and of the decoder has of an image."""
        total = encoder * config.encoder_depth + decoder * config.decoder_depth
        return cls(batch * total, batch * ((encoder + decoder) // 2))


def backbone_rows(config: MARConfig, batch: int, known: int) -> Rows:
    """Rows of a whole backbone over `batch` images, `known` tokens of each."""
    buffer, length = config.buffer_size, config.seq_len
    return Rows.of(config, batch, buffer + known, buffer + length)


def local_rows(config: MARConfig, batch: int, new: int, wanted: int) -> Rows:
    """Rows of a local step over `batch` images, for `new` tokens and `wanted` positions of each."""
    return Rows.of(config, batch, new, new + wanted)


def both_branches(feeds: Mapping[str, Any], nobody: int) -> dict[str, Any]:
    """Arrays of the conditional branch, then of the unconditional one, of `label` `nobody`."""
    twice = {name: np.concatenate([value, value]) for name, value in feeds.items()}
    twice["label"][len(feeds["label"]) :] = nobody
    return twice


def conditions_of(
    z: Float32, scale: Float32, graph: str, *, guided: bool, where: str
) -> Conditions:
    """Return what a backbone made as conditions of `B * P` queries.

    Args:
        z: `[B, P, D]`, or `[2 B, P, D]` where guided.
        scale: guidance scale of each query, `[B * P]`.
        graph: that made it, for error messages.
        guided: whether the unconditional branch follows.
        where: what is being predicted, for error messages.

    Raises:
        NumericsError: a value is not finite.
    """
    z = z.reshape(-1, z.shape[-1])
    if not np.isfinite(z).all():
        raise NumericsError(
            f"{graph} returned values that are not finite at {where}: check the weights"
        )
    half = len(z) // 2
    return Conditions(z[:half], z[half:], scale) if guided else Conditions(z, None, scale)
