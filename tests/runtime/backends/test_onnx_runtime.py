from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from csd.runtime import BackendError, Bundle, GenerateOptions
from csd.runtime.backends import OnnxLoader, OnnxRuntimeBackend
from csd.runtime.backends.onnx_library import load_onnxruntime
from csd.runtime.backends.onnx_runtime import CUDA_PROVIDER, BoundGraph, KeptValue
from csd.runtime.bundle.graph_tensors import CACHES, LOCAL_GRAPHS
from csd.runtime.device import DeviceInfo, find_device
from csd.runtime.stats import _annotate, profiler_range

from ...helpers import NUM_ITER

DEVICE = DeviceInfo("GeForce", "8.9", "linux-x86_64", "13.0", 1 << 34)
OPTIONS = GenerateOptions(mode="csd", num_iter=NUM_ITER, gamma=3, cfg=2.0, head="auto")


class BoundLoader(OnnxLoader):
    """What runs on a CUDA device, on the CPU."""

    kept = 0

    def load(self, path):
        graph = BoundGraph(self._session(path, 1, spin=False), "cpu")

        class Graph:
            def run(self, feeds, rows=0, keep=()):
                BoundLoader.kept += sum(isinstance(v, KeptValue) for v in feeds.values())
                return graph.run(feeds, rows, keep)

        return Graph()


def test_bound_inputs_and_outputs_make_the_same_images(tiny_bundle, tiny_session, monkeypatch):
    wanted = tiny_session.generate([1, 2], OPTIONS, seed=4)
    monkeypatch.setattr(
        "csd.runtime.session.create_backend",
        lambda folder, manifest, *_: OnnxRuntimeBackend(folder, manifest, BoundLoader(1)),
    )
    with Bundle.open(tiny_bundle, verify_files="never").session() as session:
        made = session.generate([1, 2], OPTIONS, seed=4)
    assert BoundLoader.kept > 20
    np.testing.assert_allclose(made.tokens, wanted.tokens, rtol=1e-5, atol=1e-6)
    assert made.stats.device_memory_peak is None


def test_a_failure_of_a_bound_call_is_one_line(tiny_bundle):
    graph = BoundLoader(1).load(tiny_bundle / "decoder.onnx")
    with pytest.raises(BackendError, match=r"^onnxruntime failed \(.*\): give fewer images"):
        graph.run({"latents": np.zeros((1, 3, 4, 4), np.float32)})


def step_arrays(config, rows=6):
    step = {
        "x": np.ones((rows, config.token_dim), np.float32), "step": np.zeros(rows, np.int64),
        "token": np.zeros(rows, np.int64), "mods": np.ones((3, 1, config.modulation_dim), "f4"),
    }  # fmt: skip
    return step, {name: np.zeros((rows, config.token_dim), np.float32) for name in ("eps", "v")}


def test_a_bound_graph_reads_and_writes_the_same_arrays(tiny_session):
    graph, config = tiny_session.graph("target.head_step"), tiny_session.bundle.manifest.target
    inputs, outputs = step_arrays(config)
    call = graph.bind(inputs, outputs)
    for value in (1.0, -2.0):
        inputs["x"][:] = value
        call()
        wanted = graph.run(inputs)
        for name, array in outputs.items():
            np.testing.assert_array_equal(array, wanted[name])


def test_a_graph_with_many_rows_is_bound_in_its_spinning_threads(tiny_bundle, tiny_session):
    config = tiny_session.bundle.manifest.target
    graph = OnnxLoader(threads=2).load(tiny_bundle / "target_head_step.onnx")
    few, many = (graph.bind(*step_arrays(config), rows=rows) for rows in (6, 10**9))
    assert few.session.get_session_options().intra_op_num_threads == 1
    assert many.session.get_session_options().intra_op_num_threads == 2


def test_arrays_with_gaps_are_not_bound(tiny_session):
    inputs, outputs = step_arrays(tiny_session.bundle.manifest.target)
    inputs["x"] = np.repeat(inputs["x"], 2, axis=0)[::2]
    with pytest.raises(ValueError, match="dense arrays only"):
        tiny_session.graph("target.head_step").bind(inputs, outputs)


def test_a_failure_on_the_cpu_is_one_line_too(tiny_session):
    graph, config = tiny_session.graph("target.head_step"), tiny_session.bundle.manifest.target
    inputs, outputs = step_arrays(config)
    inputs["token"][2] = 7  # there is one token
    with pytest.raises(BackendError, match=r"^onnxruntime failed \(.*\): give fewer images"):
        graph.bind(inputs, outputs)()
    with pytest.raises(BackendError, match=r"^onnxruntime failed \(.*\): give fewer images"):
        graph.run(inputs)


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("fp16", "has no fp16 graphs: give --precision fp32, or export it with --precision fp16"),
        ("bf16", "onnxruntime has no --precision bf16: give fp32, or use engines"),
    ],
)
def test_a_precision_that_is_not_there_is_one_line(precision, message, tiny_bundle):
    for backend in ("onnxruntime", "auto"):
        with pytest.raises(BackendError, match=message):
            Bundle.open(tiny_bundle).session(backend, precision=precision)


def test_an_onnxruntime_without_cuda_says_what_to_install(tiny_bundle, monkeypatch):
    onnxruntime = load_onnxruntime()

    monkeypatch.setattr("csd.runtime.backends.find_device", lambda: DEVICE)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        BackendError,
        match="has no CUDA: pip uninstall -y onnxruntime onnxru",
    ):
        Bundle.open(tiny_bundle, verify_files="never").session("onnxruntime_cuda")


def test_a_provider_that_falls_back_to_the_cpu_is_refused(tiny_bundle, monkeypatch):
    onnxruntime = load_onnxruntime()

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: [CUDA_PROVIDER, "CPUExecutionProvider"]
    )
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession",
        lambda path, options, providers: real(path, options, providers=providers[1:]),
    )  # fmt: skip
    loader = OnnxLoader(1, DEVICE)
    bundle = Bundle.open(tiny_bundle, verify_files="never")
    backend = OnnxRuntimeBackend(bundle.path, bundle.manifest, loader)
    assert backend.name == "onnxruntime_cuda"
    assert backend.versions()["device"] == "GeForce"
    with pytest.raises(BackendError, match="cannot load its CUDA libraries: install CUDA"):
        backend.open("decoder")


@pytest.mark.gpu
def test_images_of_the_cuda_provider_are_those_of_the_cpu(tiny_bundle, tiny_session):
    try:
        find_device()
        session = Bundle.open(tiny_bundle).session("onnxruntime_cuda")
    except BackendError as error:
        pytest.skip(str(error))
    with session:
        made = session.generate([1, 2], OPTIONS, seed=4)
    wanted = tiny_session.generate([1, 2], OPTIONS, seed=4)
    np.testing.assert_allclose(made.tokens, wanted.tokens, rtol=1e-2, atol=1e-2)


def test_parts_of_a_run_are_ranges_of_a_profiler(tiny_session, monkeypatch):
    names = []

    class Annotate:
        def __init__(self, message, domain):
            assert domain == "csd"
            self.message = message

        def __enter__(self):
            names.append(self.message)

        def __exit__(self, *error):
            names.append(f"/{self.message}")

    module = types.ModuleType("nvtx")
    module.annotate = Annotate
    monkeypatch.setitem(sys.modules, "nvtx", module)
    _annotate.cache_clear()
    tiny_session.generate([1], GenerateOptions(mode="target", num_iter=1, head="sequential"))
    assert names == [
        "target backbone", "/target backbone", "target head", "/target head",
        "decoder", "/decoder",
    ]  # fmt: skip
    monkeypatch.setitem(sys.modules, "nvtx", None)
    _annotate.cache_clear()
    with profiler_range("nothing"):
        pass
    assert names[-1] == "/decoder"
    _annotate.cache_clear()


def test_caches_of_a_step_that_knows_nothing_stay_where_they_are(local_bundle):
    """As on a CUDA device, whose code is tried on the CPU: no known token makes an empty cache."""
    folder = Bundle.open(local_bundle)
    config = folder.manifest.target
    full, local = (
        BoundLoader(1).load(local_bundle / folder.manifest.graphs[f"target.{name}"].onnx_file)
        for name in LOCAL_GRAPHS
    )
    query = np.array([[3, 5]])
    known = {
        "tokens": np.zeros((1, 0, config.token_dim), np.float32),
        "visible": np.zeros((1, 0), np.int64), "query": query, "label": np.array([1]),
    }  # fmt: skip
    out = full.run(known, keep=CACHES)
    assert isinstance(out["z"], np.ndarray)
    assert all(isinstance(out[name], KeptValue) for name in CACHES)
    assert out["token_cache"].shape[3] == 0
    new = {
        "tokens": np.ones((1, 1, config.token_dim), np.float32), "new": np.array([[0]]),
        "query": query, **{name: out[name] for name in CACHES},
    }  # fmt: skip
    made = local.run(new)["z"]
    plain = OnnxLoader(1).load(
        local_bundle / folder.manifest.graphs["target.backbone_local"].onnx_file
    )
    arrays = {name: v.value.numpy() if isinstance(v, KeptValue) else v for name, v in new.items()}
    np.testing.assert_allclose(made, plain.run(arrays)["z"], rtol=0, atol=1e-5)
