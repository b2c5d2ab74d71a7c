from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from csd.models.kl_decoder import load_kl_decoder
from csd.runtime import CsdError

from ..helpers import DATA, assert_parity


class PlainDecoder:
    """The released decoder, written out from its state dict in float64."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.state = {name: tensor.double() for name, tensor in state.items()}

    def conv(self, x, name, padding=0):
        return F.conv2d(
            x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], padding=padding
        )

    def norm(self, x, name):
        groups = x.reshape(len(x), 32, -1)
        variance = groups.var(dim=2, unbiased=False, keepdim=True)
        flat = ((groups - groups.mean(dim=2, keepdim=True)) / (variance + 1e-6).sqrt()).reshape(
            x.shape
        )
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return flat * weight[:, None, None] + bias[:, None, None]

    def resnet(self, x, name):
        h = self.norm(x, f"{name}.norm1")
        h = self.conv(h * h.sigmoid(), f"{name}.conv1", 1)
        h = self.norm(h, f"{name}.norm2")
        h = self.conv(h * h.sigmoid(), f"{name}.conv2", 1)
        if f"{name}.nin_shortcut.weight" in self.state:
            x = self.conv(x, f"{name}.nin_shortcut")
        return x + h

    def attention(self, x, name):
        batch, channels, height, width = x.shape
        h = self.norm(x, f"{name}.norm")
        q, k, v = (self.conv(h, f"{name}.{part}").flatten(2) for part in "qkv")
        weights = (q.transpose(1, 2) @ k * channels**-0.5).softmax(dim=2)
        mixed = (v @ weights.transpose(1, 2)).reshape(batch, channels, height, width)
        return x + self.conv(mixed, f"{name}.proj_out")

    def __call__(self, latents, levels, blocks):
        x = self.conv(latents.double(), "post_quant_conv")
        x = self.conv(x, "decoder.conv_in", 1)
        x = self.resnet(x, "decoder.mid.block_1")
        x = self.attention(x, "decoder.mid.attn_1")
        x = self.resnet(x, "decoder.mid.block_2")
        for level in reversed(range(levels)):
            for block in range(blocks):
                x = self.resnet(x, f"decoder.up.{level}.block.{block}")
                if f"decoder.up.{level}.attn.{block}.q.weight" in self.state:
                    x = self.attention(x, f"decoder.up.{level}.attn.{block}")
            if level:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self.conv(x, f"decoder.up.{level}.upsample.conv", 1)
        x = self.norm(x, "decoder.norm_out")
        return self.conv(x * x.sigmoid(), "decoder.conv_out", 1)


def random_kl_state(ch_mult, attended, blocks=3, base=32, latent=4, seed=0):
    """Random weights with released names; `attended` are the levels with attention."""
    rng, state = torch.Generator().manual_seed(seed), {}

    def conv(name, inputs, outputs, size):
        scale = (inputs * size**2) ** -0.5
        state[f"{name}.weight"] = scale * torch.randn(outputs, inputs, size, size, generator=rng)
        state[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=rng)

    def norm(name, channels):
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(channels, generator=rng)
        state[f"{name}.bias"] = 0.1 * torch.randn(channels, generator=rng)

    def resnet(name, inputs, outputs):
        norm(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", inputs, outputs, 3)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv2", outputs, outputs, 3)
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def attention(name, channels):
        norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", channels, channels, 1)

    widths = [base * factor for factor in ch_mult]
    conv("post_quant_conv", latent, latent, 1)
    conv("decoder.conv_in", latent, widths[-1], 3)
    resnet("decoder.mid.block_1", widths[-1], widths[-1])
    attention("decoder.mid.attn_1", widths[-1])
    resnet("decoder.mid.block_2", widths[-1], widths[-1])
    inputs = widths[-1]
    for level in reversed(range(len(widths))):
        for block in range(blocks):
            resnet(f"decoder.up.{level}.block.{block}", inputs, widths[level])
            inputs = widths[level]
            if level in attended:
                attention(f"decoder.up.{level}.attn.{block}", inputs)
        if level:
            conv(f"decoder.up.{level}.upsample.conv", inputs, inputs, 3)
    norm("decoder.norm_out", inputs)
    conv("decoder.conv_out", inputs, 3, 3)
    return state


ARCHITECTURES = pytest.mark.parametrize(
    ("ch_mult", "attended", "blocks"),
    [((1,), (), 1), ((1, 2), (), 2), ((1, 2, 2), (1,), 2), ((2, 1, 3), (0, 2), 3)],
)


def test_decoder_of_the_fixtures_is_reproduced():
    with np.load(DATA / "vae_reference.npz") as arrays:
        latents, images = torch.from_numpy(arrays["latents"]), arrays["images"]
    decoder = load_kl_decoder(DATA / "vae.ckpt")
    assert decoder.upscale == images.shape[-1] // latents.shape[-1]
    with torch.inference_mode():
        assert_parity(decoder(latents / 0.2325), images, "KL decoder")


@ARCHITECTURES
def test_decoders_of_other_architectures_equal_the_plain_definition(
    ch_mult, attended, blocks, tmp_path
):
    state = random_kl_state(ch_mult, attended, blocks)
    encoder = {"encoder.conv_in.weight": torch.zeros(1), "quant_conv.bias": torch.zeros(1)}
    torch.save({"model": {**state, **encoder}}, tmp_path / "kl.ckpt")
    decoder = load_kl_decoder(tmp_path / "kl.ckpt")
    assert decoder.upscale == 2 ** (len(ch_mult) - 1)
    latents = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        images = decoder(latents)
    assert images.shape == (2, 3, 3 * decoder.upscale, 5 * decoder.upscale)
    assert_parity(images, PlainDecoder(state)(latents, len(ch_mult), blocks), "KL decoder")


def in_diffusers(state, *, linear=True, old_names=False):
    """The tensors under the names of diffusers' AutoencoderKL (its VAE conversion's tables)."""
    top = max(int(name.split(".")[2]) for name in state if name.startswith("decoder.up."))
    new = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    old = {"norm": "group_norm", "q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}
    found = {}
    for name, tensor in state.items():
        part = name.split(".")
        if part[:2] == ["decoder", "up"]:
            kind = {"block": "resnets", "attn": "attentions", "upsample": "upsamplers.0"}[part[3]]
            part[1:4] = ["up_blocks", str(top - int(part[2])), kind]
        elif part[:2] == ["decoder", "mid"]:
            kind, _, number = part[2].partition("_")
            kind = {"block": "resnets", "attn": "attentions"}[kind]
            part[1:3] = ["mid_block", kind, str(int(number) - 1)]
        if "attentions" in part:
            part[-2] = (old if old_names else new)[part[-2]]
            if linear and tensor.ndim == 4:
                tensor = tensor[:, :, 0, 0].contiguous()
        renamed = ".".join(part).replace("nin_shortcut", "conv_shortcut")
        found[renamed.replace("decoder.norm_out", "decoder.conv_norm_out")] = tensor
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("names", "ch_mult", "attended"),
    [
        (lambda s: in_diffusers(s), (1, 2, 2), (1,)),
        (lambda s: in_diffusers(s, linear=False, old_names=True), (2, 1, 3), (0, 2)),
        (lambda s: {f"vae.{n}": t for n, t in in_diffusers(s).items()}, (1, 2), ()),
        (lambda s: {f"first_stage_model.{n}": t for n, t in s.items()}, (1, 2), ()),
        (lambda s: {f"module._orig_mod.{n}": t for n, t in s.items()}, (1, 2), (0,)),
    ],
    ids=["diffusers", "old diffusers", "a pipeline's", "latent diffusion", "wrapped"],
)
def test_the_names_of_other_libraries_are_the_same_decoder(
    names, ch_mult, attended, dtype, tmp_path
):
    state = {n: t.to(dtype) for n, t in random_kl_state(ch_mult, attended).items()}
    beside = {"model.diffusion_model.out.weight": torch.zeros(1), "encoder.x": torch.zeros(1),
              "cond_stage_model.transformer.weight": torch.zeros(1)}  # fmt: skip
    renamed = names(state)
    if "module._orig_mod.decoder.conv_in.weight" not in renamed:
        renamed |= beside
    torch.save({"state_dict": renamed}, tmp_path / "kl.ckpt")
    loaded = load_kl_decoder(tmp_path / "kl.ckpt").state_dict()
    assert set(loaded) == set(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(loaded[name], tensor.float(), err_msg=name)


def test_decoder_weights_that_are_not_finite_are_named(tmp_path):
    state = random_kl_state((1, 2), ())
    state["decoder.up.1.upsample.conv.bias"][3] = float("nan")
    torch.save({"model": state}, tmp_path / "kl.ckpt")
    with pytest.raises(CsdError, match=r"decoder\.up\.1\.upsample\.conv\.bias holds values that"):
        load_kl_decoder(tmp_path / "kl.ckpt")


def test_a_model_without_a_decoder_is_refused_with_a_remedy():
    with pytest.raises(
        CsdError, match=r"holds no KL decoder .*: give the autoencoder's checkpoint"
    ):
        load_kl_decoder(DATA / "target.pth")


@pytest.mark.parametrize(
    "name",
    [
        "decoder.conv_in.weight",
        "decoder.mid.attn_1.q.bias",
        "decoder.up.0.block.0.conv1.weight",
        "decoder.up.1.block.0.conv2.weight",
        "decoder.up.1.upsample.conv.weight",
        "post_quant_conv.bias",
    ],
)
def test_a_decoder_that_lacks_a_tensor_is_refused_by_its_name(name, tmp_path):
    state = random_kl_state((1, 2), ())
    del state[name]
    torch.save({"model": state}, tmp_path / "kl.ckpt")
    with pytest.raises(CsdError, match=name.replace(".", r"\.")):
        load_kl_decoder(tmp_path / "kl.ckpt")


def test_widths_that_group_norm_cannot_divide_are_refused(tmp_path):
    torch.save({"model": random_kl_state((1,), (), base=32)}, tmp_path / "kl.ckpt")
    state = {k: v[:20] if k.startswith("decoder.up") else v for k, v in
             random_kl_state((1,), (), base=32).items()}  # fmt: skip
    torch.save({"model": state}, tmp_path / "kl.ckpt")
    with pytest.raises(CsdError, match="not multiples of 32"):
        load_kl_decoder(tmp_path / "kl.ckpt")
