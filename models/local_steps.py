"""Full and local AR steps of the backbone: what a full one keeps, what a local one computes.

A full step computes every row and keeps keys and values of every block. A local step computes the
rows of the tokens that were decoded since then (`new`) and of the positions that it predicts; they
see what was kept, in the decoder with their own rows in place of the kept ones. A local step keeps
nothing: all that follow a full step start from that one's caches, so that they see every token
decoded since with its rows computed afresh, and the caches never grow.

| cache | shape | of |
| --- | --- | --- |
| `buffer_cache` | `[B, 2 E, heads, buffer, W / heads]` | the encoder's class slots |
| `token_cache` | `[B, 2 E, heads, V, W / heads]` | the known tokens in the encoder |
| `token_bias` | `[B, V]` | `HIDDEN` for padding among those, else 0 |
| `decoder_cache` | `[B, 2 D, heads, buffer + L, W / heads]` | all positions in the decoder |

E and D are numbers of blocks, entry 2 k holds the keys of block k and entry 2 k + 1 its values.

Training-free caching of such models: LazyMAR (arXiv 2503.12450), ReCAP (2505.19089), GtR
(2510.17171).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .mar import HIDDEN, Backbone


class Caches(NamedTuple):
    """What a full step keeps; the table at the head of this file has shapes and meaning."""

    buffer_cache: Tensor
    token_cache: Tensor
    token_bias: Tensor
    decoder_cache: Tensor


def full_step(
    model: Backbone, tokens: Tensor, visible: Tensor, query: Tensor, label: Tensor
) -> tuple[Tensor, Caches]:
    """Compute all rows.

    Args:
        model: the backbone.
        tokens: known tokens, `[B, V, C]`.
        visible: their positions `[B, V]`, L where padded.
        query: positions to predict, `[B, P]`.
        label: `[B]`.

    Returns:
        `z [B, P, D]`, as `Backbone.forward` returns it, and the caches.
    """
    buffer, length = model.config.buffer_size, model.config.seq_len
    encoder, decoder = list[Tensor](), list[Tensor]()
    z = Backbone.forward(model, tokens, visible, query, label, (encoder, decoder))
    stacked = torch.stack(encoder, dim=1)
    return z, Caches(
        stacked[:, :, :, :buffer], stacked[:, :, :, buffer:],
        (visible == length).to(z.dtype) * HIDDEN, torch.stack(decoder, dim=1),
    )  # fmt: skip


def local_step(
    model: Backbone, tokens: Tensor, new: Tensor, query: Tensor, caches: Caches
) -> Tensor:
    """Compute the rows of new tokens and of queries.

    Args:
        model: the backbone.
        tokens: those decoded since the full step, `[B, N, C]`.
        new: their positions, `[B, N]`.
        query: positions to predict, `[B, P]`.
        caches: of the full step.

    Returns:
        `z [B, P, D]`.
    """
    buffer, batch, count = model.config.buffer_size, new.shape[0], new.shape[1]

    # Encoder: the new tokens see the class, the kept tokens and each other.
    x = model.z_proj(tokens) + model.encoder_pos_embed_learned[0][new + buffer]
    flat = model.z_proj_ln(x).reshape(batch * count, -1)
    kept = torch.cat([caches.buffer_cache, caches.token_cache], dim=3)
    seen = caches.token_bias
    bias = torch.cat([seen.new_zeros(batch, buffer), seen, seen.new_zeros(batch, count)], dim=1)
    bias = bias.reshape(batch, 1, 1, -1)
    for index, block in enumerate(model.encoder_blocks):
        cache = kept[:, 2 * index], kept[:, 2 * index + 1]
        flat = block(flat, batch, bias=bias, cache=cache)
    flat = model.decoder_embed(model.encoder_norm(flat))

    # Decoder: new tokens and queries see everything; what was kept of their own rows is hidden.
    width = flat.shape[-1]
    blank = model.mask_token.expand(batch, query.shape[1], width)
    own = torch.cat([new, query], dim=1)
    x = torch.cat([flat.reshape(batch, count, width), blank.to(flat.dtype)], dim=1)
    flat = (x + model.decoder_pos_embed_learned[0][own + buffer]).reshape(-1, width)
    kept = caches.decoder_cache
    replaced = seen.new_zeros(batch, kept.shape[3])
    replaced = replaced.scatter(1, own + buffer, torch.full_like(own, HIDDEN, dtype=seen.dtype))
    bias = torch.cat([replaced, torch.zeros_like(own, dtype=seen.dtype)], dim=1)
    bias = bias.reshape(batch, 1, 1, -1)
    last = len(model.decoder_blocks) - 1
    asked = torch.arange(count, own.shape[1], device=own.device).expand(batch, -1)
    for index, block in enumerate(model.decoder_blocks):
        cache = kept[:, 2 * index], kept[:, 2 * index + 1]
        flat = block(flat, batch, asked if index == last else None, bias, cache)
    z = model.decoder_norm(flat).reshape(batch, -1, width)
    return z + model.diffusion_pos_embed_learned[0][query]
