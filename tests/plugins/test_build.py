from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from csd.plugins import build, host

from ..helpers import failure, leftovers, run_python

OPERATORS = ("accept", "resample", "verify_window", "transition")
TYPES = ("float32", "float16", "bfloat16")
KERNELS = {f"csd_{name}_{t}" for name in OPERATORS for t in TYPES}
KERNELS |= {"csd_head_draft", "csd_head_walk"}

# What ptxas of CUDA 13.0 prints, and of two kernels only.
USAGE = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'csd_b' for 'sm_87'
ptxas info    : Function properties for csd_b
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 8 bytes smem, 472 bytes cmem[0]
ptxas info    : Compiling entry function 'csd_a' for 'sm_87'
ptxas info    : Function properties for csd_a
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 37 registers, used 0 barriers, 464 bytes cmem[0]
"""


@pytest.fixture
def compiler():
    try:
        return build.host_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture
def nvcc(compiler):
    try:
        return build.find_nvcc()
    except build.BuildError as error:
        pytest.skip(str(error))


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def fake_cuda(monkeypatch, folder: Path, body: str) -> None:
    script(folder / "bin" / "nvcc", body)
    monkeypatch.setenv("CUDA_HOME", str(folder))


def test_the_host_library_is_built_and_loads(compiler, tmp_path, capsys, monkeypatch):
    assert build.main(["--host-only", "--out", str(tmp_path / "new")]) == 0
    path = tmp_path / "new" / "_host.so"
    assert str(path) in capsys.readouterr().out
    assert leftovers(path.parent) == ["_host.so"]
    monkeypatch.setenv(host.ENVIRONMENT, str(path))
    assert host.library() is not None


def test_without_a_folder_the_library_is_put_where_csd_finds_it(tmp_path, monkeypatch):
    compiler = script(tmp_path / "cxx", 'while [ "$1" != -o ]; do shift; done; printf new > "$2"')
    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(build, "__file__", str(package / "build.py"))
    assert build.main(["--host-only"]) == 0
    assert leftovers(package) == ["_host.so"]
    # One that was installed with the package comes first, so that one is replaced.
    installed = (package / "_host.so").rename(package / "_host.cpython-311.so")
    installed.write_text("old")
    assert build.main(["--host-only"]) == 0
    assert leftovers(package) == [installed.name]
    assert installed.read_text() == "new"


@pytest.mark.slow
def test_kernels_compile_for_every_architecture_without_a_warning(nvcc, tmp_path):
    known = build.nvcc_architectures(nvcc)
    if known != build.ARCHITECTURES:
        print(f"this nvcc knows only {known} of {build.ARCHITECTURES}")
    flags = ["--Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra"]
    cubins = build.build_kernels(tmp_path, known, nvcc, flags)
    print(build.format_table(cubins))
    assert [cubin.arch for cubin in cubins] == list(known)
    for cubin in cubins:
        assert (tmp_path / cubin.file).stat().st_size == cubin.bytes
        assert {kernel.name for kernel in cubin.kernels} == KERNELS
        for kernel in cubin.kernels:
            # The walk draws residual samples too.
            walks = kernel.name == "csd_head_walk"
            assert 0 < kernel.registers <= (96 if walks else 80)
            assert kernel.spill_bytes <= (192 if walks else 32)  # around divisions and calls
            assert kernel.code_bytes > 256


def test_the_command_builds_kernels_and_notes_what_they_need(nvcc, tmp_path, capsys):
    assert build.main(["--out", str(tmp_path), "--arch", "86", "--ptx"]) == 0
    table = capsys.readouterr().out
    manifest = json.loads((tmp_path / "kernels.json").read_text())
    assert manifest["sources_sha256"] == build.source_digest()
    (cubin,) = manifest["cubins"]
    image = (tmp_path / cubin["file"]).read_bytes()
    assert hashlib.sha256(image).hexdigest() == cubin["sha256"]
    for kernel in cubin["kernels"]:
        numbers = [str(kernel[k]) for k in ("registers", "spill_bytes", "code_bytes")]
        assert [kernel["name"], "sm_86", *numbers] in [line.split() for line in table.splitlines()]
    ptx = (tmp_path / "csd_kernels.compute_86.ptx").read_text()
    assert all(f".entry {name}(" in ptx for name in KERNELS)
    assert leftovers(tmp_path) == sorted(
        ["_host.so", "kernels.json", "csd_kernels.compute_86.ptx", "csd_kernels.sm_86.cubin"]
    )


def test_registers_and_spills_are_read_from_what_the_assembler_says():
    assert build.parse_usage(USAGE, {"csd_a": 640}) == (
        build.Kernel("csd_a", 37, 0, 0, 640),
        build.Kernel("csd_b", 255, 20, 8, 0),
    )
    with pytest.raises(build.BuildError, match="registers of csd_c"):
        build.parse_usage("Compiling entry function 'csd_c' for 'sm_87'", {})
    with pytest.raises(build.BuildError, match="ELF"):
        build.code_sizes(b"text")


def test_help_names_defaults_and_an_example():
    text = " ".join(build.build_parser().format_help().split())
    assert "example: python -m csd.plugins.build --out kernels --arch 87,89" in text
    assert text.count("default: ") == 3


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "give --out DIR, or --host-only"),
        (["--out", "x", "--arch", "87,99"], "unknown architecture 99: choose from 75, 80"),
        (["--out", "x", "--arch", ","], "unknown architecture ',': choose from"),
        (["--host-only", "--arch", "87"], "leave out --arch and --ptx"),
        (["--host-only", "--sanitize", "address"], "give --out DIR"),
        (["--host-only", "--out", "x", "--sanitize", "thread"], "choose from address, undefined"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in failure(build.main, argv, capsys)
    assert leftovers(tmp_path) == []


def test_an_unknown_option_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        build.main(["--fast"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_architectures_are_read_with_and_without_their_prefix():
    assert build.parse_architectures("sm_87, 75,87") == (87, 75)


def test_without_nvcc_the_remedy_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "none"))
    said = failure(build.main, ["--out", tmp_path], capsys)
    assert "nvcc not found" in said
    assert "--host-only" in said


def test_without_a_compiler_the_remedy_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    said = failure(build.main, ["--host-only", "--out", tmp_path], capsys)
    assert "no-such-compiler" in said
    assert "apt install g++" in said


def test_an_nvcc_that_is_too_old_for_an_architecture_is_refused(capsys, tmp_path, monkeypatch):
    fake_cuda(monkeypatch, tmp_path / "cuda", "echo compute_75; echo compute_87")
    said = failure(build.main, ["--out", tmp_path / "out", "--arch", "87,120"], capsys)
    assert "does not know sm_120" in said
    assert "12.8 for" in said
    assert not (tmp_path / "out").exists()


def test_a_failing_nvcc_leaves_nothing_and_shows_its_message(
    compiler, capsys, tmp_path, monkeypatch
):
    listing = '[ "$1" = --list-gpu-arch ] && echo compute_87 && exit 0'
    fake_cuda(monkeypatch, tmp_path / "cuda", f"{listing}\necho 'x.cu: error: it broke'; exit 1")
    said = failure(build.main, ["--out", tmp_path / "out"], capsys)
    assert "nvcc failed (x.cu: error: it broke): run it alone" in said
    assert leftovers(tmp_path / "out") == ["_host.so"]


def test_a_failing_compiler_leaves_the_library_as_it_was(capsys, tmp_path, monkeypatch):
    (tmp_path / "_host.so").write_text("old")
    monkeypatch.setenv("CXX", str(script(tmp_path / "cxx", "exit 3")))
    said = failure(build.main, ["--host-only", "--out", tmp_path], capsys)
    assert "cxx failed (no message)" in said
    assert (tmp_path / "_host.so").read_text() == "old"
    assert leftovers(tmp_path) == ["_host.so", "cxx"]


def test_a_folder_that_cannot_be_made_is_reported(compiler, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in failure(build.main, ["--host-only", "--out", tmp_path / "file"], capsys)


# Every function of the library, on sizes that leave no slack at the end of an array.
DRIVER = """
import numpy as np
from csd.plugins import host
from csd.plugins.reference import Density
from csd.runtime.head import HeadSchedule, ParallelSampler, SpeculativeSampler

assert host.library() is not None
rng = np.random.default_rng(0)
for channels in (1, 3, 16):
    for count in (0, 1, 7):
        shape = (count, channels)
        p, q = (Density(rng.normal(size=shape), rng.uniform(0.5, 2, shape), rng.normal(size=shape))
                for _ in range(2))
        host.accept(rng.normal(size=shape), p, q, rng.random(count))
        host.resample(p, q, rng.normal(size=(3, *shape)), rng.random((3, count)))
        arrays = [rng.uniform(0.5, 2, (count, 4, channels)) for _ in range(5)]
        host.verify_window(*arrays, rng.random((count, 4)), rng)
        rows = rng.normal(size=(3, *shape))
        host.transition(*rows, rng.integers(0, 5, count), [np.ones(5, np.float32)] * 6)
        for n in range(count):
            host.continue_residual(p[n], q[n], rng)
    extreme = Density(np.full(channels, 1e200), np.full(channels, 1e-300), np.zeros(channels))
    host.continue_residual(extreme, p[0], rng, max_tries=64)

    def evaluate(x, step, token):
        return 0.9 * x, np.zeros_like(x)

    for sampler in (SpeculativeSampler(HeadSchedule.cosine(steps=12), window=5),
                    ParallelSampler(HeadSchedule.cosine(steps=12), 0.01, window=5)):
        sampler.sample(evaluate, n_tokens=3, channels=channels, rng=rng)
print("finished")
"""

# A planted bug: the caller says more tokens than there are.
OVERRUN = """
import ctypes
import numpy as np
from csd.plugins import host, structs
x = np.zeros(400)
host.library().csd_transition(
    ctypes.c_int64(1 << 16), ctypes.c_int64(64),
    ctypes.byref(structs.StepPointers(*[host.pointer(x)] * 6)),
    *[host.pointer(x)] * 7)
print("finished")
"""


def test_the_host_library_is_clean_under_sanitizers(compiler, tmp_path):
    argv = ["--host-only", "--out", str(tmp_path), "--sanitize", "address,undefined"]
    if build.main(argv):
        pytest.skip("the compiler has no sanitizers: apt install libasan8 libubsan1")
    runtimes = [_runtime(compiler, name) for name in ("libasan.so", "libubsan.so")]
    if None in runtimes:
        pytest.skip("the sanitizers' libraries are not beside the compiler")
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(map(str, runtimes)),
        # The interpreter does not free everything at its end.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        host.ENVIRONMENT: str(tmp_path / "_host.so"),
    }
    done = run_python(DRIVER, env=environment)
    assert (done.returncode, done.stdout.split()) == (0, ["finished"]), done.stderr[-3000:]
    done = run_python(OVERRUN, env=environment)
    assert done.returncode
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr


def _runtime(compiler: list[str], name: str) -> Path | None:
    asked = [*compiler, f"-print-file-name={name}"]
    path = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    return path.resolve() if path.is_absolute() and path.exists() else None


def test_the_command_runs_as_a_module(tmp_path):
    argv = [sys.executable, "-m", "csd.plugins.build"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("csd.plugins.build: error: ")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_half_written(tmp_path, number, code):
    started = tmp_path / "started"
    compiler = script(tmp_path / "compiler", f"touch {started}; exec sleep 60")
    argv = [sys.executable, "-m", "csd.plugins.build", "--host-only", "--out", tmp_path / "out"]
    process = subprocess.Popen(
        argv, stderr=subprocess.PIPE, text=True, env={**os.environ, "CXX": str(compiler)}
    )
    try:
        for _ in range(200):
            if started.exists():
                break
            time.sleep(0.05)
        assert leftovers(tmp_path / "out")
        process.send_signal(number)
        said = process.communicate(timeout=20)[1]
    finally:
        process.kill()
    assert process.returncode == code
    assert said == "csd.plugins.build: stopped, and nothing half-written is left\n"
    assert leftovers(tmp_path / "out") == []
