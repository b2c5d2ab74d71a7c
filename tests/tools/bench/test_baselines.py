from __future__ import annotations

import numpy as np
import pytest
import torch

from csd.runtime import Bundle, CsdError
from csd.runtime.bundle.manifest import file_sha256
from csd.tools.bench.baselines import eager_samplers

from ...helpers import DATA

WEIGHTS = DATA / "target.pth"


def only_eager(bundle, weights=WEIGHTS, device="cpu"):
    return eager_samplers(bundle, ["eager"], weights, [1], device)["eager", 1]


def test_eager_takes_the_weights_that_the_bundle_was_exported_from(tiny_bundle, monkeypatch):
    bundle = Bundle.open(tiny_bundle)
    state = only_eager(bundle).model.state_dict()
    assert len(state) > 10
    monkeypatch.chdir(DATA)  # where a file of their name lies
    again = only_eager(bundle, None).model.state_dict()
    np.testing.assert_array_equal(state["z_proj.weight"], again["z_proj.weight"])


@pytest.mark.parametrize("key", ["model_ema", "model"])
def test_eager_takes_those_of_a_files_weights_that_the_export_took(key, make_bundle, tmp_path):
    content = torch.load(WEIGHTS, weights_only=True)
    content["model"] = {name: tensor + 1 for name, tensor in content["model_ema"].items()}
    torch.save(content, tmp_path / "checkpoint-last.pth")

    def change(values):
        sha256 = file_sha256(tmp_path / "checkpoint-last.pth")
        values["sources"]["target"] |= {"sha256": sha256, "weights": None, "key": key}

    model = only_eager(Bundle.open(make_bundle(change)), tmp_path / "checkpoint-last.pth").model
    np.testing.assert_array_equal(model.state_dict()["fake_latent"], content[key]["fake_latent"])


def test_eager_refuses_weights_that_are_gone_or_other_ones(tiny_bundle, tmp_path, monkeypatch):
    bundle = Bundle.open(tiny_bundle)
    monkeypatch.chdir(tmp_path)
    for weights in (None, DATA / "draft.pth"):
        with pytest.raises(CsdError, match="give --target-weights FILE, or leave eager out"):
            only_eager(bundle, weights)


def test_eager_of_a_bundle_that_names_no_source_is_an_error_of_the_user(make_bundle):
    bundle = Bundle.open(make_bundle(lambda values: values["sources"].clear()))
    with pytest.raises(CsdError, match="--target-weights"):
        only_eager(bundle)


def test_one_model_serves_every_baseline_and_thread_count(tiny_bundle):
    found = eager_samplers(
        Bundle.open(tiny_bundle), ["eager", "eager-bf16"], WEIGHTS, [1, 2], "cpu"
    )
    assert list(found) == [("eager", 1), ("eager", 2), ("eager-bf16", 1), ("eager-bf16", 2)]
    assert len({id(sampler.model) for sampler in found.values()}) == 1


def test_without_baselines_nothing_is_looked_for(make_bundle):
    bundle = Bundle.open(make_bundle(lambda values: values["sources"].clear()))
    assert eager_samplers(bundle, [], None, [1], "cpu") == {}
