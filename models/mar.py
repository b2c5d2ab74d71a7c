"""The MAR backbone in PyTorch, with the parameter names of the released checkpoints.

Li et al., "Autoregressive Image Generation without Vector Quantization", arXiv 2406.11838.
Tokens are addressed by index, never by a boolean mask, so that one definition serves training,
PyTorch inference and export:

| tensor | shape | meaning |
| --- | --- | --- |
| `tokens` | `[B, V, C]` float32 | known tokens |
| `visible` | `[B, V]` int64 | their positions, `L` where the entry is padding |
| `query` | `[B, P]` int64 | positions to predict |
| `label` | `[B]` int64 | class; `class_num` means unconditional |
| result `z` | `[B, P, D]` float32 | conditions of the diffusion head |
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.config import MARConfig
from .head import DiffusionMLP

# Keys and values of some rows, `[B, heads, K, W / heads]` each.
KeysValues = tuple[Tensor, Tensor]
# A finite number, not -inf: a row of infinities would make a softmax of NaN.
HIDDEN = -1e9


class Attention(nn.Module):
    """Multi-head attention whose queries may be fewer than its keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        batch: int,
        rows: Tensor | None,
        bias: Tensor | None,
        cache: KeysValues | None = None,
        kept: list[Tensor] | None = None,
    ) -> Tensor:
        """Attend, `[B * P, W]`.

        Args:
            x: `[B * N, W]`.
            batch: B.
            rows: those that ask, `[B, P]`; None is all.
            bias: added to the scores, `[B, 1, 1, K + N]`.
            cache: keys and values of K rows that are seen before those of `x`; None is none.
            kept: receives the keys and the values of `x`, `[B, heads, N, W / heads]`.
        """
        width = x.shape[-1]
        if rows is None:
            q, k, v = self._heads(self.qkv(x), 3, batch)
        else:
            weight, offset = self.qkv.weight, self.qkv.bias
            asked = gather_rows(x.reshape(batch, -1, width), rows).reshape(-1, width)
            (q,) = self._heads(F.linear(asked, weight[:width], offset[:width]), 1, batch)
            k, v = self._heads(F.linear(x, weight[width:], offset[width:]), 2, batch)
        if kept is not None:
            kept += [k, v]
        if cache is not None:
            k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(-1, width))

    def _heads(self, joined: Tensor, parts: int, batch: int) -> tuple[Tensor, ...]:
        """`joined [B * N, parts * W]` -> `parts` tensors `[B, heads, N, W / heads]`."""
        split = joined.reshape(batch, -1, parts, self.heads, self.proj.in_features // self.heads)
        return split.permute(2, 0, 3, 1, 4).unbind(0)


class MLP(nn.Module):
    """The transformer's two-layer perceptron with the exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., W]` -> `[..., W]`."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block. With `rows`, only those rows are computed and returned."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(
        self,
        x: Tensor,
        batch: int,
        rows: Tensor | None = None,
        bias: Tensor | None = None,
        cache: KeysValues | None = None,
        kept: list[Tensor] | None = None,
    ) -> Tensor:
        """`x [B * N, W]` -> `[B * N, W]`, or `[B * P, W]` for `rows [B, P]`; see `Attention`."""
        # Matrices rather than batches of them: a runtime then joins each product with its bias.
        width = x.shape[-1]
        asked = x
        if rows is not None:
            asked = gather_rows(x.reshape(batch, -1, width), rows).reshape(-1, width)
        asked = asked + self.attn(self.norm1(x), batch, rows, bias, cache, kept)
        return asked + self.mlp(self.norm2(asked))


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return `x[b, rows[b, p]]`, `[B, P, W]`, from `x [B, N, W]` and `rows [B, P]`."""
    return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class Backbone(nn.Module):
    """MAR's encoder and decoder: known tokens, label and queries to conditions."""

    def __init__(self, config: MARConfig) -> None:
        super().__init__()
        self.config = config
        enc, dec, length = config.encoder_embed_dim, config.decoder_embed_dim, config.seq_len
        total = length + config.buffer_size
        self.class_emb = nn.Embedding(config.class_num, enc)
        self.fake_latent = nn.Parameter(torch.zeros(1, enc))
        self.z_proj = nn.Linear(config.token_dim, enc)
        self.z_proj_ln = nn.LayerNorm(enc, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, total, enc))
        self.encoder_blocks = nn.ModuleList(
            Block(enc, config.encoder_num_heads, config.mlp_ratio, config.norm_eps)
            for _ in range(config.encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(enc, eps=config.norm_eps)
        self.decoder_embed = nn.Linear(enc, dec)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dec))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, total, dec))
        self.decoder_blocks = nn.ModuleList(
            Block(dec, config.decoder_num_heads, config.mlp_ratio, config.norm_eps)
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(dec, eps=config.norm_eps)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, length, dec))

    def initialize(self) -> None:
        """Draw the initial parameters of a model to train, as MAR does."""
        for parameter in (
            self.class_emb.weight,
            self.fake_latent,
            self.mask_token,
            self.encoder_pos_embed_learned,
            self.decoder_pos_embed_learned,
            self.diffusion_pos_embed_learned,
        ):
            nn.init.normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        tokens: Tensor,
        visible: Tensor,
        query: Tensor,
        label: Tensor,
        kept: tuple[list[Tensor], list[Tensor]] | None = None,
    ) -> Tensor:
        """Return `z [B, P, D]`; the arguments are those of the table at the head of this file.

        `kept` receives keys and values of the encoder's and of the decoder's blocks, in turn.
        """
        kept_of = (None, None) if kept is None else kept
        buffer, length = self.config.buffer_size, self.config.seq_len
        padded = (visible == length).unsqueeze(-1)

        # Encoder: the class in every buffer slot, then the known tokens.
        classes = torch.cat([self.class_emb.weight, self.fake_latent])
        x = self.z_proj(tokens)
        x = torch.cat([classes[label].unsqueeze(1).expand(-1, buffer, -1), x], dim=1)
        slots = torch.arange(buffer, device=visible.device).expand(visible.shape[0], -1)
        positions = self.encoder_pos_embed_learned[0]
        positions = torch.cat([positions, positions.new_zeros(1, positions.shape[-1])])
        x = self.z_proj_ln(x + positions[torch.cat([slots, visible + buffer], dim=1)])
        hidden = torch.cat([torch.zeros_like(slots, dtype=torch.bool).unsqueeze(-1), padded], dim=1)
        bias = (hidden.to(x.dtype) * HIDDEN).reshape(x.shape[0], 1, 1, x.shape[1])
        batch, flat = x.shape[0], x.reshape(-1, x.shape[-1])
        for block in self.encoder_blocks:
            flat = block(flat, batch, bias=bias, kept=kept_of[0])
        flat = self.decoder_embed(self.encoder_norm(flat))

        # Decoder: all positions, mask tokens where nothing is known; padding lands in an extra
        # row that is cut off again.
        width = flat.shape[-1]
        x = flat.reshape(batch, -1, width)
        full = self.mask_token.expand(batch, length + 1, width)
        known = x[:, buffer:].to(full.dtype)  # under autocast they differ
        full = full.scatter(1, visible.unsqueeze(-1).expand(-1, -1, width), known)
        x = torch.cat([x[:, :buffer], full[:, :length]], dim=1) + self.decoder_pos_embed_learned
        flat = x.reshape(-1, width)
        last = len(self.decoder_blocks) - 1
        for index, block in enumerate(self.decoder_blocks):
            # Nothing reads the other rows after the last block.
            rows = query + buffer if index == last else None
            flat = block(flat, batch, rows, kept=kept_of[1])
        z = self.decoder_norm(flat).reshape(batch, -1, width)
        return z + self.diffusion_pos_embed_learned[0][query]


class _DiffLoss(nn.Module):
    """Holds the head under its released name, `diffloss.net`."""

    def __init__(self, net: DiffusionMLP) -> None:
        super().__init__()
        self.net = net


class MAR(Backbone):
    """Backbone and diffusion head. `state_dict` has the keys of the released checkpoints."""

    def __init__(self, config: MARConfig) -> None:
        super().__init__(config)
        self.diffloss = _DiffLoss(
            DiffusionMLP(
                channels=config.token_dim,
                width=config.diffloss_w,
                depth=config.diffloss_d,
                condition=config.condition_dim,
            )
        )

    @property
    def head_net(self) -> DiffusionMLP:
        """The diffusion head."""
        return self.diffloss.net

    def initialize(self) -> None:
        """Draw the initial parameters of a model to train, as MAR does."""
        super().initialize()
        self.diffloss.net.initialize()

    def condition(self, tokens: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Return the condition of every position.

        Args:
            tokens: `[B, L, C]` float32; values at unknown positions are ignored.
            mask: `[B, L]`, 1 where a token is unknown.
            labels: `[B]` int64 in 0..class_num, `class_num` = unconditional.

        Returns:
            `z [B, L, D]`.
        """
        length = self.config.seq_len
        known = mask == 0
        count = int(known.sum(dim=1).max())
        order = torch.argsort(known.to(torch.int8), dim=1, descending=True, stable=True)[:, :count]
        visible = torch.where(known.gather(1, order), order, length)
        query = torch.arange(length, device=tokens.device).expand(tokens.shape[0], -1)
        return Backbone.forward(self, gather_rows(tokens, order), visible, query, labels)

    def head(self, x: Tensor, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """`x [N, C]`, `t [N]` in 0..999, `z [N, D]` -> `(eps [N, C], v [N, C])`."""
        return self.diffloss.net(x, t, z)
