"""Mutation testing of the decoding code: does a test fail for every small change of it?

    python -m tests.mutation.run runtime/noise.py            one file
    python -m tests.mutation.run --list runtime/noise.py     its mutants
    python -m tests.mutation.run                             all files of TESTS; takes an hour

A process that has the libraries forks for each mutant, imports csd with the mutant in the place of
its file, and runs the tests of `TESTS` for it up to the first that fails. Mutants that change
nothing that anybody gets are in `equivalent.py`, each with its reason.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from .equivalent import EQUIVALENT
from .mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
_HEAD = [
    "tests/runtime/head/test_sequential.py", "tests/runtime/head/test_native.py",
    "tests/runtime/head/test_parallel.py", "tests/runtime/head/test_speculative.py",
]  # fmt: skip
_DECODING = [
    "tests/runtime/decoding/test_sampler_choice.py", "tests/runtime/decoding/test_loop.py",
    "tests/runtime/decoding/test_alignment.py", "tests/runtime/test_session.py",
]  # fmt: skip
# Tests of each file, those that find most first.
TESTS = {
    "runtime/noise.py": ["tests/runtime/test_noise.py"],
    "runtime/schedule.py": ["tests/runtime/test_schedule.py", *_HEAD[:1], *_DECODING],
    "runtime/decoding/loop.py": _DECODING,
    "runtime/decoding/verification.py": _DECODING,
    "runtime/head/draft.py": [*_HEAD, *_DECODING],
    "runtime/head/parallel.py": [_HEAD[2], *_DECODING],
    "runtime/head/sampler.py": [*_HEAD, *_DECODING],
    "runtime/head/schedule.py": [*_HEAD, *_DECODING],
    "runtime/head/sequential.py": [_HEAD[0], *_DECODING],
    "runtime/head/speculative.py": [_HEAD[3], *_DECODING],
    "plugins/reference.py": ["tests/plugins/test_reference.py", *_HEAD[3:], *_DECODING],
}
# What a test of a mutant may take: a mutant may go on for ever.
LIMIT_SECONDS = 120
# Imported once; a mutant's process inherits them.
_LIBRARIES = ("numpy", "scipy.stats", "onnxruntime", "PIL.Image", "rich", "hypothesis", "torch")


class _Replaced(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Finds one module, whose source is a given tree."""

    def __init__(self, path: Path, tree: ast.Module) -> None:
        self._path, self._tree = path, tree
        self._name = "csd." + ".".join(path.relative_to(ROOT).with_suffix("").parts)

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self)

    def get_filename(self, fullname):
        return str(self._path)

    def get_data(self, path):
        return Path(path).read_bytes()

    def get_code(self, fullname):
        return compile(self._tree, str(self._path), "exec")


def _run_tests(path: Path, tree: ast.Module, tests: Sequence[str]) -> int:
    """Run the tests of a mutant in this process, which is of no use afterwards."""
    sys.meta_path.insert(0, _Replaced(path, tree))
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        plugins = [f"-pno:{name}" for name in ("cacheprovider", "xdist", "cov")]
        return int(pytest.main(["-x", "-q", "-m", "not slow and not gpu", *plugins, *tests]))


def _start(path: Path, tree: ast.Module, tests: Sequence[str]) -> int:
    """Fork a process for a mutant."""
    child = os.fork()
    if child == 0:
        os.setpgrp()
        code = 1
        try:
            signal.alarm(LIMIT_SECONDS)
            code = _run_tests(path, tree, tests)
        finally:
            os._exit(code)
    return child


def _survivors(path: Path, found: Sequence[Mutant], jobs: int) -> list[Mutant]:
    """Mutants that all tests pass."""
    tests = TESTS[str(path.relative_to(ROOT))]
    waiting, running, left = list(found), dict[int, Mutant](), list[Mutant]()
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop(0)
            running[_start(path, mutant.tree, tests)] = mutant
        child, status = os.wait()
        mutant = running.pop(child)
        if status == 0:
            left.append(mutant)
            print(f"  survives  {path.name}:{mutant.line}  {mutant.name}", flush=True)
    return left


def _check_file(path: Path, jobs: int, lines: range) -> bool:
    source = path.read_text(encoding="utf-8")
    name = str(path.relative_to(ROOT))
    every = list(mutants(source))
    found = [mutant for mutant in every if mutant.line in lines]
    began = time.perf_counter()
    if os.waitpid(_start(path, ast.parse(source), TESTS[name]), 0)[1] != 0:
        print(f"{name}: its tests fail without a mutant: run pytest {' '.join(TESTS[name])}")
        return False
    plain = time.perf_counter() - began
    print(f"{name}: {len(found)} mutants; its tests take {plain:.1f} s", flush=True)
    excused = EQUIVALENT.get(name, {})
    left = _survivors(path, [m for m in found if m.name not in excused], jobs)
    stale = sorted(set(excused) - {m.name for m in every})
    seconds = time.perf_counter() - began - plain
    counted = sum(m.name not in excused for m in found)
    killed = counted - len(left)
    print(
        f"{name}: {killed} of {counted} killed ({killed / max(1, counted):.1%}), "
        f"{len(found) - counted} change nothing, {seconds / max(1, counted):.1f} s each",
        flush=True,
    )
    for one in stale:
        print(f"  no longer there: {one}")
    return not left and not stale


def _lines(text: str) -> range:
    first, _, last = text.partition(":")
    return range(int(first), int(last or first) + 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the root of the repository; 1 if a mutant survives that should not."""
    parser = argparse.ArgumentParser(description="mutation testing of the decoding code")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    parser.add_argument("--lines", type=_lines, default=range(1 << 20), help="A:B, only these")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    args = parser.parse_args(argv)
    os.chdir(ROOT)
    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    files = [(ROOT / file).resolve() for file in (args.files or map(Path, TESTS))]
    if args.list:
        for path in files:
            for mutant in mutants(path.read_text(encoding="utf-8")):
                print(f"{path.name}:{mutant.line}  {mutant.name}")
        return 0
    for library in _LIBRARIES:
        importlib.import_module(library)
    passed = [_check_file(path, args.jobs, args.lines) for path in files]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    raise SystemExit(main())
