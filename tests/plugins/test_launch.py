"""How calls are put together and cubins chosen; the kernels run in test_kernels.py."""

from __future__ import annotations

import hashlib
import json
import sys
import types

import numpy as np
import pytest

from csd.plugins import build, launch

from ..vendor.cuda_core import CURRENT, install_cuda_core


def write_folder(folder, *architectures, version=build.MANIFEST_VERSION):
    cubins = []
    for arch in architectures:
        content = f"cubin {arch}".encode()
        (folder / build.cubin_name(arch)).write_bytes(content)
        kernel = build.Kernel("csd_transition_float32", 40, 0, 0, 4096)
        cubins.append(
            {
                "arch": arch,
                "file": build.cubin_name(arch),
                "kernels": [{"name": kernel.name}],
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
    manifest = {"version": version, "cubins": cubins}
    (folder / build.MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def cuda_core(monkeypatch):
    """Stand in for cuda.core, and note what is launched."""
    launched = []
    package = types.ModuleType("cuda")
    package.__path__ = []
    core = install_cuda_core(monkeypatch, package, lambda *args: launched.append(args))
    core.launched = launched
    return core


def transition(rows=5, **options):
    return launch.transition(
        launch.TransitionBuffers(1, 2, 3, 0, 0, 6, 7, 8), launch.TransitionOutputs(9, 10, 11, 12),
        rows=rows, channels=16, steps=100, **options,
    )  # fmt: skip


def test_a_call_is_launched_on_the_stream_with_the_cubin_of_the_device(cuda_core, tmp_path):
    write_folder(tmp_path, 86, 87, 89)
    loaded = launch.load(tmp_path)
    launch.run(loaded, transition(temperature=0.5), "stream")
    ((stream, config, kernel, *arguments),) = cuda_core.launched
    assert len(CURRENT) == 1
    assert (stream, config.grid, config.block) == ("stream", 1, 128)
    assert (kernel.code, kernel.name) == (b"cubin 87", "csd_transition_float32")
    assert arguments == [1, 2, 3, 0, 0, 6, 7, 8, 5, 16, 100, 0.5, 9, 10, 11, 12]
    assert [type(a) for a in arguments[8:12]] == [np.int32] * 3 + [np.float32]


def test_an_empty_batch_launches_nothing(cuda_core, tmp_path):
    write_folder(tmp_path, 87)
    launch.run(launch.load(tmp_path), transition(rows=0), "stream")
    assert len(CURRENT) == 1
    assert cuda_core.launched == []


def test_an_older_cuda_core_is_found_where_its_names_were(cuda_core, monkeypatch, tmp_path):
    older = types.ModuleType("cuda.core")
    older.__dict__.update(__path__=[], experimental=cuda_core)
    monkeypatch.setitem(sys.modules, "cuda.core", older)
    monkeypatch.setitem(sys.modules, "cuda.core.experimental", cuda_core)
    monkeypatch.setattr(sys.modules["cuda"], "core", older)
    write_folder(tmp_path, 87)
    assert launch.load(tmp_path).core is cuda_core


def test_without_cuda_core_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(launch.LaunchError, match="pip install cuda-core"):
        launch.load(tmp_path)


def test_a_device_that_is_not_there_is_named(cuda_core, tmp_path):
    with pytest.raises(launch.LaunchError, match=r"device 3 \(invalid device ordinal\): check nvi"):
        launch.load(tmp_path, 3)


@pytest.mark.parametrize(
    ("capability", "built", "chosen"),
    [
        (89, (75, 80, 86, 89), 89),
        (86, (75, 80, 89), 80),
        (121, (120,), 120),
        (103, (90, 100), 100),
        (87, (80, 86), None),  # binaries of discrete devices do not run on Orin
        (89, (80, 87), 80),
        (110, (100,), None),
        (80, (86,), None),
    ],
)
def test_the_binary_of_a_device(capability, built, chosen, tmp_path):
    write_folder(tmp_path, *built)
    if chosen is None:
        with pytest.raises(launch.LaunchError, match=rf"kernels for sm_.*--arch {capability}"):
            launch.find_cubin(tmp_path, capability)
    else:
        path, names = launch.find_cubin(tmp_path, capability)
        assert path.name == build.cubin_name(chosen)
        assert names == ("csd_transition_float32",)


def test_what_is_wrong_with_a_folder_is_said_with_the_command(tmp_path):
    command = f"run python -m csd.plugins.build --out {tmp_path} --arch 87"
    for spoil, said in (
        (lambda: None, "no kernels in"),
        (lambda: (tmp_path / build.MANIFEST).write_text("{"), "no kernels in"),
        (lambda: write_folder(tmp_path, 87, version=99), "has version 99"),
        (
            lambda: (write_folder(tmp_path, 87), (tmp_path / build.cubin_name(87)).unlink()),
            "missing",
        ),
    ):
        spoil()
        with pytest.raises(launch.LaunchError, match=said) as refused:
            launch.find_cubin(tmp_path, 87)
        assert command in str(refused.value)


def test_a_cubin_that_was_cut_short_is_named_with_the_command(tmp_path):
    write_folder(tmp_path, 87)
    path = tmp_path / build.cubin_name(87)
    assert launch.find_cubin(tmp_path, 87)[0] == path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(launch.LaunchError) as refused:
        launch.find_cubin(tmp_path, 87)
    assert str(refused.value) == (
        f"{path} is not the file that kernels.json describes: "
        f"run python -m csd.plugins.build --out {tmp_path} --arch 87"
    )


@pytest.mark.parametrize("where", ["from_cubin", "get_kernel"])
def test_a_cubin_that_cannot_be_loaded_is_one_line_with_the_command(
    cuda_core, tmp_path, monkeypatch, where
):
    def refuse(*_):
        raise OSError("no such\nbinary")

    write_folder(tmp_path, 87)
    monkeypatch.setattr(cuda_core.ObjectCode, where, refuse)
    with pytest.raises(launch.LaunchError) as refused:
        launch.load(tmp_path)
    assert str(refused.value) == (
        f"cannot load {tmp_path / build.cubin_name(87)} (no such binary): "
        f"run python -m csd.plugins.build --out {tmp_path} --arch 87"
    )


def test_a_device_that_is_too_old_is_named(tmp_path):
    with pytest.raises(launch.LaunchError, match=r"capability 7\.0 is not supported"):
        launch.find_cubin(tmp_path, 70)


def test_sizes_and_values_that_make_no_sense_are_mistakes():
    with pytest.raises(ValueError, match="rows is -1"):
        transition(rows=-1)
    buffers, out = (
        launch.TransitionBuffers(1, 2, 3, 4, 0, 6, 7, 8),
        launch.TransitionOutputs(9, 10, 11, 12),
    )
    with pytest.raises(ValueError, match="both eps_uncond and scale"):
        launch.transition(buffers, out, rows=1, channels=1, steps=1)
    p = launch.DensityBuffers(1, 2, 3)
    accept_out, resample_out = launch.AcceptOutputs(1, 2, 3, 4), launch.ResampleOutputs(1, 2, 3)
    with pytest.raises(ValueError, match="inner_temperature is 0"):
        launch.accept(1, p, p, 2, accept_out, batch=1, tokens=1, channels=1, inner_temperature=0.0)
    with pytest.raises(ValueError, match="channels is 0"):
        launch.resample(p, p, 1, 2, resample_out, tries=1, tokens=1, channels=0)


@pytest.mark.parametrize(
    ("channels", "rows", "blocks"), [(1, 129, 2), (16, 9, 2), (17, 5, 2), (64, 1 << 30, 1 << 16)]
)
def test_a_grid_has_a_group_of_lanes_for_each_token(channels, rows, blocks):
    p = launch.DensityBuffers(1, 2, 3)
    out = launch.ResampleOutputs(1, 2, 3)
    call = launch.resample(p, p, 1, 2, out, tries=1, tokens=rows, channels=channels)
    assert call.blocks == blocks
