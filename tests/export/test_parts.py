from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from csd.export.cli import main
from csd.export.onnx import networks
from csd.export.parts import DecoderPart, ModelPart, in_memory
from csd.export.request import ExportRequest
from csd.export.writer import write_bundle
from csd.models import MAR, load_mar
from csd.models.kl_decoder import load_kl_decoder
from csd.runtime.errors import ConfigError, ExportError

from ..helpers import DATA, failure, leftovers, tiny_config

VAE = DATA / "vae.ckpt"


class Source:
    """Reads a part, and checks that the weights of none that was read before are in memory."""

    read: ClassVar[list[str]] = []
    made: ClassVar[list[torch.nn.Module]] = []

    def __init__(self, name, load):
        self.name, self.load = name, load

    def __call__(self):
        assert not [p for module in self.made for p in module.parameters() if p.numel()]
        self.read.append(self.name)
        self.made.append(self.load())
        return self.made[-1]


@pytest.fixture(autouse=True)
def nothing_read(monkeypatch):
    monkeypatch.setattr(Source, "read", [])
    monkeypatch.setattr(Source, "made", [])


@pytest.fixture
def exported(monkeypatch):
    """Names of the graphs that are exported."""
    names, plain = [], networks.export_onnx

    def export(graph, path, shared):
        names.append(graph.name)
        return plain(graph, path, shared)

    monkeypatch.setattr(networks, "export_onnx", export)
    return names


def _model(role):
    path, config = DATA / f"{role}.pth", tiny_config(role)
    return ModelPart(config, Source(role, lambda: load_mar(path, config)))


def _request(**changes):
    parts = {
        "target": _model("target"),
        "draft": _model("draft"),
        "decoder": DecoderPart(
            16, 2, Source("decoder", lambda: load_kl_decoder(DATA / "vae.ckpt"))
        ),
    }
    return ExportRequest(
        **{**parts, **changes}, name="tiny", head_steps=None, max_batch=1, max_gamma=1,
        class_names=None, sources={}, calibration_tokens=64,
    )  # fmt: skip


def test_every_part_is_read_once_and_none_beside_another(exported, tiny_bundle, tmp_path):
    said = []
    bundle = write_bundle(_request(), tmp_path / "bundle", force=False, report=said.append)
    assert Source.read == ["decoder", "draft", "target"]
    assert [line for line in said if "reading" in line] == [f"{n}: reading" for n in Source.read]
    assert not [p for module in Source.made for p in module.parameters() if p.numel()]
    assert all(row.passed for row in bundle.manifest.parity)
    assert list(bundle.manifest.models) == ["target", "draft"]
    kinds = ("backbone", "head_modulation", "head_step")
    names = [f"{role}.{kind}" for role in ("target", "draft") for kind in kinds]
    assert list(bundle.manifest.graphs) == [*names, "decoder"]


def test_a_part_that_fails_leaves_memory_too():
    model = MAR(tiny_config("draft"))
    with pytest.raises(KeyError), in_memory(lambda: model):
        raise KeyError
    assert not [p for p in model.parameters() if p.numel()]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"decoder": DecoderPart(8, 2, None)}, ExportError, "the decoder takes 8 latent channels"),
        ({"draft": ModelPart(replace(tiny_config("draft"), class_num=7), None)}, ConfigError,
         "class_num"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_before_any_is_read(changes, kind, message):
    with pytest.raises(kind, match=message):
        _request(**changes)
    assert Source.read == []


@pytest.mark.parametrize("sick", ["decoder", "draft", "target"])
def test_a_weight_that_is_not_finite_is_named_and_leaves_nothing(
    sick, exported, config_files, tmp_path, capsys
):
    files = {
        "target": DATA / "target.pth",
        "draft": DATA / "draft.pth",
        "decoder": DATA / "vae.ckpt",
    }
    content = torch.load(files[sick], weights_only=False)
    state = next(c for k, c in content.items() if k in ("model_ema", "model", "state_dict"))
    name = next(n for n in state if n.startswith(("decoder.conv_in", "fake_latent")))
    state[name].view(-1)[0] = torch.nan
    files[sick] = tmp_path / "sick.pth"
    torch.save({"model": state}, files[sick])
    out = tmp_path / "out"
    out.mkdir()
    argv = [part for option, path in files.items() for part in (f"--{option}", path)]
    for role in ("target", "draft"):
        argv += [f"--{role}-config", config_files[role]]
    message = failure(main, [*argv, "--out", out / "bundle"], capsys)
    assert f"sick.pth: {name} holds values that are not finite: give weights" in message
    assert leftovers(out) == []
    assert exported == []
