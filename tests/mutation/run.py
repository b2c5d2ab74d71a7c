"""Mutation testing of the decoding code: does a test fail for every small change of it?

    python -m tests.mutation.run runtime/noise.py            one file
    python -m tests.mutation.run --list runtime/noise.py     its mutants
    python -m tests.mutation.run --resume                    all files; what is in the log stays

Every test of `TESTS` is run once, to see which lines it runs. Then a process that has collected the
tests forks for each mutant, gives a function its other code, and runs the tests that run the
changed line, up to the first that fails; the quickest come first, and those that found mutants of
the same function before them. What runs when a file is imported takes a new import. Mutants that
change nothing that anybody gets are in `equivalent.py`, each with its reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import importlib
import os
import pickle
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import coverage
import hypothesis
import pytest

from .covering import Selection, Test, covering, lines_of, tracer
from .equivalent import EQUIVALENT, KNOWN
from .log import Log, digest
from .mutants import Mutant, mutants
from .patch import ROOT, Replaced, keepers, patch_function
from .trials import ERROR, Trial, first_failure, say, share_library, use_folder, with_tests

FILES = (
    "runtime/noise.py",
    "runtime/schedule.py",
    "runtime/decoding/chains.py",
    "runtime/decoding/loop.py",
    "runtime/decoding/plan.py",
    "runtime/decoding/samplers.py",
    "runtime/decoding/verification.py",
    "runtime/head/device.py",
    "runtime/head/draft.py",
    "runtime/head/native.py",
    "runtime/head/parallel.py",
    "runtime/head/request.py",
    "runtime/head/sampler.py",
    "runtime/head/schedule.py",
    "runtime/head/sequential.py",
    "runtime/head/slopes.py",
    "runtime/head/speculative.py",
    "plugins/reference.py",
)
TESTS = (
    "tests/plugins/test_reference.py",
    "tests/plugins/test_host.py",
    "tests/runtime/test_noise.py",
    "tests/runtime/test_schedule.py",
    "tests/runtime/head",
    "tests/runtime/decoding",
    "tests/runtime/test_session.py",
)
# Without tests of tests, without those that export a bundle of their own, and without the laws of
# the head samplers: what they would find is found sooner where NumPy makes other chains than C++.
KEYWORDS = (
    "not is_found and not detects and not another_configuration and not test_the_law "
    "and not test_laws and not zoo_law and not standard_normal and not threads "
    "and not no_call_is_larger and not brute_force and not test_evaluator"
)
# Tests of the control, which runs without a mutant.
QUICK_SECONDS = 0.1
# Imported once; a mutant's process inherits them.
_LIBRARIES = ("numpy", "scipy.stats", "onnxruntime", "PIL.Image", "rich", "torch", "coverage")


@dataclass(frozen=True)
class Work:
    """What is asked for: mutants by file, and how."""

    mutants: dict[str, list[Mutant]]
    log: Log
    base: Path
    jobs: int
    seconds: float


class Tries:
    """Mutants that are waiting and under way."""

    def __init__(self, work: Work, selection: Selection) -> None:
        self._work, self._selection = work, selection
        self.later: list[tuple[str, Mutant]] = []  # those that take an import
        self._running: dict[int, tuple[str, Mutant, list[Test], Trial, float, bool]] = {}

    def run(
        self,
        file: str,
        mutant: Mutant,
        start: Callable[[Path, list[Test]], str | None],
        imported: bool = False,
    ) -> None:
        """Try a mutant unless the log has it; waits while there are as many as may be.

        Where its line ran at the import too, one that survives goes to `later`.
        """
        tests = self._selection.of(file, mutant)
        if imported and not tests:
            self._put_off(file, mutant)
            return
        if self._known(file, mutant, tests):
            return
        if not tests:
            self._write(file, mutant, tests, None, 0.0)
            return
        while len(self._running) >= self._work.jobs:
            self._wait()
        trial = Trial.start(self._work.base, lambda folder: start(folder, tests))
        began = time.perf_counter()
        self._running[trial.child] = file, mutant, tests, trial, began, imported

    def finish(self) -> None:
        """Wait for all."""
        while self._running:
            self._wait()

    def _wait(self) -> None:
        child, status = os.wait()
        file, mutant, tests, trial, began, imported = self._running.pop(child)
        killer = trial.end(status)
        if killer == ERROR:  # a function that no longer asks for its class, say
            self.later.append((file, mutant))
            return
        if killer is not None:
            self._selection.found(file, mutant, killer)
        elif imported:
            self._put_off(file, mutant)
            return
        self._write(file, mutant, tests, killer, time.perf_counter() - began)

    def _put_off(self, file: str, mutant: Mutant) -> None:
        # Any test of the file may notice what its import does.
        self.later.append((file, dataclasses.replace(mutant, lines=None)))

    def _known(self, file: str, mutant: Mutant, tests: list[Test]) -> bool:
        fact = self._work.log.get("mutant", f"{file}: {mutant.name}")
        if not fact or fact["source"] != _source(file):
            return False
        keys = {test.name: test.key for test in self._selection.tests}
        if fact["killer"] is None:
            return fact["key"] == _digest(tests)
        return fact["key"] == keys.get(fact["killer"], "")

    def _write(self, file, mutant, tests: list[Test], killer: str | None, seconds: float) -> None:
        keys = {test.name: test.key for test in tests}
        key = _digest(tests) if killer is None else keys.get(killer, "")
        values = {"source": _source(file), "killer": killer, "key": key, "line": mutant.line}
        values |= {"tests": len(tests), "seconds": round(seconds, 2)}
        self._work.log.add("mutant", f"{file}: {mutant.name}", values)
        if killer is None:
            why = "" if tests else "  (no test runs it)"
            say(f"  survives  {file}:{mutant.line}  {mutant.name}{why}")


def _digest(tests: list[Test]) -> str:
    return digest(*sorted(f"{test.name} {test.key}" for test in tests))


def _source(file: str) -> str:
    return digest((ROOT / file).read_text(encoding="utf-8"))


def _try_all(work: Work) -> None:
    """Try the mutants of functions where the tests are collected, and then those of imports."""
    found = work.base / "found"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            imported = tracer(FILES)
            imported.start()
            with_tests(TESTS, KEYWORDS, lambda session: _warm(work, session, imported, found))
            code = 0
        finally:
            os._exit(code)
    os.waitpid(child, 0)
    if not found.exists():
        raise SystemExit("the tests cannot be collected and run: try pytest tests/runtime")
    work.log.read()
    tests, later = pickle.loads(found.read_bytes())
    say(f"{len(later)} mutants of what runs when a file is imported")
    tries = Tries(work, Selection(tests, work.seconds))
    for file, mutant in later:
        tries.run(file, mutant, functools.partial(_imported, file, mutant))
    tries.finish()
    for file, mutant in tries.later:
        raise SystemExit(f"{file}:{mutant.line} cannot be tried: {mutant.name}")


def _warm(work: Work, session: pytest.Session, imported: coverage.Coverage, found: Path) -> None:
    imported.stop()
    at_import = lines_of(imported, FILES).get("", {})
    share_library(work.base)
    tests = covering(session.items, FILES, work.log, work.base)
    tries = Tries(work, Selection(tests, work.seconds))
    items = {item.nodeid: item for item in session.items}
    for cache in keepers():
        cache.cache_clear()
    gc.collect()
    gc.freeze()
    _control(work, session, items, tests)
    for file, every in work.mutants.items():
        say(f"{file}: {len(every)} mutants")
        for mutant in every:
            if mutant.lines is None:
                tries.later.append((file, mutant))
                continue
            imported = not set(mutant.lines).isdisjoint(at_import.get(file, ()))
            patched = functools.partial(_patched, session, items, file, mutant)
            tries.run(file, mutant, patched, imported)
        tries.finish()
    found.write_bytes(pickle.dumps((tests, tries.later)))


def _control(
    work: Work, session: pytest.Session, items: dict[str, pytest.Item], tests: list[Test]
) -> None:
    """Run the quick tests one after another without a mutant: what fails then says nothing."""
    quick = [test for test in tests if test.seconds < QUICK_SECONDS]

    def run(folder: Path) -> str | None:
        use_folder(session, folder)
        return _first_failure(items, quick)

    trial = Trial.start(work.base, run)
    if failed := trial.end(os.waitpid(trial.child, 0)[1]):
        say(f"fails after other tests without a mutant: {failed}")
        os._exit(1)


def _patched(
    session: pytest.Session, items: dict[str, pytest.Item], file: str, mutant: Mutant,
    folder: Path, tests: list[Test],
) -> str | None:  # fmt: skip
    """Run tests with another function in the place of one."""
    use_folder(session, folder)
    source = (ROOT / file).read_text(encoding="utf-8")
    patch_function(ROOT / file, mutant.tree(source), mutant.scope)
    return _first_failure(items, tests)


def _imported(file: str, mutant: Mutant, folder: Path, tests: list[Test]) -> str | None:
    """Run tests with another file in the place of one, where csd has not been imported yet."""
    source = (ROOT / file).read_text(encoding="utf-8")
    sys.meta_path.insert(0, Replaced(ROOT / file, mutant.tree(source)))
    answers: list[str | None] = []

    def work(session: pytest.Session) -> None:
        use_folder(session, folder)
        share_library(folder.parent)
        items = {item.nodeid: item for item in session.items}
        answers.append(_first_failure(items, tests))

    with_tests([test.name for test in tests], KEYWORDS, work)
    return answers[0] if answers else "import"


def _first_failure(items: dict[str, pytest.Item], tests: list[Test]) -> str | None:
    seconds = {test.name: test.seconds for test in tests}
    if missing := [name for name in seconds if name not in items]:
        return missing[0]  # a mutant may change how tests are named
    return first_failure([items[name] for name in seconds], lambda item: seconds[item.nodeid])


def _report(work: Work, chosen: Sequence[str]) -> bool:
    """Print the table, and what is wrong; returns whether nothing is."""
    fine = True
    say("\n| file | mutants | killed | equivalent |\n| --- | --- | --- | --- |")
    for file in chosen:
        every = list(mutants((ROOT / file).read_text(encoding="utf-8")))
        excused = {**EQUIVALENT.get(file, {}), **KNOWN.get(file, {})}
        tried = work.mutants[file]
        killed = sum(_killer(work.log, file, mutant) is not None for mutant in tried)
        equivalent = sum(mutant.name in EQUIVALENT.get(file, {}) for mutant in every)
        share = killed / max(1, len(every) - equivalent)
        of = f" of {len(tried)} tried" if len(tried) + len(excused) < len(every) else ""
        say(f"| `{file}` | {len(every)} | {killed}{of} ({share:.1%}) | {equivalent} |")
    for file in chosen:
        names = {mutant.name for mutant in mutants((ROOT / file).read_text(encoding="utf-8"))}
        excused = {**EQUIVALENT.get(file, {}), **KNOWN.get(file, {})}
        for stale in sorted(set(excused) - names):
            fine = False
            say(f"  {file}: no longer there: {stale}")
        for mutant in work.mutants[file]:
            if _killer(work.log, file, mutant) is None:
                fine = False
                say(f"  survives  {file}:{mutant.line}  {mutant.name}")
    return fine


def _killer(log: Log, file: str, mutant: Mutant) -> str | None:
    return log.get("mutant", f"{file}: {mutant.name}")["killer"]


def _chosen(file: str, args: argparse.Namespace) -> list[Mutant]:
    """Mutants of a file that are to be tried."""
    excused = set() if args.all else {*EQUIVALENT.get(file, {}), *KNOWN.get(file, {})}
    every = mutants((ROOT / file).read_text(encoding="utf-8"))
    found = [m for m in every if m.line in args.lines and m.name not in excused]
    if args.sample is not None and args.sample < len(found):
        kept = random.Random(f"{args.seed} {file}").sample(range(len(found)), args.sample)
        found = [found[k] for k in sorted(kept)]
    return found


def _lines(text: str) -> range:
    first, _, last = text.partition(":")
    return range(int(first), int(last or first) + 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the root of the repository; 1 if a mutant survives that should not."""
    parser = argparse.ArgumentParser(description="mutation testing of the decoding code")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--lines", type=_lines, default=range(1 << 20), help="A:B, only these")
    parser.add_argument("--sample", type=int, help="so many mutants of each file")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--all", action="store_true", help="equivalent ones too")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    parser.add_argument("--seconds", type=float, default=8.0, help="of tests for a mutant at most")
    parser.add_argument("--log", type=Path, default=ROOT / "build" / "mutation.jsonl")
    parser.add_argument("--resume", action="store_true", help="keep what the log says")
    args = parser.parse_args(argv)
    os.chdir(ROOT)
    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    files = [str((ROOT / file).resolve().relative_to(ROOT)) for file in args.files] or list(FILES)
    chosen = {file: _chosen(file, args) for file in files}
    if args.list:
        for file, found in chosen.items():
            for mutant in found:
                print(f"{file}:{mutant.line}  {mutant.name}")
        return 0
    for library in _LIBRARIES:
        importlib.import_module(library)
    hypothesis.settings.register_profile("mutation", database=None, derandomize=True)
    hypothesis.settings.load_profile("mutation")
    with tempfile.TemporaryDirectory(prefix="csd-mutation-") as base:
        log = Log(args.log, args.resume)
        work = Work(chosen, log, Path(base), args.jobs, args.seconds)
        _try_all(work)
        return 0 if _report(work, files) else 1


if __name__ == "__main__":
    raise SystemExit(main())
