"""The TensorRT backends on stand-ins for the vendor's packages (`fake_tensorrt`, `fake_cuda`)."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest

from csd.runtime import BackendError, Bundle, GenerateOptions, OptionError
from csd.runtime.device import DeviceInfo, current_platform

from ..helpers import NUM_ITER
from .fake_cuda import FakeCuda
from .fake_tensorrt import VERSIONS, FakeTensorRT, write_engines

ORIN = DeviceInfo("Orin", "8.7", current_platform(), "12.6", 8 << 30)
MODES = {
    "target": GenerateOptions(mode="target", num_iter=NUM_ITER),
    "draft": GenerateOptions(mode="draft", num_iter=NUM_ITER, head="speculative"),
    "block": GenerateOptions(num_iter=NUM_ITER, gamma=3),
    "block auto": GenerateOptions(num_iter=NUM_ITER, gamma=3, head="auto"),
    "prefix": GenerateOptions(num_iter=NUM_ITER, gamma=3, verify="prefix"),
    "prefix guided": GenerateOptions(num_iter=NUM_ITER, gamma=3, verify="prefix", cfg=2.0),
    "guided": GenerateOptions(num_iter=NUM_ITER, gamma=3, cfg=2.0, head="speculative"),
    "parallel": GenerateOptions(mode="target", num_iter=NUM_ITER, head="parallel", cfg=1.5),
    "annealed": GenerateOptions(num_iter=NUM_ITER, gamma=3, head_steps=(20, 17), head="auto"),
}
LABELS = [3, 1, 4]


@dataclass
class Machine:
    """A machine with a GPU, as far as the runtime can see."""

    cuda: FakeCuda
    libraries: dict[str, FakeTensorRT]


@pytest.fixture
def machine(monkeypatch):
    """Make a machine with some of the vendor's packages."""

    def make(*backends, old=False, device=ORIN):
        cuda = FakeCuda()
        libraries = {name: FakeTensorRT(name, cuda, old=old) for name in backends}
        for name in VERSIONS:
            module = libraries[name].module if name in libraries else None
            monkeypatch.setitem(sys.modules, name, module)
        package, bindings = types.ModuleType("cuda"), types.ModuleType("cuda.bindings")
        package.bindings, bindings.runtime = bindings, cuda.module
        package.__path__, bindings.__path__ = [], []
        for name, module in (
            ("cuda", package), ("cuda.bindings", bindings), ("cuda.bindings.runtime", cuda.module)
        ):  # fmt: skip
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr("csd.runtime.backends.find_device", lambda: device)
        return Machine(cuda, libraries)

    return make


@pytest.fixture(scope="module")
def engines(tiny_bundle, tmp_path_factory):
    """The tiny bundle with engines of both libraries."""
    import shutil

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
