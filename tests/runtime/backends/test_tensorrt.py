"""The TensorRT backends on stand-ins for the vendor's packages (`tests/vendor`)."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import time
import types

import ml_dtypes
import numpy as np
import pytest

from csd.export.arguments import build_parser as engine_parser
from csd.export.profiles import parse_change
from csd.export.seal import seal
from csd.plugins import build, launch
from csd.runtime import (
    BackendError,
    Bundle,
    BundleError,
    GenerateOptions,
    NumericsError,
    OptionError,
)
from csd.runtime.backends import BACKENDS, BackendOptions, obstacles
from csd.runtime.backends.engines import graph_spec
from csd.runtime.backends.onnx_runtime import OnnxLoader, OnnxRuntimeBackend
from csd.runtime.backends.tensorrt import binding, memory
from csd.runtime.bundle.manifest import file_sha256
from csd.runtime.device import DeviceInfo, current_platform

from ...helpers import NUM_ITER, forge_hashes, with_engines
from ...plugins.emulation import compile_emulated, emulate
from ...vendor import cuda_bindings as fake_cuda
from ...vendor.cuda_core import install_cuda_core
from ...vendor.tensorrt import runtime as fake_tensorrt
from ...vendor.tensorrt.common import VERSIONS
from ...vendor.tensorrt.files import write_engines

MODES = {
    "target": GenerateOptions(mode="target", num_iter=NUM_ITER, head="sequential"),
    "draft": GenerateOptions(mode="draft", num_iter=NUM_ITER, head="speculative"),
    "block": GenerateOptions(mode="csd", num_iter=NUM_ITER, gamma=3, head="sequential"),
    "block auto": GenerateOptions(mode="csd", num_iter=NUM_ITER, gamma=3, head="auto"),
    "prefix": GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=3, verify="prefix", head="sequential"
    ),
    "prefix guided": GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=3, verify="prefix", cfg=2.0, head="sequential"
    ),
    "guided": GenerateOptions(mode="csd", num_iter=NUM_ITER, gamma=3, cfg=2.0, head="speculative"),
    "parallel": GenerateOptions(mode="target", num_iter=NUM_ITER, head="parallel", cfg=1.5),
    "annealed": GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=3, head_steps=(20, 17), head="auto"
    ),
}
LABELS = [3, 1, 4]


@pytest.fixture(scope="module")
def engines(tiny_bundle, tmp_path_factory):
    """The tiny bundle with engines of both libraries."""
    out = tmp_path_factory.mktemp("engines") / "bundle"
    shutil.copytree(tiny_bundle, out)
    for backend in VERSIONS:
        write_engines(out, backend, precisions=("fp32", "fp16"))
    return out


@pytest.fixture(scope="module")
def expected(tiny_session):
    """Tokens of ONNX Runtime in every mode."""
    made = {}

    def tokens(mode):
        if mode not in made:
            made[mode] = tiny_session.generate(LABELS, MODES[mode], seed=7)
        return made[mode]

    return tokens


@pytest.mark.parametrize("capture", [True, False], ids=["recorded", "plain"])
@pytest.mark.parametrize("mode", MODES)
def test_images_are_those_of_onnxruntime(machine, engines, expected, mode, capture):
    backend = "tensorrt" if capture else "tensorrt_rtx"
    here = machine(backend)
    bundle = Bundle.open(engines)
    with bundle.session(backend, precision="fp32", cuda_graph=capture) as session:
        results = [session.generate(LABELS, MODES[mode], seed=7) for _ in range(2)]
    wanted = expected(mode)
    for result in results:
        np.testing.assert_allclose(result.tokens, wanted.tokens, rtol=1e-4, atol=1e-4)
        assert np.abs(result.images.astype(int) - wanted.images).max() <= 1
    assert (here.cuda.launches > 0) == capture
    assert not here.cuda.device
    assert not here.cuda.pinned
    assert not here.cuda.streams
    assert not here.cuda.graphs


def opened(engines, backend="tensorrt", **settings):
    return Bundle.open(engines, verify_files="never").session(backend, **settings)


def refused(engines, backend, **settings):
    """The one line that a session is refused with."""
    with pytest.raises(BackendError) as error:
        opened(engines, backend, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_half_precision_values_stay_on_the_device_and_make_nearly_the_same_images(
    machine, engines, expected
):
    here = machine("tensorrt")
    with opened(engines) as session:
        assert session.versions()["precision"] == "fp16"
        result = session.generate(LABELS, MODES["target"], seed=7)
    wanted = expected("target").tokens
    error = np.abs(result.tokens - wanted).max() / np.abs(wanted).max()
    print(f"fp16 adaLN values: largest error {error:.1e} of the largest token")
    assert 0 < error < 0.05
    # 16 tokens, 20 head steps: the values would be most of what crosses.
    values = 2 * 20 * 16 * len(LABELS) * session.bundle.manifest.target.modulation_dim
    assert sum(size for _, size in here.cuda.copies) < values


def test_the_first_library_that_runs_the_bundle_is_taken(machine, engines, tiny_bundle):
    machine("tensorrt", "tensorrt_rtx")
    for backends, chosen in (
        (("tensorrt", "tensorrt_rtx"), "tensorrt"),
        (("tensorrt_rtx",), "tensorrt_rtx"),
        ((), "onnxruntime"),
    ):
        machine(*backends)
        with opened(engines, "auto") as session:
            assert session.backend.name == chosen
    with opened(tiny_bundle, "auto") as session:
        assert session.backend.name == "onnxruntime"


def test_versions_name_the_library_the_device_and_the_driver(machine, engines):
    machine("tensorrt_rtx")
    with opened(engines, "tensorrt_rtx", precision="fp32") as session:
        versions = session.versions()
    assert versions["tensorrt_rtx"] == "1.7.1.116"
    assert versions["cuda"] == "12.6"
    assert versions["driver"] == "12.6"
    assert versions["device"] == "Orin"
    assert versions["compute_capability"] == "8.7"
    assert versions["precision"] == "fp32"


def test_a_backend_that_cannot_run_says_why_and_what_mends_it(machine, engines, tiny_bundle):
    machine()
    assert "tensorrt is not installed" in (said := refused(engines, "tensorrt"))
    assert "on Jetson it comes with JetPack" in said
    assert "tensorrt-rtx cuda-bindings cuda-core" in refused(engines, "tensorrt_rtx")
    assert "has no TensorRT engines: csd-export --rebuild" in refused(tiny_bundle, "tensorrt")
    machine("tensorrt", device=DeviceInfo("GeForce", "8.9", current_platform(), "13.0", 1 << 34))
    assert (
        "engine of target.backbone built by TensorRT 10.3.0.26 for sm_87; this machine has "
        "10.3.0.26 on sm_89: csd-export --rebuild"
    ) in refused(engines, "tensorrt")
    assert "built by TensorRT 10.3.0.26 for sm_87" in refused(engines, "auto", memory_limit=100)
    for settings in ({"precision": "bf16"}, {"memory_limit": 100}):
        flag = next(iter(settings)).replace("_", "-")
        assert f"onnxruntime has no --{flag}" in refused(engines, "onnxruntime", **settings)


def test_missing_cuda_bindings_are_named(machine, engines, monkeypatch):
    machine("tensorrt")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert "cuda.bindings is not installed" in (said := refused(engines, "tensorrt"))
    assert "pip install cuda-bindings" in said


def test_bindings_that_are_too_new_for_the_driver_are_named(machine, engines):
    here = machine("tensorrt")
    here.cuda.version = 12090
    opened(engines).close()
    here.cuda.version = 13000
    assert refused(engines, "tensorrt") == (
        "cuda.bindings is for CUDA 13.0, the driver runs 12.6: pip install 'cuda-bindings==12.*', "
        "or update the driver"
    )


def test_obstacles_are_listed_for_every_backend(machine, engines):
    machine("tensorrt")
    bundle = Bundle.open(engines, verify_files="never")
    reasons = obstacles(bundle.path, bundle.manifest, BackendOptions())
    assert set(reasons) == set(BACKENDS)
    assert reasons["tensorrt"] is reasons["onnxruntime"] is None
    assert "tensorrt-rtx cuda-bindings cuda-core" in reasons["tensorrt_rtx"]
    assert "pip install onnxruntime-gpu" in reasons["onnxruntime_cuda"]


@pytest.mark.parametrize("settings", [{"precision": "int4"}, {"memory_limit": 0}, {"threads": 0}])
def test_settings_out_of_range_are_refused(engines, settings):
    name = next(iter(settings)).replace("_", "-")
    with pytest.raises(OptionError, match=f"{name} is"):
        opened(engines, "auto", **settings)


@pytest.fixture
def small_engines(make_bundle):
    """The tiny bundle with engines of lowered profiles."""

    def make(most, **kwargs):
        bundle = make_bundle()
        write_engines(bundle, "tensorrt", most=most, **kwargs)
        return bundle

    return make


def test_calls_that_are_larger_than_a_profile_are_split(machine, small_engines, expected):
    here = machine("tensorrt")
    most = {
        "target.head_step": {"R": 7}, "draft.head_step": {"R": 11}, "target.backbone": {"B": 1},
        "target.head_modulation": {"N": 4}, "decoder": {"B": 2},
    }  # fmt: skip
    bundle = small_engines(most)
    for mode in ("guided", "prefix", "parallel"):
        with opened(bundle) as session:
            result = session.generate(LABELS, MODES[mode], seed=7)
        np.testing.assert_allclose(result.tokens, expected(mode).tokens, rtol=1e-4, atol=1e-4)
    assert here.cuda.launches > 0


def test_what_cannot_be_split_names_the_profile_before_anything_is_decoded(machine, small_engines):
    here = machine("tensorrt")
    with opened(small_engines({"target.head_step": {"S": 19}})) as session:
        with pytest.raises(BackendError) as error:
            session.generate(LABELS, MODES["target"])
        assert here.libraries["tensorrt"].calls == 0
        session.generate(
            LABELS, GenerateOptions(mode="target", num_iter=2, head_steps=19, head="sequential")
        )
    assert "target.head_step was asked for S = 20, its engine's profile takes 1 to 19" in str(
        error.value
    )
    assert "--profile target.head_step.S=1:20:20" in str(error.value)


def rebuild_argv(error):
    """The arguments of the one command that a message gives."""
    _, command = str(error.value).split(": csd-export ")
    return command.split(" ")


@pytest.mark.parametrize("mode", ["target", "block"])
def test_one_command_widens_the_profiles_of_both_models(machine, small_engines, mode):
    machine("tensorrt")
    lowered = {f"{role}.{graph}": {"S": 19} for role in ("target", "draft")
               for graph in ("head_modulation", "head_step")}  # fmt: skip
    bundle = small_engines({**lowered, "draft.head_step": {"S": 20}})
    with opened(bundle) as session, pytest.raises(BackendError) as error:
        session.generate(LABELS, MODES[mode])
    argv = rebuild_argv(error)
    options = engine_parser().parse_args(argv)
    assert (options.rebuild, options.backend) == (bundle, "tensorrt")
    assert {parse_change(one).text for one in options.profile} == {
        f"{graph}.S=1:20:20" for graph in lowered if graph != "draft.head_step"
    }


def test_engines_that_take_one_token_are_widened_for_guidance(machine, small_engines):
    machine("tensorrt")
    bundle = small_engines({"target.head_step": {"N": 1}, "draft.head_modulation": {"N": 1}})
    with opened(bundle) as session, pytest.raises(BackendError, match="asked for N = 2") as error:
        session.generate(
            LABELS, GenerateOptions(mode="target", num_iter=2, cfg=2.0, head="sequential")
        )
    assert {one for one in rebuild_argv(error) if ".N=" in one} == {
        "target.head_step.N=1:2:2", "draft.head_modulation.N=1:2:2",
    }  # fmt: skip


@pytest.mark.parametrize("backend", VERSIONS)
def test_a_run_is_timed_by_two_events_that_are_made_once(machine, engines, backend):
    here = machine(backend)
    with opened(engines, backend, precision="fp32") as session:
        events = set(here.cuda.events)
        assert len(events) == 2
        for milliseconds in (2.0, 5.0):
            here.cuda.milliseconds, before = milliseconds, here.cuda.now
            stats = session.generate(LABELS, MODES["block"], seed=7).stats
            # The events are taken in no time, which the stand-in\'s clock knows nothing of.
            took = (here.cuda.now - before) / 1e3
            assert 0 < stats.device_seconds == pytest.approx(took, rel=0.01)
            assert stats.to_dict()["device_seconds"] == stats.device_seconds
            assert 0 < stats.seconds != stats.device_seconds
        assert set(here.cuda.events) == events
    assert not here.cuda.events


def test_what_a_consumer_takes_is_no_time_of_the_device(machine, engines):
    here = machine("tensorrt")
    with opened(engines, precision="fp32") as session:
        before, slept = here.cuda.now, 0.0
        with session.stream(LABELS, MODES["target"], seed=7) as stream:
            for _ in stream:
                began = time.perf_counter()
                time.sleep(0.05)
                slept += time.perf_counter() - began
                here.cuda.now = here.cuda.now + 50
        taken = (here.cuda.now - before) / 1e3
        assert stream.result.stats.device_seconds == pytest.approx(taken - slept, abs=0.02)


@pytest.mark.parametrize("mode", ["target", "block auto", "prefix guided"])
def test_a_stream_that_is_cancelled_leaves_the_device_to_the_next_run(
    machine, engines, expected, mode
):
    here = machine("tensorrt")
    with opened(engines, precision="fp32") as session:
        session.generate(LABELS, MODES[mode], seed=7)
        held = sum(memory.size for memory in here.cuda.device.values())
        for events in (1, 3):
            with session.stream(LABELS, MODES[mode], seed=8) as stream:
                shown = [next(stream).images() for _ in range(events)]
        result = session.generate(LABELS, MODES[mode], seed=7)
        assert sum(memory.size for memory in here.cuda.device.values()) == held
    assert len(shown) == 3
    np.testing.assert_allclose(result.tokens, expected(mode).tokens, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", ["cudaMemcpyAsync", "cudaStreamEndCapture", "cudaMalloc"])
@pytest.mark.parametrize("call", [1, 2, 9, 40])
def test_after_ctrl_c_on_the_way_to_the_device_the_next_run_is_whole(
    machine, engines, expected, function, call
):
    """Within a recording the stream must not stay a recording one, nor half a reservation stay."""
    here = machine("tensorrt")
    plain, left = getattr(here.cuda.module, function), [call]

    def interrupted(*arguments):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return plain(*arguments)

    with opened(engines, precision="fp32") as session:
        setattr(here.cuda.module, function, interrupted)
        with contextlib.suppress(KeyboardInterrupt):  # few blocks are allocated
            session.generate(LABELS, MODES["target"], seed=8)
        setattr(here.cuda.module, function, plain)
        for _ in range(2):
            result = session.generate(LABELS, MODES["target"], seed=7)
            wanted = expected("target")
            np.testing.assert_allclose(result.tokens, wanted.tokens, rtol=1e-4, atol=1e-4)


def test_ctrl_c_within_a_recording_ends_it(machine, engines, expected):
    here = machine("tensorrt")
    plain = here.cuda.module.cudaMemcpyAsync

    def interrupted(*arguments):
        if any(stream.captured is not None for stream in here.cuda.streams.values()):
            here.cuda.module.cudaMemcpyAsync = plain
            raise KeyboardInterrupt
        return plain(*arguments)

    with opened(engines, precision="fp32") as session:
        here.cuda.module.cudaMemcpyAsync = interrupted
        with pytest.raises(KeyboardInterrupt):
            session.generate(LABELS, MODES["target"], seed=8)
        result = session.generate(LABELS, MODES["target"], seed=7)
    np.testing.assert_allclose(result.tokens, expected("target").tokens, rtol=1e-4, atol=1e-4)


def test_memory_is_planned_once_and_its_peak_reported(machine, engines):
    here = machine("tensorrt")
    sizes = []
    allocate = here.cuda.module.cudaMalloc
    here.cuda.module.cudaMalloc = lambda size: sizes.append(size) or allocate(size)
    with opened(engines, precision="fp32") as session:
        assert not sizes
        stats = session.generate(LABELS, MODES["guided"], seed=7).stats
        assert len(sizes) == 2  # what is kept, and what is used in turn
        weights = sum(engine.size for engine in session.backend.engines.values())
        assert stats.device_memory_peak == weights + sum(sizes)
        assert stats.to_dict()["device_memory_peak_bytes"] == stats.device_memory_peak
        session.generate(LABELS[:1], MODES["target"], seed=7)
        assert len(sizes) == 2


def test_a_memory_limit_splits_calls_and_keeps_to_it(machine, engines, expected):
    machine("tensorrt")
    options = MODES["parallel"]
    with opened(engines, precision="fp32") as session:
        free = session.generate(LABELS, options, seed=7).stats.device_memory_peak
        weights = sum(engine.size for engine in session.backend.engines.values())
    limit = (weights + (free - weights) // 3 + (1 << 20) - 1) >> 20
    assert limit << 20 < free
    with opened(engines, precision="fp32", memory_limit=limit) as session:
        result = session.generate(LABELS, options, seed=7)
    assert weights < result.stats.device_memory_peak <= limit << 20
    np.testing.assert_allclose(result.tokens, expected("parallel").tokens, rtol=1e-4, atol=1e-4)


def test_a_memory_limit_that_is_too_low_says_what_is_needed(machine, engines):
    machine("tensorrt")
    with opened(engines, precision="fp32", memory_limit=7) as session:
        with pytest.raises(BackendError, match="the limit is 7 MB: give --memory-limit") as error:
            session.generate(LABELS, MODES["target"])
        needed = int(str(error.value).split("--memory-limit ")[1].split(",")[0])
    with opened(engines, precision="fp32", memory_limit=needed) as session:
        assert session.generate(LABELS, MODES["target"]).stats.device_memory_peak <= needed << 20


def test_memory_of_an_earlier_run_goes_where_a_limit_leaves_no_room_for_it(machine, engines):
    here = machine("tensorrt")
    with opened(engines, precision="fp32") as session:
        arena = session.backend._device.arena
        arena.weights, arena.limit = 100, 1100
        arena.renew(kept=700, turn=100)
        arena.renew(kept=100, turn=800)
        assert sorted(block.size for block in here.cuda.device.values()) == [100, 800]
        arena.renew(kept=50, turn=50)
        assert sorted(block.size for block in here.cuda.device.values()) == [100, 800]
        with pytest.raises(BackendError, match="needs 1 MB of device memory, the limit is 0 MB"):
            arena.reserve(rounds=200)
        assert arena.peak == 900


def test_a_reservation_that_fails_takes_nothing(machine, engines):
    here = machine("tensorrt")
    with opened(engines, precision="fp32") as session:
        arena = session.backend._device.arena
        here.cuda.free = 1000
        arena.reserve(turn=300)
        with pytest.raises(BackendError, match="no 0 MB left"):
            arena.reserve(rounds=600, turn=500)
        assert not here.cuda.device
        arena.reserve(turn=500)
        assert [block.size for block in here.cuda.device.values()] == [500]


def test_a_graph_that_the_bundle_has_not_is_one_line(machine, engines):
    machine("tensorrt")
    with opened(engines) as session, pytest.raises(BundleError, match=r"has no graph ops\.accept"):
        session.graph("ops.accept")


def test_a_device_without_memory_left_says_so(machine, engines):
    here = machine("tensorrt")
    free, here.cuda.free = here.cuda.free, 1000
    with opened(engines) as session:
        with pytest.raises(BackendError) as error:
            session.generate(LABELS, MODES["target"])
        here.cuda.free = free
        session.generate(LABELS, MODES["target"])
    assert "MB left (cudaErrorMemoryAllocation; 0 MB are free): give --memory-limit" in str(
        error.value
    )


def test_a_call_is_recorded_when_it_repeats(machine, engines):
    here = machine("tensorrt")
    with opened(engines, precision="fp32") as session:
        session.generate(LABELS, MODES["target"], seed=7)
        enqueued, launched = here.libraries["tensorrt"].calls, here.cuda.launches
        recorded = session.backend.recordings()
        assert recorded["target.backbone"] == (0, None)  # no shape came twice
        assert recorded["target.head_step"][0] > 0
        # One shape: the first call plain, the second before its recording, the others launched.
        steps = 20 * NUM_ITER
        assert launched > 0.8 * steps
        contexts = here.libraries["tensorrt"].contexts
        session.generate(LABELS, MODES["target"], seed=8)
        assert session.backend.recordings()["target.backbone"][0] == NUM_ITER
        session.generate(LABELS, MODES["target"], seed=9)
        assert here.cuda.launches > launched + 2 * steps
        assert here.libraries["tensorrt"].contexts < contexts + 3 * NUM_ITER
    assert enqueued > 0


@pytest.mark.parametrize("refuse", ["capture", "library", "limit"])
def test_what_cannot_be_recorded_is_run_plainly(machine, engines, expected, refuse, monkeypatch):
    backend = "tensorrt_rtx" if refuse == "library" else "tensorrt"
    here = machine(backend)
    here.cuda.captures = refuse != "capture"
    here.libraries[backend].capturable = refuse != "library"
    if refuse == "limit":
        monkeypatch.setattr("csd.runtime.backends.tensorrt.capture.MOST_RECORDINGS", 1)
    with opened(engines, backend, precision="fp32") as session:
        for _ in range(2):
            result = session.generate(LABELS, MODES["target"], seed=7)
        count, reason = session.backend.recordings()["target.head_step"]
    np.testing.assert_allclose(result.tokens, expected("target").tokens, rtol=1e-4, atol=1e-4)
    if refuse == "limit":
        assert (count, reason) == (1, None)
    else:
        assert count == here.cuda.launches == 0
        assert "Invalidated" in reason or "cannot be recorded" in reason
        # It was tried once in each graph, not at every call.
        assert here.libraries[backend].contexts <= 7 + 7


def test_a_recording_that_needs_more_scratch_than_a_plain_call_is_not_made(
    machine, engines, expected, monkeypatch
):
    here = machine("tensorrt_rtx")
    honest, create = binding.Binding.scratch_bytes, binding.Binding.create_context
    recorders = []

    def note(self, engine, *, captured):
        context = create(self, engine, captured=captured)
        recorders.extend([context] if captured else [])
        return context

    def more(self, context, engine):
        return honest(self, context, engine) + 4096 * any(context is one for one in recorders)

    monkeypatch.setattr(binding.Binding, "create_context", note)
    monkeypatch.setattr(binding.Binding, "scratch_bytes", more)
    with opened(engines, "tensorrt_rtx", precision="fp32") as session:
        result = session.generate(LABELS, MODES["target"], seed=7)
        count, reason = session.backend.recordings()["target.head_step"]
    np.testing.assert_allclose(result.tokens, expected("target").tokens, rtol=1e-4, atol=1e-4)
    assert count == here.cuda.launches == 0
    assert "bytes of scratch, a plain call" in reason


def test_an_older_library_without_sized_scratch_memory_works(machine, engines, expected):
    machine("tensorrt", old=True)
    with opened(engines, precision="fp32") as session:
        result = session.generate(LABELS, MODES["target"], seed=7)
    np.testing.assert_allclose(result.tokens, expected("target").tokens, rtol=1e-4, atol=1e-4)


def test_a_failure_of_the_library_is_one_line_with_its_first_message(machine, engines):
    here = machine("tensorrt")
    with opened(engines) as session:
        here.libraries["tensorrt"].fail_after = 12
        with pytest.raises(BackendError) as error:
            session.generate(LABELS, MODES["target"])
        here.libraries["tensorrt"].fail_after = None
    assert "TensorRT cannot run an engine (the first reason): " in str(error.value)


def test_an_engine_that_cannot_be_read_or_is_another_graph_is_named(machine, small_engines):
    machine("tensorrt")
    bundle = small_engines({})
    folder = bundle / "engines" / "tensorrt" / "sm_87"
    path = folder / "target.head_step.fp32.engine"
    whole = path.read_bytes()
    path.write_bytes(b"\x00garbage")
    forge_hashes(bundle)
    said = refused(bundle, "tensorrt")
    assert "cannot load engines/tensorrt/sm_87/target.head_step.fp32.engine" in said
    assert "(the engine's header is not readable): csd-export --rebuild" in said
    path.write_bytes((folder / "target.backbone.fp32.engine").read_bytes())
    forge_hashes(bundle)
    assert "is not an engine of target.head_step in fp32 (see tensor eps)" in refused(
        bundle, "tensorrt"
    )
    path.write_bytes(whole.replace(b'"float32"', b'"float16"', 1))
    forge_hashes(bundle)
    assert "in fp32 (see tensor x): csd-export" in refused(bundle, "tensorrt")


@pytest.fixture
def graphs(machine, engines):
    """Graphs of the tiny target on a stand-in, and the machine."""
    here = machine("tensorrt")
    with opened(engines, precision="fp32") as session:
        yield session.graph, session.bundle.manifest.target, here


def _modulation(graph, config, seed, tokens=3):
    z = np.random.default_rng(seed).standard_normal((tokens, config.condition_dim))
    feeds = {"z": z.astype(np.float32), "timestep": np.arange(5)}
    return graph("target.head_modulation").run(feeds, keep=("mods",))["mods"], feeds


def _step_feeds(config, mods, rows=6):
    rng = np.random.default_rng(rows)
    return {
        "x": rng.standard_normal((rows, config.token_dim)).astype(np.float32),
        "step": rng.integers(5, size=rows), "token": rng.integers(3, size=rows), "mods": mods,
    }  # fmt: skip


def test_kept_values_are_good_until_others_are_kept(graphs):
    graph, config, here = graphs
    mods, feeds = _modulation(graph, config, seed=1)
    assert mods.shape == (5, 3, config.modulation_dim)
    graph("target.head_step").run(_step_feeds(config, mods))
    waits = here.cuda.waits
    first = graph("target.head_step").run(_step_feeds(config, mods))
    assert here.cuda.waits == waits + 1
    array = graph("target.head_modulation").run(feeds)["mods"]
    from_host = graph("target.head_step").run(_step_feeds(config, array))
    np.testing.assert_array_equal(first["eps"], from_host["eps"])
    # A recording of the call with kept values is not taken for one with others.
    for _ in range(3):
        again = graph("target.head_step").run(_step_feeds(config, mods))
        other = graph("target.head_step").run(_step_feeds(config, 2 * array))
    np.testing.assert_array_equal(first["eps"], again["eps"])
    assert np.abs(other["eps"] - first["eps"]).max() > 0.01
    _modulation(graph, config, seed=2)
    with pytest.raises(RuntimeError, match="overwritten"):
        graph("target.head_step").run(_step_feeds(config, mods))


def test_a_call_under_way_is_waited_for_before_a_session_closes(machine, engines):
    machine("tensorrt")
    session = opened(engines, precision="fp32")
    feeds = {
        "tokens": np.zeros((1, 0, session.bundle.manifest.target.token_dim), np.float32),
        "label": np.array([3]), "visible": np.zeros((1, 0), np.int64),
        "query": np.arange(4)[None],
    }  # fmt: skip
    # The graph that is closed first: nothing else has waited by then.
    session.graph("target.backbone").run(feeds, keep=("z",))
    session.close()


def test_a_call_after_one_that_could_not_be_set_up_is_set_up_again(machine, engines, monkeypatch):
    machine("tensorrt")
    with opened(engines, precision="fp32", cuda_graph=False) as session:
        config, step = session.bundle.manifest.target, session.graph("target.head_step")
        mods, _ = _modulation(session.graph, config, seed=1)
        few, many = (_step_feeds(config, mods, rows=rows) for rows in (6, 12))
        step.run(many)
        first = step.run(few)
        with monkeypatch.context() as patch:
            patch.setattr(fake_tensorrt.IExecutionContext, "set_tensor_address", lambda *_: False)
            with pytest.raises(BackendError, match="cannot bind"):
                step.run(many)
        np.testing.assert_array_equal(first["eps"], step.run(few)["eps"])


def test_of_two_calls_without_a_wait_between_the_second_counts(graphs):
    graph, config, _ = graphs
    _modulation(graph, config, seed=1)
    mods, feeds = _modulation(graph, config, seed=2)
    kept = graph("target.head_step").run(_step_feeds(config, mods))
    array = graph("target.head_modulation").run(feeds)["mods"]
    np.testing.assert_array_equal(
        kept["eps"], graph("target.head_step").run(_step_feeds(config, array))["eps"]
    )


def test_a_larger_call_than_was_planned_for_makes_room_and_keeps_what_was_kept(graphs):
    graph, config, _ = graphs
    mods, feeds = _modulation(graph, config, seed=1)
    small = graph("target.head_step").run(_step_feeds(config, mods, rows=4))
    large = graph("target.head_step").run(_step_feeds(config, mods, rows=3000))
    again = graph("target.head_step").run(_step_feeds(config, mods, rows=4))
    np.testing.assert_array_equal(small["eps"], again["eps"])
    array = graph("target.head_modulation").run(feeds)["mods"]
    from_host = graph("target.head_step").run(_step_feeds(config, array, rows=3000))
    np.testing.assert_array_equal(large["v"], from_host["v"])


def test_a_backbone_without_known_tokens_is_padded_to_the_engines_least(
    machine, small_engines, tiny_session, monkeypatch
):
    machine("tensorrt")
    bundle = small_engines({})
    path = bundle / "engines" / "tensorrt" / "sm_87" / "target.backbone.fp32.engine"
    values = json.loads(path.read_text())
    for name in ("tokens", "visible"):
        values["profile"][name][0][1] = 2  # V
    path.write_text(json.dumps(values))
    forge_hashes(bundle)
    config = tiny_session.bundle.manifest.target
    feeds = {
        "tokens": np.zeros((1, 0, config.token_dim), np.float32), "label": np.array([3]),
        "visible": np.zeros((1, 0), np.int64), "query": np.arange(4)[None],
    }  # fmt: skip
    with opened(bundle) as session:
        padded = session.graph("target.backbone").run(feeds)["z"]
    plain = tiny_session.graph("target.backbone").run(feeds)["z"]
    np.testing.assert_allclose(padded, plain, rtol=1e-4, atol=1e-5)


def test_bfloat16_values_come_out_as_float32(machine, make_bundle):
    machine("tensorrt")
    bundle = make_bundle()
    write_engines(bundle, "tensorrt", precisions=("bf16",))
    with opened(bundle) as session:
        graph = session.graph("target.head_modulation")
        place = graph._placed({"N": 1, "S": 2}, {}, ()).outputs[0]
        place.whole[:] = np.float32(1.5).view(np.uint32) >> 16
        values = memory.read(place.part)
    assert values.dtype == np.float32
    assert (values == 1.5).all()


class Rounded(OnnxRuntimeBackend):
    """ONNX Runtime with the tensors rounded that engines of bfloat16 have as such."""

    def __init__(self, folder, manifest, *_):
        super().__init__(folder, manifest, OnnxLoader(1))

    def open(self, graph, padding=None, *, lasting=False):
        loaded, spec = super().open(graph), graph_spec(self._manifest, graph, "bf16")
        names = {t.name for t in (*spec.inputs, *spec.outputs) if t.dtype == "bfloat16"}

        def rounded(values):
            return {
                name: value.astype(ml_dtypes.bfloat16).astype(np.float32)
                if name in names else value
                for name, value in values.items()
            }  # fmt: skip

        def run(feeds, rows=0, keep=()):
            return rounded(loaded.run(rounded(feeds), rows, keep))

        return types.SimpleNamespace(run=run)


@pytest.fixture(params=[("mods",), None], ids=["adaLN values", "everything"])
def bfloat16_bundle(request, make_bundle):
    """The tiny bundle with engines that have some tensors, or all, in bfloat16."""
    bundle = make_bundle()
    write_engines(bundle, "tensorrt", precisions=("bf16",), typed=request.param)
    return bundle


@pytest.mark.parametrize("mode", ["target", "guided", "block auto", "prefix", "parallel"])
def test_a_run_of_bfloat16_engines_makes_what_rounded_tensors_make(
    machine, bfloat16_bundle, expected, monkeypatch, mode
):
    here = machine("tensorrt")
    with opened(bfloat16_bundle) as session:
        assert session.versions()["precision"] == "bf16"
        results = [session.generate(LABELS, MODES[mode], seed=7) for _ in range(2)]
    assert here.cuda.launches > 0
    monkeypatch.setattr("csd.runtime.session.create_backend", Rounded)
    with Bundle.open(bfloat16_bundle, verify_files="never").session() as session:
        wanted = session.generate(LABELS, MODES[mode], seed=7)
    rounding = np.abs(wanted.tokens - expected(mode).tokens).mean()
    assert rounding > 0
    for result in results:
        error = np.abs(result.tokens - wanted.tokens).mean()
        print(f"{mode}: mean error {error:.1e}, rounding moves tokens by {rounding:.1e}")
        # A last digit of float32 may turn one of bfloat16.
        assert error < 0.02 * rounding
        assert np.abs(result.images.astype(int) - wanted.images).mean() < 1


OPS = ("ops.accept",)


@pytest.fixture
def ops_bundle(make_bundle):
    """A bundle with an engine of an operator, which needs its plugin."""

    def change(values):
        values["graphs"]["ops.accept"] = values["graphs"]["decoder"]

    bundle = make_bundle(change)
    write_engines(bundle, "tensorrt")
    write_engines(bundle, "tensorrt", graphs=OPS, plugin="CsdAccept")
    return bundle


def test_a_missing_plugin_is_named_with_the_command_that_builds_it(machine, ops_bundle):
    machine("tensorrt")
    with opened(ops_bundle) as session:
        session.generate(LABELS, MODES["target"])  # decoding needs none
        with pytest.raises(BackendError) as error:
            session.graph("ops.accept")
    assert "ops.accept needs the plugin CsdAccept of the namespace csd" in str(error.value)
    assert "cmake -S plugins/tensorrt -B build -DCMAKE_CUDA_ARCHITECTURES=87" in str(error.value)


@pytest.mark.parametrize("place", ["in the bundle", "by name"])
def test_the_plugin_library_is_found_and_loaded_once(
    machine, ops_bundle, tmp_path, place, monkeypatch
):
    here = machine("tensorrt")
    own = shutil.copytree(ops_bundle, tmp_path / "own")
    path = (own if place == "in the bundle" else tmp_path) / "libcsd_plugins.so"
    path.write_text('["CsdAccept", "CsdResample", "CsdVerifyWindow", "CsdTransition"]')
    if place == "by name":
        monkeypatch.setenv("CSD_PLUGIN_LIBRARY", str(path))
    else:
        with opened(own) as session, pytest.raises(BundleError, match="csd-export --seal"):
            session.graph("ops.accept")
        assert not here.libraries["tensorrt"].registry.libraries
        seal(own, None, print)
    with opened(own) as session:
        session.graph("ops.accept")
        session.graph("ops.accept")
    assert here.libraries["tensorrt"].registry.libraries == [str(path)]
    with opened(own) as session:  # registered already
        session.graph("ops.accept")
    assert len(here.libraries["tensorrt"].registry.libraries) == 1


def test_a_plugin_library_that_is_not_there_is_named(machine, ops_bundle, monkeypatch):
    machine("tensorrt")
    monkeypatch.setenv("CSD_PLUGIN_LIBRARY", "/nowhere/libcsd_plugins.so")
    with opened(ops_bundle) as session, pytest.raises(BackendError, match="names /nowhere/libcsd"):
        session.graph("ops.accept")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The kernels' source on the CPU."""
    return compile_emulated(tmp_path_factory.mktemp("kernels") / "kernels.so")


@pytest.fixture
def with_kernels(machine, emulated, monkeypatch):
    """Make a machine where kernels can be launched, and put some into a bundle."""

    def make(bundle, arch=87, sources=None):
        here = machine("tensorrt")

        def launch_kernel(stream, config, kernel, *arguments):
            _, handle = stream.__cuda_stream__()
            here.launched.append(kernel.name)
            call = launch.Call(kernel.name, config.grid, arguments)
            here.cuda.streams[handle].push(lambda: here.hangs.append(emulate(emulated, call)))

        monkeypatch.delenv("CSD_KERNELS", raising=False)
        install_cuda_core(monkeypatch, sys.modules["cuda"], launch_kernel)
        folder = bundle / "kernels"
        folder.mkdir(exist_ok=True)
        (folder / build.cubin_name(arch)).write_bytes(b"cubin")
        kernels = [{"name": "csd_head_draft"}, {"name": "csd_head_walk"}]
        cubin = {"arch": arch, "file": build.cubin_name(arch), "kernels": kernels,
                 "sha256": file_sha256(folder / build.cubin_name(arch))}  # fmt: skip
        manifest = {"version": build.MANIFEST_VERSION, "cubins": [cubin],
                    "sources_sha256": sources or build.source_digest()}  # fmt: skip
        (folder / build.MANIFEST).write_text(json.dumps(manifest))
        seal(bundle, None, print)
        return here

    return make


@pytest.fixture
def own_engines(engines, tmp_path):
    """A copy of the bundle with engines, to put kernels into."""
    out = tmp_path / "own"
    shutil.copytree(engines, out)
    return out


@pytest.mark.parametrize("capture", [True, False], ids=["recorded", "plain"])
@pytest.mark.parametrize("mode", ["draft", "guided", "block auto"])
def test_rounds_on_the_device_make_the_images_of_the_host(
    with_kernels, own_engines, expected, mode, capture
):
    here = with_kernels(own_engines)
    with opened(own_engines, precision="fp32", cuda_graph=capture) as session:
        assert session.versions()["head_rounds"] == "device"
        results = [session.generate(LABELS, MODES[mode], seed=7) for _ in range(2)]
    wanted = expected(mode)
    for result in results:
        # Verdicts in float32 may turn where a ratio is near its uniform.
        far = np.abs(result.tokens - wanted.tokens) > 1e-3 * (1 + np.abs(wanted.tokens))
        share = far.any(axis=2).mean()
        print(f"{mode}: tokens that differ {share:.1%}")
        assert share < 0.1
        assert result.stats.head_rounds["draft"] == pytest.approx(
            wanted.stats.head_rounds["draft"], rel=0.05
        )
    assert {"csd_head_draft", "csd_head_walk"} == set(here.launched)
    assert not any(here.hangs)
    # A round takes no rows to the host: 12 bytes come back.
    assert (fake_cuda.CopyKind.cudaMemcpyDeviceToHost, 12) in here.cuda.copies
    assert not here.cuda.device
    assert not here.cuda.pinned


def test_rounds_on_the_device_take_bfloat16_adaln_values_and_no_other_tensors(
    with_kernels, bfloat16_bundle, monkeypatch
):
    here = with_kernels(bfloat16_bundle)
    with opened(bfloat16_bundle) as session:
        (x,) = (t for t in session.graph("draft.head_step").spec.inputs if t.name == "x")
        result = session.generate(LABELS, MODES["draft"], seed=7)
        where = session.versions()["head_rounds"]
    monkeypatch.setattr("csd.runtime.session.create_backend", Rounded)
    with Bundle.open(bfloat16_bundle, verify_files="never").session() as session:
        wanted = session.generate(LABELS, MODES["draft"], seed=7).tokens
    far = np.abs(result.tokens - wanted) > 1e-3 * (1 + np.abs(wanted))
    share = far.any(axis=2).mean()
    print(f"tokens that differ {share:.1%}")
    assert share < 0.1
    if x.dtype == "float32":
        assert where == "device"
        assert here.launched
    else:
        assert "on the host: its x is bfloat16, the kernels take float32" in where
        assert not here.launched


def test_narrow_rounds_have_their_scratch_where_it_is_larger_than_that_of_wide_ones(
    with_kernels, own_engines
):
    here = with_kernels(own_engines)
    channels = Bundle.open(own_engines).manifest.models["draft"].token_dim
    honest = fake_tensorrt.FakeTensorRT.scratch

    def scratch(shape):
        rows = shape[0] if shape[1:] == (channels,) else 0
        return (1 << 28) // (rows + 8) if rows else honest(shape)

    with opened(own_engines, precision="fp32") as session:
        plain = session.generate(LABELS, MODES["draft"], seed=7).tokens
    here.libraries["tensorrt"].scratch = scratch
    with opened(own_engines, precision="fp32") as session:
        np.testing.assert_array_equal(
            session.generate(LABELS, MODES["draft"], seed=7).tokens, plain
        )


def test_rounds_that_do_not_fit_the_profile_are_left_to_the_host(
    with_kernels, make_bundle, expected
):
    bundle = make_bundle()
    write_engines(bundle, "tensorrt", most={"draft.head_step": {"R": 20}})
    here = with_kernels(bundle)
    with opened(bundle) as session:
        modulation, calls = session.graph("draft.head_modulation"), []
        plain = modulation.run
        modulation.run = lambda *args, **kwargs: (calls.append(1), plain(*args, **kwargs))[1]
        result = session.generate(LABELS, MODES["draft"], seed=7)
        where = session.versions()["head_rounds"]
    assert not here.launched
    assert len(calls) == NUM_ITER, "what was computed for the device serves the host"
    runs = f"{NUM_ITER} of {NUM_ITER} runs of draft.head_step"
    assert re.fullmatch(
        rf"device \({runs} on the host: R = \d+ to \d+, its engine and plan take 1 to 20\)", where
    )
    np.testing.assert_allclose(result.tokens, expected("draft").tokens, rtol=1e-4, atol=1e-4)


def test_rounds_that_do_not_fit_the_memory_are_left_to_the_host(
    with_kernels, own_engines, expected
):
    here = with_kernels(own_engines)
    (own_engines / "kernels").rename(own_engines / "kernels-elsewhere")
    with opened(own_engines, precision="fp32") as session:
        assert session.versions()["head_rounds"] == "host (no kernels in the bundle)"
        peak = session.generate(LABELS, MODES["draft"], seed=7).stats.device_memory_peak
    (own_engines / "kernels-elsewhere").rename(own_engines / "kernels")
    with opened(own_engines, precision="fp32") as session:
        session.backend._device.arena.limit = peak
        result = session.generate(LABELS, MODES["draft"], seed=7)
        assert (
            "runs of draft.head_step on the host: this run needs"
            in (session.versions()["head_rounds"])
        )
    assert not here.launched
    assert result.stats.device_memory_peak == peak
    np.testing.assert_allclose(result.tokens, expected("draft").tokens, rtol=1e-4, atol=1e-4)


def test_rounds_that_the_device_has_no_memory_for_cost_no_recordings(
    with_kernels, own_engines, expected
):
    here = with_kernels(own_engines)
    (own_engines / "kernels").rename(own_engines / "kernels-elsewhere")
    free = here.cuda.free
    with opened(own_engines, precision="fp32") as session:
        session.generate(LABELS, MODES["draft"], seed=7)
        taken = free - here.cuda.free
        wanted = session.backend.recordings()["draft.head_step"]
    (own_engines / "kernels-elsewhere").rename(own_engines / "kernels")
    here.cuda.free = taken
    with opened(own_engines, precision="fp32") as session:
        arena, tried = session.backend._device.arena, []
        plain = arena.reserve
        arena.reserve = lambda **sizes: (tried.append(set(sizes)), plain(**sizes))
        result = session.generate(LABELS, MODES["draft"], seed=7)
        assert tried.count({"rounds", "turn"}) == 1, "what failed once fails again"
        assert session.backend.recordings()["draft.head_step"] == wanted
        assert "on the host: the device has no" in session.versions()["head_rounds"]
    assert not here.launched
    assert wanted[0] > 0
    np.testing.assert_allclose(result.tokens, expected("draft").tokens, rtol=1e-4, atol=1e-4)


def _not_for_this_device(make, bundle, monkeypatch):
    return make(bundle, arch=75)


def _of_other_sources(make, bundle, monkeypatch):
    return make(bundle, sources="0")


def _not_readable(make, bundle, monkeypatch):
    here = make(bundle)

    def refuse(image):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(sys.modules["cuda.core"].ObjectCode, "from_cubin", refuse)
    return here


def _without_cuda_core(make, bundle, monkeypatch):
    here = make(bundle)
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    return here


MISFITS = {
    _not_for_this_device: "has kernels for sm_75, not for compute capability 8.7: "
    "run python -m csd.plugins.build --out {} --arch 87",
    _of_other_sources: "were built from other sources than this csd's: "
    "run python -m csd.plugins.build --out {}",
    _not_readable: "(no kernel image is available): "
    "run python -m csd.plugins.build --out {} --arch 87",
    _without_cuda_core: "pip install cuda-core",
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_kernels_of_a_bundle_that_do_not_fit_are_left_to_the_host(
    with_kernels, own_engines, expected, monkeypatch, misfit
):
    here = misfit(with_kernels, own_engines, monkeypatch)
    with opened(own_engines, precision="fp32") as session:
        result = session.generate(LABELS, MODES["draft"], seed=7)
        where = session.versions()["head_rounds"]
    assert where.startswith("host (")
    assert where.endswith(MISFITS[misfit].format(own_engines / "kernels") + ")")
    assert "\n" not in where
    assert not here.launched
    np.testing.assert_allclose(result.tokens, expected("draft").tokens, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("misfit", MISFITS)
def test_kernels_that_were_named_and_do_not_fit_are_an_error(
    with_kernels, own_engines, tmp_path, monkeypatch, misfit
):
    misfit(with_kernels, own_engines, monkeypatch)
    elsewhere = (own_engines / "kernels").rename(tmp_path / "named")
    monkeypatch.setenv("CSD_KERNELS", str(elsewhere))
    said = refused(own_engines, "tensorrt")
    assert said.endswith(MISFITS[misfit].format(elsewhere) + ", or unset CSD_KERNELS")


def test_kernels_that_were_named_are_taken_before_those_of_the_bundle(
    with_kernels, own_engines, tmp_path, monkeypatch
):
    with_kernels(own_engines)
    shutil.copytree(own_engines / "kernels", tmp_path / "named")
    (own_engines / "kernels" / build.MANIFEST).write_text("{")
    monkeypatch.setenv("CSD_KERNELS", str(tmp_path / "named"))
    with opened(own_engines) as session:
        assert session.versions()["head_rounds"] == "device"


def test_a_kernel_that_cannot_be_launched_is_one_line(with_kernels, own_engines):
    with_kernels(own_engines)

    def refuse(*args):
        raise OSError("no such\nfunction")

    with opened(own_engines) as session:
        sys.modules["cuda.core"].launch = refuse
        with pytest.raises(BackendError) as error:
            session.generate(LABELS, MODES["draft"])
    assert str(error.value).startswith("cannot launch csd_head_draft (no such function): build")


def test_chains_on_the_device_that_are_not_finite_are_reported(
    with_kernels, own_engines, monkeypatch
):
    with_kernels(own_engines)
    real = fake_tensorrt.session_of

    def broken(path):
        def run(outputs, feeds):
            values = real(path).run(outputs, feeds)
            return [value * np.nan for value in values] if "head_step" in path else values

        return types.SimpleNamespace(run=run)

    monkeypatch.setattr(fake_tensorrt, "session_of", broken)
    with (
        opened(own_engines) as session,
        pytest.raises(NumericsError, match="not finite at head step 19: check the weights"),
    ):
        session.generate(LABELS, MODES["draft"])


@pytest.mark.gpu
@pytest.mark.parametrize("head", ["sequential", "auto"])
@pytest.mark.parametrize("backend", VERSIONS)
def test_images_on_the_device_of_this_machine(backend, head, zoo_bundle, tmp_path_factory):
    bundle = with_engines(Bundle.open(zoo_bundle), backend, tmp_path_factory)
    with bundle.session(backend) as session, bundle.session("onnxruntime") as reference:
        options = GenerateOptions(mode="target", num_iter=8, head=head)
        results = [s.generate([3, 7], options, seed=1) for s in (session, reference)]
        made, wanted = (result.latents for result in results)
        on_device, on_host = (result.stats for result in results)
    assert 0.5 < on_device.device_seconds / on_device.seconds < 1.1
    assert on_host.device_seconds is None
    if head == "sequential":
        assert np.abs(made - wanted).mean() < 0.05
    # A verdict that turns on the last digits changes all that follows, and not the law.
    assert abs(made.std() - wanted.std()) < 0.15


def test_bfloat16_is_rounded_on_its_way_in_and_widened_on_its_way_out():
    values = np.array([1.0, -2.5, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, np.nan, np.inf], np.float32)
    part = np.empty(len(values), np.uint16)
    memory.write(part, values)
    expected = [1.0, -2.5, 1.0, 1 + 2**-6, np.inf, np.nan, np.inf]  # ties to even
    np.testing.assert_array_equal(memory.read(part), np.array(expected, np.float32))
    again = np.empty_like(part)
    memory.write(again, part)
    np.testing.assert_array_equal(again, part)
