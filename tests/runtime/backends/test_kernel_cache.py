"""Kernels of TensorRT-RTX from one process to the next, on the stand-ins for the packages."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import pytest

from csd.runtime import Bundle, GenerateOptions
from csd.runtime.backends.tensorrt.kernel_cache import cache_file

from ...vendor.machine import ORIN
from ...vendor.tensorrt.common import VERSIONS
from ...vendor.tensorrt.files import write_engines

OPTIONS = GenerateOptions(mode="target", num_iter=2, head_steps=3, head="sequential")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CSD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def generate(machine, make_bundle, folder):
    """Run a session as a process of its own would; returns its library and its versions."""
    bundle = make_bundle()
    for backend in VERSIONS:
        write_engines(bundle, backend)

    def run(backend="tensorrt_rtx", **environment):
        here = machine(backend)
        library = here.libraries[backend]
        for name, value in environment.items():
            setattr(library, name, value)
        with Bundle.open(bundle, verify_files="never").session(backend) as session:
            session.generate([3], OPTIONS)
            return library, session.versions()

    return run


def only_file(folder):
    (path,) = folder.iterdir()
    return path


def test_the_second_process_compiles_nothing_and_leaves_the_file_alone(generate, folder):
    library, versions = generate()
    assert library.compiled > 0
    assert library.cache_reads == 0
    assert versions["kernel_cache"] == "new"
    path = only_file(folder)
    before = path.stat()
    again, versions = generate()
    assert again.compiled == 0
    assert versions["kernel_cache"] == "reused"
    assert only_file(folder) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_is_compiled_later_is_added(generate, folder):
    generate()
    path = only_file(folder)
    digest, (environment, kernels) = path.read_bytes()[:32], json.loads(path.read_bytes()[32:])
    fewer = json.dumps([environment, kernels[1:]]).encode()
    path.write_bytes(hashlib.sha256(fewer).digest() + fewer)
    library, versions = generate()
    assert library.compiled == 1
    assert versions["kernel_cache"] == "reused"
    assert path.read_bytes()[:32] == digest
    assert os.listdir(folder) == [path.name]


@pytest.mark.parametrize(
    "damage", [lambda whole: b"", lambda whole: whole[:-1], lambda whole: whole[:40] + whole[41:]]
)
def test_a_damaged_file_is_ignored_and_replaced(generate, folder, damage):
    first, _ = generate()
    path = only_file(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    library, versions = generate()
    assert library.cache_reads == 0, "it never gets to the library"
    assert library.compiled == first.compiled
    assert versions["kernel_cache"] == "new"
    assert path.read_bytes() == whole


def test_what_the_library_refuses_is_ignored_and_replaced(generate, folder):
    generate()
    before = only_file(folder).read_bytes()
    library, versions = generate(environment="another compiler")
    assert (library.cache_reads, versions["kernel_cache"]) == (1, "new")
    assert library.compiled > 0
    assert only_file(folder).read_bytes() != before
    assert generate(environment="another compiler")[0].compiled == 0


def test_a_place_that_cannot_be_written_or_read_does_no_harm(generate, folder):
    folder.write_text("a file where the folder would be")
    library, versions = generate()
    assert library.compiled > 0
    assert versions["kernel_cache"] == "new"
    assert folder.is_file()


def test_tensorrt_compiles_nothing_at_run_time_and_keeps_nothing(generate, folder):
    _, versions = generate("tensorrt")
    assert "kernel_cache" not in versions
    assert not folder.exists()


def test_each_library_version_device_and_driver_has_a_file_of_its_own(folder):
    others = {
        cache_file("1.7", dataclasses.replace(ORIN, **change))
        for change in ({}, {"name": "Orin Nano"}, {"compute_capability": "8.6"}, {"driver": "13.0"},
                       {"platform": "win32-amd64"})
    }  # fmt: skip
    others.add(cache_file("1.8", ORIN))
    assert len(others) == 6
    assert {path.parent for path in others} == {folder}
    assert cache_file("1.7", dataclasses.replace(ORIN, memory=1)) in others


def test_the_folder_is_the_users_cache_unless_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CSD_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_file("1.7", ORIN).parent == tmp_path / ".cache" / "csd"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_file("1.7", ORIN).parent == Path("/x/csd")
    monkeypatch.setenv("CSD_CACHE_DIR", "/y")
    assert cache_file("1.7", ORIN).parent == Path("/y")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("CSD_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_file("1.7", ORIN) is None
