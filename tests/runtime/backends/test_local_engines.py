"""Local AR steps on engines: caches stay on the device, and their memory is planned."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from csd.runtime import BackendError, Bundle, GenerateOptions
from csd.runtime.backends import GraphDemand
from csd.runtime.backends.tensorrt.plan import blocks, fit
from csd.runtime.bundle.graph_tensors import CACHES, LOCAL_GRAPHS
from csd.runtime.bundle.manifest import Manifest, local_graphs, needed_graphs

from ...helpers import NUM_ITER
from ...vendor.tensorrt.files import write_engines

LABELS = [3, 1, 4]
MODES = {
    "target": GenerateOptions(num_iter=NUM_ITER, head="sequential", refresh=(2, 1)),
    "guided": GenerateOptions(num_iter=NUM_ITER, head="sequential", refresh=(3, 1), cfg=2.0),
    "block": GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=3, head="sequential", refresh=(2, 1)
    ),
    "prefix": GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=3, verify="prefix", head="sequential", refresh=(2, 1)
    ),
    "measured": GenerateOptions(
        num_iter=NUM_ITER, head="sequential", refresh="auto", refresh_tolerance=1e9
    ),
}


@pytest.fixture(scope="module")
def engines(local_bundle, tmp_path_factory):
    """The bundle with engines of both libraries."""
    out = tmp_path_factory.mktemp("engines") / "bundle"
    shutil.copytree(local_bundle, out)
    manifest = Manifest.from_json((out / "manifest.json").read_text(encoding="utf-8"))
    names = [*needed_graphs(manifest), *local_graphs(manifest)]
    typed = ("mods", *(name for name in CACHES if name != "token_bias"))
    for backend, precisions in (("tensorrt", ("fp32", "fp16")), ("tensorrt_rtx", ("fp32",))):
        write_engines(out, backend, precisions=precisions, graphs=names, typed=typed)
    return out


def opened(engines, backend="tensorrt", **settings):
    return Bundle.open(engines, verify_files="never").session(backend, **settings)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("mode", MODES)
def test_tokens_are_those_of_onnxruntime(machine, engines, local_session, backend, mode):
    here = machine(backend)
    wanted = local_session.generate(LABELS, MODES[mode], seed=7)
    with opened(engines, backend, precision="fp32") as session:
        results = [session.generate(LABELS, MODES[mode], seed=7) for _ in range(2)]
    for result in results:
        assert result.stats.local_steps == wanted.stats.local_steps
        scale = np.abs(wanted.tokens).max()
        np.testing.assert_allclose(result.tokens, wanted.tokens, rtol=0, atol=1e-4 * scale)
    assert not here.cuda.device


def test_caches_do_not_cross(machine, engines):
    here = machine("tensorrt")
    options = MODES["target"]
    with opened(engines, precision="fp32") as session:
        config = session.bundle.manifest.target
        session.generate(LABELS, options, seed=7)
    decoder = 2 * config.decoder_depth * (config.seq_len + config.buffer_size)
    cache = 4 * len(LABELS) * decoder * config.decoder_embed_dim
    # A copy holds all that goes in, or all that comes out, of a call.
    largest = max(size for _, size in here.cuda.copies)
    assert largest < cache / 2


def test_half_precision_keeps_caches_in_half_the_bytes(machine, engines, local_session):
    machine("tensorrt")
    kept = {}
    for precision in ("fp32", "fp16"):
        with opened(engines, precision=precision) as session:
            made = session.generate(LABELS, MODES["target"], seed=7)
            kept[precision] = session.backend._device.arena._blocks["target.backbone_full"][1]
    assert kept["fp16"] < 0.6 * kept["fp32"]
    wanted = local_session.generate(LABELS, MODES["target"], seed=7).tokens
    error = np.abs(made.tokens - wanted).max() / np.abs(wanted).max()
    print(f"fp16 caches and adaLN values: largest error {error:.1e} of the largest token")
    assert 0 < error < 0.05


def test_memory_is_planned_once_with_a_block_for_each_models_caches(machine, engines):
    here = machine("tensorrt")
    sizes = []
    allocate = here.cuda.module.cudaMalloc
    here.cuda.module.cudaMalloc = lambda size: sizes.append(size) or allocate(size)
    with opened(engines, precision="fp32") as session:
        stats = session.generate(LABELS, MODES["block"], seed=7).stats
        # adaLN values, what is used in turn, and the caches of target and draft.
        assert len(sizes) == 4
        weights = sum(engine.size for engine in session.backend.engines.values())
        assert stats.device_memory_peak == weights + sum(sizes)
        session.generate(LABELS, MODES["target"], seed=7)
        assert len(sizes) == 4


def test_a_memory_limit_decodes_fewer_images_at_once(machine, engines, local_session):
    machine("tensorrt")
    options = MODES["guided"]
    with opened(engines, precision="fp32") as session:
        free = session.generate(LABELS, options, seed=7).stats.device_memory_peak
        weights = sum(engine.size for engine in session.backend.engines.values())
    limit = (weights + (free - weights) // 2 + (1 << 20) - 1) >> 20
    assert limit << 20 < free
    with opened(engines, precision="fp32", memory_limit=limit) as session:
        result = session.generate(LABELS, options, seed=7)
    assert weights < result.stats.device_memory_peak <= limit << 20
    wanted = local_session.generate(LABELS, options, seed=7).tokens
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(result.tokens, wanted, rtol=0, atol=1e-4 * scale)


def test_what_a_lasting_graph_kept_is_good_until_it_keeps_again(machine, engines):
    machine("tensorrt")
    with opened(engines, precision="fp32") as session:
        config = session.bundle.manifest.target
        full = session.graph("target.backbone_full", lasting=True)
        local = session.graph("target.backbone_local")
        head = session.graph("target.head_modulation")
        channels = config.token_dim
        known = {
            "tokens": np.ones((1, 4, channels), np.float32),
            "visible": np.arange(4)[None], "query": np.array([[5, 6]]), "label": np.array([1]),
        }  # fmt: skip
        new = {
            "tokens": np.ones((1, 1, channels), np.float32),
            "new": np.array([[4]]), "query": np.array([[5, 6]]),
        }  # fmt: skip
        out = full.run(known, keep=CACHES)
        kept = {name: out[name] for name in CACHES}
        first = local.run({**new, **kept})["z"]
        z = out["z"].reshape(-1, out["z"].shape[-1])
        head.run({"z": z, "timestep": np.arange(20)}, keep=("mods",))
        np.testing.assert_array_equal(local.run({**new, **kept})["z"], first)
        full.run(known, keep=CACHES)
        with pytest.raises(RuntimeError, match="a kept tensor was overwritten"):
            local.run({**new, **kept})


def test_without_their_engines_the_command_that_builds_them_is_named(machine, local_bundle):
    machine("tensorrt")
    folder = local_bundle.with_name("no-local-engines")
    shutil.copytree(local_bundle, folder)
    write_engines(folder, "tensorrt")
    with opened(folder, precision="fp32") as session:
        session.generate([1], GenerateOptions(num_iter=2, head="sequential"))
        with pytest.raises(BackendError, match=r"engine of target\.backbone_full") as e:
            session.generate([1], MODES["target"])
    assert f"csd-export --rebuild {folder} --backend tensorrt" in str(e.value)


def test_blocks_that_last_add_up_and_others_are_shared():
    needs = {"a.full": (400, 10), "b.full": (300, 20), "a.head": (50, 30), "b.head": (60, 5)}
    demand = {
        "a.full": GraphDemand({"B": 8}, shrinks="B", reader="a.local"),
        "b.full": GraphDemand({"B": 8}, shrinks="B"),
        "a.head": GraphDemand({"N": 8}, shrinks="N"),
        "b.head": GraphDemand({"N": 8}, shrinks="N"),
        "a.local": GraphDemand({"B": 8}, shrinks="B"),
    }
    own = {"a.full": "a.full", "b.full": "b.full"}

    def need(graph, dims):
        kept, turn = needs.get(graph, (0, 0))
        size = next(iter(dims.values()))
        return kept * size // 8, turn * size // 8

    sizes = {graph: largest.sizes for graph, largest in demand.items()}
    assert blocks(sizes, need, own) == {
        "a.full": 400, "b.full": 300, "kept": 60, "turn": 30,
    }  # fmt: skip
    assert fit(demand, need, 790, 0, own) == sizes
    less = fit(demand, need, 789, 0, own)
    assert less["a.full"] == {"B": 4} == less["a.local"]  # the largest, with its reader
    assert less["b.full"] == {"B": 8}
    with pytest.raises(BackendError, match="needs 1 MB of device memory"):
        fit(demand, need, 50, 0, own)


def test_the_graphs_are_told_apart_from_those_that_decoding_needs(engines):
    manifest = Bundle.open(engines, verify_files="never").manifest
    local = [f"{role}.{name}" for role in ("target", "draft") for name in LOCAL_GRAPHS]
    assert list(local_graphs(manifest)) == local
    assert not set(local) & set(needed_graphs(manifest))
