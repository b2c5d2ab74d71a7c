from __future__ import annotations

import numpy as np
import pytest

from csd.runtime import Bundle, GenerateOptions
from csd.runtime.backends import GraphDemand
from csd.runtime.backends.shapes import call_dims
from csd.runtime.decoding.demand import largest_calls
from csd.runtime.decoding.plan import Plan

from ...helpers import NUM_ITER, WatchedBackend

MODES = {
    "target": GenerateOptions(mode="target", num_iter=NUM_ITER, cfg=2.0, head="sequential"),
    "draft": GenerateOptions(mode="draft", num_iter=16, head="parallel"),
    "speculative": GenerateOptions(mode="target", num_iter=3, head="speculative"),
    "block": GenerateOptions(mode="csd", num_iter=NUM_ITER, gamma=3, head="auto"),
    "short block": GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=5, prefill=0.3, cfg=2.0, head="sequential"
    ),
    "one block": GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=20, prefill=0.0, head="sequential"
    ),
    "prefix": GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=3, verify="prefix", head="sequential"
    ),
    "prefix guided": GenerateOptions(
        mode="csd",
        num_iter=16,
        gamma=2,
        verify="prefix",
        cfg=2.0,
        head="parallel",
        inner_temperature=1.0,
    ),
    "guided in the middle": GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=3, cfg=2.0, cfg_interval=(0.3, 0.7), head="auto"
    ),
    "prefix guided in the middle": GenerateOptions(
        mode="csd",
        num_iter=NUM_ITER,
        gamma=2,
        verify="prefix",
        cfg=2.0,
        cfg_interval=(0.3, 0.7),
        head="speculative",
        inner_temperature=1e6,
    ),
    "all prefilled": GenerateOptions(mode="csd", num_iter=NUM_ITER, prefill=1.0, head="sequential"),
    "annealed": GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=3, head_steps=(20, 12), head="auto"
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_no_call_is_larger_than_was_announced(tiny_bundle, monkeypatch, mode):
    seen: dict[str, dict[str, int]] = {}
    bundle = Bundle.open(tiny_bundle, verify_files="never")

    def watch(name, feeds, outputs):
        name = name.replace("_", ".", 1) if name != "decoder" else name
        spec = bundle.manifest.graphs[name]
        dims = call_dims(name, spec, {key: value.shape for key, value in feeds.items()})
        own = seen.setdefault(name, {})
        own.update({key: max(size, own.get(key, 0)) for key, size in dims.items()})

    monkeypatch.setattr(
        "csd.runtime.session.create_backend",
        lambda folder, manifest, *_: WatchedBackend(folder, manifest, watch),
    )
    prepared, plain = [], WatchedBackend.prepare
    monkeypatch.setattr(
        WatchedBackend,
        "prepare",
        lambda self, demand: prepared.append(demand) or plain(self, demand),
    )
    alone = MODES[mode].verify == "prefix" and MODES[mode].mode == "csd"
    with bundle.session() as session:
        session.generate([1, 2], MODES[mode], seed=3)
        model = {role: session.model(role) for role in ("target", "draft")}
        plan = Plan.of(MODES[mode].resolved(bundle.manifest.target, 20), 16)
        demand = largest_calls(plan, 1 if alone else 2, model)
    announced = prepared[0]
    decoder = GraphDemand({"B": 1 if alone else 2}, shrinks="B")
    assert announced == {**demand, "decoder": decoder}
    announced = {graph: largest.sizes for graph, largest in announced.items()}
    for name, dims in seen.items():
        if name == "decoder":
            continue
        over = {key: size for key, size in dims.items() if size > announced[name][key]}
        assert not over, name
        # What is announced is also needed, but for rows, which drafts may make fewer, and for
        # the step after a block, which prefix verification may not get to.
        for key in ("B", "N", "S", "P", "V"):
            if key in dims and not (alone and key in ("N", "V")):
                assert dims[key] == announced[name][key], (name, key)


def test_tokens_are_sampled_in_the_chunks_that_a_backend_grants(tiny_bundle, monkeypatch):
    sizes = []

    def watch(name, feeds, outputs):
        if name == "target_head_modulation":
            sizes.append(len(feeds["z"]))

    class Small(WatchedBackend):
        def prepare(self, demand):
            granted = super().prepare(demand)
            changed = {"target.head_modulation": {**granted["target.head_modulation"], "N": 5}}
            return {**granted, **changed}

    bundle = Bundle.open(tiny_bundle, verify_files="never")
    options = GenerateOptions(mode="target", num_iter=2, cfg=2.0, head="sequential")
    with bundle.session() as session:
        wanted = session.generate([1, 2], options, seed=3).tokens
    monkeypatch.setattr(
        "csd.runtime.session.create_backend",
        lambda folder, manifest, *_: Small(folder, manifest, watch),
    )
    with bundle.session() as session:
        made = session.generate([1, 2], options, seed=3).tokens
    assert max(sizes) == 4  # two tokens with guidance
    assert sum(sizes) == 2 * 2 * 16
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-5)
