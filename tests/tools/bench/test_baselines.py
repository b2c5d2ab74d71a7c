from __future__ import annotations

import numpy as np
import pytest

from csd.runtime import Bundle, CsdError
from csd.tools.bench.baselines import eager_samplers

from ...helpers import DATA


def only_eager(bundle, weights=None, device="cpu"):
    return eager_samplers(bundle, ["eager"], weights, [1], device)["eager", 1]


def test_eager_takes_the_weights_that_the_bundle_was_exported_from(tiny_bundle):
    sampler = only_eager(Bundle.open(tiny_bundle))
    state = sampler.model.state_dict()
    assert len(state) > 10
    again = only_eager(Bundle.open(tiny_bundle), DATA / "target.pth")
    np.testing.assert_array_equal(state["z_proj.weight"], again.model.state_dict()["z_proj.weight"])


def test_eager_refuses_weights_that_are_gone_or_other_ones(make_bundle, tmp_path):
    moved = make_bundle(lambda v: v["sources"]["target"].update(path=str(tmp_path / "gone.pth")))
    for weights in (None, DATA / "draft.pth"):
        with pytest.raises(CsdError, match="give --target-weights FILE, or leave eager out"):
            only_eager(Bundle.open(moved), weights)
    assert only_eager(Bundle.open(moved), DATA / "target.pth")


def test_eager_of_a_bundle_that_names_no_source_is_an_error_of_the_user(make_bundle):
    bundle = Bundle.open(make_bundle(lambda values: values["sources"].clear()))
    with pytest.raises(CsdError, match="--target-weights"):
        only_eager(bundle)


def test_one_model_serves_every_baseline_and_thread_count(tiny_bundle):
    found = eager_samplers(Bundle.open(tiny_bundle), ["eager", "eager-bf16"], None, [1, 2], "cpu")
    assert list(found) == [("eager", 1), ("eager", 2), ("eager-bf16", 1), ("eager-bf16", 2)]
    assert len({id(sampler.model) for sampler in found.values()}) == 1


def test_without_baselines_nothing_is_looked_for(make_bundle):
    bundle = Bundle.open(make_bundle(lambda values: values["sources"].clear()))
    assert eager_samplers(bundle, [], None, [1], "cpu") == {}
