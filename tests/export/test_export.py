from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch

from csd.export.onnx.graphs import decoder_graph, model_graphs
from csd.export.onnx.parity import check_parity, reference
from csd.export.onnx.to_onnx import export_onnx
from csd.models import MAR, MARConfig
from csd.models.kl_decoder import load_kl_decoder
from csd.runtime import CsdError
from csd.runtime.backends import OnnxLoader

from ..helpers import tiny_config
from ..models.test_kl_decoder import random_kl_state


@pytest.mark.parametrize(
    ("ch_mult", "attended", "blocks"), [((1, 2), (), 2), ((1, 2, 2), (0, 2), 1)]
)
def test_decoders_of_other_architectures_export_with_parity(ch_mult, attended, blocks, tmp_path):
    torch.save({"model": random_kl_state(ch_mult, attended, blocks)}, tmp_path / "kl.ckpt")
    decoder = load_kl_decoder(tmp_path / "kl.ckpt")
    config = MARConfig(img_size=12, vae_stride=4, vae_embed_dim=4, latent_scale=0.5)
    graph = decoder_graph(decoder, config)
    path, weights = export_onnx(graph, tmp_path / "decoder.onnx")
    assert weights.stat().st_size > path.stat().st_size
    loaded = OnnxLoader(1).load(path)
    result = check_parity(reference(graph), loaded)
    print(f"largest difference {result.max_abs:.1e}")
    assert result.passed
    assert result.max_abs < 1e-4
    latents = torch.randn(3, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    image = loaded.run({"latents": latents.numpy()})["image"]
    with torch.inference_mode():
        np.testing.assert_allclose(image, decoder(latents / 0.5), atol=1e-4)


def test_exported_graphs_hold_no_boolean_indexing_and_few_kinds_of_operators(tiny_bundle):
    for path in sorted(tiny_bundle.glob("*.onnx")):
        model = onnx.load(path)
        onnx.checker.check_model(model)
        kinds = {node.op_type for node in model.graph.node}
        assert not kinds & {"NonZero", "Compress", "Loop", "If", "Scan", "RandomNormal"}, path.name
        assert {node.domain for node in model.graph.node} == {""}


def test_sizes_of_a_graph_stay_dynamic(tiny_bundle):
    model = onnx.load(tiny_bundle / "target_backbone.onnx")
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes["tokens"] == ["B", "V", 16]
    assert shapes["visible"] == ["B", "V"]
    assert shapes["query"] == ["B", "P"]
    assert shapes["label"] == ["B"]
    assert shapes["z"] == ["B", "P", 64]


@pytest.mark.parametrize(
    "change",
    [
        lambda outputs: {name: value + 1e-3 for name, value in outputs.items()},
        lambda outputs: {name: value * np.nan for name, value in outputs.items()},
        lambda outputs: {**outputs, "v": outputs["eps"]},
    ],
    ids=["off", "not a number", "swapped"],
)
def test_the_parity_check_detects_a_graph_that_differs(change):
    torch.manual_seed(0)
    model = MAR(tiny_config("draft")).eval()
    head = model_graphs("draft", model)[2]

    class Same:
        def run(self, feeds):
            with torch.inference_mode():
                eps, v = head.module(*(torch.from_numpy(value) for value in feeds.values()))
            return {"eps": eps.numpy(), "v": v.numpy()}

    class Broken(Same):
        def run(self, feeds):
            return change(super().run(feeds))

    wanted = reference(head)
    good, bad = check_parity(wanted, Same()), check_parity(wanted, Broken())
    assert good.passed
    assert good.max_abs == 0
    assert not bad.passed
    assert bad.max_abs > bad.tolerance


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_is_not_finite_in_pytorch_either_fails_parity(value):
    head = model_graphs("draft", MAR(tiny_config("draft")).eval())[2]

    class Sick(torch.nn.Module):
        def forward(self, x, step, token, mods):
            return x, x * value

    class Same:
        def run(self, feeds):
            return {"eps": feeds["x"], "v": feeds["x"] * np.float32(value)}

    result = check_parity(reference(dataclasses.replace(head, module=Sick())), Same())
    assert not result.passed
    assert result.max_abs == result.max_rel == float("inf")


def test_what_pytorch_cannot_export_is_one_error_of_the_user(tmp_path):
    model = MAR(tiny_config("draft")).eval()
    graph = model_graphs("draft", model)[2]

    class Stubborn(torch.nn.Module):
        def forward(self, x, step, token, mods):
            return (x if float(x.sum()) > 0 else -x), x

    broken = graph.__class__(**{**graph.__dict__, "module": Stubborn()})
    with pytest.raises(CsdError, match=r"cannot export draft\.head_step") as error:
        export_onnx(broken, tmp_path / "x.onnx")
    assert "\n" not in str(error.value)
