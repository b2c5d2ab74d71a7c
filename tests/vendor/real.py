"""The vendor's own packages, as far as they can be looked at on a machine without a device."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from csd.plugins import build

# Distribution that holds each package.
DISTRIBUTIONS = {
    "tensorrt_rtx": "tensorrt-rtx",
    "tensorrt_bindings": "tensorrt-cu13-bindings",
    "cuda.bindings.runtime": "cuda-bindings",
    "cuda.core": "cuda-core",
}
Described = dict[str, dict[str, Any]]


def missing(what: str, remedy: str, *, whole_file: bool = False) -> Any:
    """Skip a test for want of something; in continuous integration that is a failure."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"{what} is missing, which continuous integration has to have: {remedy}")
    pytest.skip(f"{what} is missing: {remedy}", allow_module_level=whole_file)


def package(name: str, *, whole_file: bool = False) -> Any:
    """Import a package; see `missing`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        remedy = f"pip install {DISTRIBUTIONS[name]}"
        return missing(f"{name} ({error})", remedy, whole_file=whole_file)


def folder_of(name: str) -> Path:
    """Where a package lies, without importing it; see `missing`."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        return missing(name, f"pip install {DISTRIBUTIONS[name]}")
    return Path(found.origin).parent


def described(backend: str) -> Described:
    """What `tensorrt`, `tensorrt.plugin` or `tensorrt_rtx` has: see `describe`."""
    name = re.sub(r"^tensorrt\b", "tensorrt_bindings", backend)
    folder_of(name.split(".")[0])
    return _described(name)


@functools.cache
def _described(name: str) -> Described:
    """Describe a package in a process of its own.

    The bindings of TensorRT come apart from its libraries, and link against them. For names and
    signatures libraries do that hold empty functions: none is called here.
    """
    unknown = set[str]()
    with tempfile.TemporaryDirectory() as folder:
        while True:
            if name.startswith("tensorrt_bindings"):
                _write_empty_libraries(Path(folder), unknown)
            done = subprocess.run(
                [sys.executable, str(Path(__file__).with_name("describe.py")), name],
                env={**os.environ, "LD_LIBRARY_PATH": folder},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                return json.loads(done.stdout.splitlines()[-1])  # some print at import
            symbol = re.search(r"undefined symbol: (\w+)", done.stderr)
            assert symbol is not None, done.stderr
            assert symbol[1] not in unknown, done.stderr
            unknown.add(symbol[1])


def _write_empty_libraries(folder: Path, functions: set[str]) -> None:
    content = next(folder_of("tensorrt_bindings").glob("tensorrt*.so")).read_bytes()
    names = re.findall(rb"lib(?:nvinfer|nvonnxparser)\w*\.so\.\d+", content)
    # What they link against has these names, and what else is wanted shows at the import.
    functions = functions | set(map(bytes.decode, re.findall(rb"create\w+_INTERNAL", content)))
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions))
    try:
        compiler = build.host_compiler()
    except build.BuildError as error:
        missing("a C++ compiler", str(error))
    for name in map(bytes.decode, set(names)):
        flags = ["-x", "c", "-shared", "-fPIC", str(source), "-o", str(folder / name)]
        subprocess.run([*compiler, *flags, f"-Wl,-soname,{name}"], check=True)
