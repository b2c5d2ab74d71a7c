"""Local AR steps in PyTorch, against a slow form that keeps what goes into blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from csd.models import load_mar
from csd.models.families import load_config
from csd.models.local_steps import Caches, full_step, local_step
from csd.models.mar import MAR, Backbone, gather_rows
from csd.runtime.bundle.graph_tensors import graph_tensors

from ..helpers import DATA, assert_parity, tiny_config


@pytest.fixture(scope="module", params=["mar", "emigm", "mar_one_token", "patches"])
def model(request):
    """A model of every family and kind, in float64, where only the method makes a difference."""
    torch.manual_seed(0)
    if request.param == "mar":
        return load_mar(DATA / "target.pth", tiny_config("target")).double()
    if request.param == "patches":
        config = {**tiny_config("target").to_dict(), "patch_size": 2, "img_size": 128}
        made = MAR(tiny_config("target").from_dict(config)).eval()
        made.initialize()
        return made.double()
    folder = DATA / request.param
    return load_mar(folder / "weights.pth", load_config(folder / "config.json")).double()


def _attend(block, rows, context):
    """Rows `[R, W]` through a block, attending to `context [K, W]`."""
    heads, width = block.attn.heads, rows.shape[1]
    qkv = block.attn.qkv
    q = F.linear(block.norm1(rows), qkv.weight[:width], qkv.bias[:width])
    k, v = F.linear(block.norm1(context), qkv.weight[width:], qkv.bias[width:]).chunk(2, 1)
    q, k, v = (t.reshape(-1, heads, width // heads).transpose(0, 1) for t in (q, k, v))
    weights = torch.softmax(q @ k.transpose(1, 2) / (width // heads) ** 0.5, dim=-1)
    rows = rows + block.attn.proj((weights @ v).transpose(0, 1).reshape(-1, width))
    return rows + block.mlp(block.norm2(rows))


def _slow(model, known, visible, tokens, new, query, label):
    """One image: a full step that keeps every block's input, then a local one of their rows."""
    buffer, length = model.config.buffer_size, model.config.seq_len
    classes = torch.cat([model.class_emb.weight, model.fake_latent])
    place, decoder_place = model.encoder_pos_embed_learned[0], model.decoder_pos_embed_learned[0]

    def enter(rows, positions):
        return model.z_proj_ln(rows + place[positions])

    x = torch.cat([classes[label].expand(buffer, -1), model.z_proj(known)])
    x = enter(x, torch.cat([torch.arange(buffer), visible + buffer]))
    rows = enter(model.z_proj(tokens), new + buffer)
    for block in model.encoder_blocks:
        rows = _attend(block, rows, torch.cat([x, rows]))
        x = _attend(block, x, x)
    x, rows = (model.decoder_embed(model.encoder_norm(t)) for t in (x, rows))
    full = model.mask_token[0].repeat(buffer + length, 1)
    full[torch.cat([torch.arange(buffer), visible + buffer])] = x
    x = full + decoder_place
    own = torch.cat([new, query]) + buffer
    rows = torch.cat([rows, model.mask_token[0].expand(len(query), -1)]) + decoder_place[own]
    for block in model.decoder_blocks:
        context = x.clone()
        context[own] = rows
        rows = _attend(block, rows, context)
        x = _attend(block, x, x)
    z = model.decoder_norm(rows)[len(new) :]
    return z + model.diffusion_pos_embed_learned[0][query]


def _inputs(model, batch, known, new, wanted):
    config, rng = model.config, torch.Generator().manual_seed(known)
    order = torch.rand(batch, config.seq_len, generator=rng).argsort(dim=1)
    tokens = torch.randn(batch, config.seq_len, config.token_dim, generator=rng).double()
    edges = known, known + new, known + new + wanted
    visible, fresh, query = (
        order[:, a:b] for a, b in zip((0, *edges[:2]), edges, strict=True)
    )  # fmt: skip
    labels = torch.randint(config.class_num + 1, (batch,), generator=rng)
    return tokens, visible, fresh, query, labels


def _sizes(model):
    length = model.config.seq_len
    if length == 1:
        return [(0, 1, 0)]
    return [(0, 1, 2), (length // 2, 3, 2), (length - 2, 1, 1), (3, length - 4, 1)]


def test_a_full_step_is_the_backbone_and_keeps_what_the_graphs_say(model):
    with torch.no_grad():
        for known, new, wanted in _sizes(model):
            tokens, visible, _, _, labels = _inputs(model, 3, known, new, wanted)
            query = torch.zeros(3, 1, dtype=torch.int64)
            given = gather_rows(tokens, visible), visible, query, labels
            z, caches = full_step(model, *given)
            assert torch.equal(z, Backbone.forward(model, *given))
            tensors = graph_tensors("backbone_full", model.config)
            assert tensors is not None
            for name, value in caches._asdict().items():
                dims = {"B": 3, "V": known}
                shape = tuple(dims.get(d, d) for d in tensors.outputs[name])
                assert tuple(value.shape) == shape, name


def test_a_local_step_computes_new_rows_and_queries_against_what_was_kept(model):
    with torch.no_grad():
        for known, new, wanted in _sizes(model):
            tokens, visible, fresh, query, labels = _inputs(model, 2, known, new, wanted)
            if not wanted:
                continue  # an image of one token has no AR step after its first
            _, caches = full_step(model, gather_rows(tokens, visible), visible, query, labels)
            z = local_step(model, gather_rows(tokens, fresh), fresh, query, caches)
            for image in range(2):
                own = visible[image], fresh[image], query[image]
                slow = _slow(
                    model, tokens[image, own[0]], own[0], tokens[image, own[1]], *own[1:],
                    labels[image],
                )  # fmt: skip
                assert_parity(z[image], slow, f"{known} known, {new} new", 1e-10)


def test_a_local_step_is_closer_to_the_full_one_than_what_knows_nothing_new():
    """On the shipped target, whose weights mean something."""
    from csd.models.zoo import zoo_entry

    zoo = zoo_entry("fashion-mnist")
    model = load_mar(zoo.weights("target"), zoo.config("target"))
    with torch.no_grad():
        tokens, visible, new, query, labels = _inputs(model, 8, 20, 5, 5)
        tokens = tokens.float()
        before, caches = full_step(model, gather_rows(tokens, visible), visible, query, labels)
        local = local_step(model, gather_rows(tokens, new), new, query, caches)
        both = torch.cat([visible, new], dim=1)
        after = Backbone.forward(model, gather_rows(tokens, both), both, query, labels)
    far, near = (float((z - after).square().mean()) for z in (before, local))
    print(f"squared distance to the full step: {far:.2e} stale, {near:.2e} local")
    assert near < 0.7 * far


def test_padding_among_the_known_tokens_is_not_seen():
    model = load_mar(DATA / "target.pth", tiny_config("target")).double()
    length = model.config.seq_len
    with torch.no_grad():
        tokens, visible, new, query, labels = _inputs(model, 2, 5, 2, 2)
        known = gather_rows(tokens, visible)
        _, plain = full_step(model, known, visible, query, labels)
        padding = torch.full((2, 3), length)
        junk = torch.full((2, 3, known.shape[2]), 1e3).double()
        _, padded = full_step(
            model, torch.cat([known, junk], 1), torch.cat([visible, padding], 1), query, labels
        )
        fresh = gather_rows(tokens, new)
        assert isinstance(padded, Caches)
        assert_parity(
            local_step(model, fresh, new, query, padded),
            local_step(model, fresh, new, query, plain), "padded", 1e-10,
        )  # fmt: skip
