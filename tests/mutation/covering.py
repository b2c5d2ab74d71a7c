"""Which tests run a line, and how long each takes by itself."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import coverage
import pytest

from .log import Log, digest
from .mutants import Mutant
from .patch import ROOT, keepers
from .trials import Trial, key_of, passes, say, use_folder

# Tests whose lines are recorded by one process.
BATCH = 60


@dataclass(frozen=True)
class Test:
    """A test as the mutants see it.

    Attributes:
        name: pytest's.
        place: in the order of collection.
        key: hash of its text.
        seconds: of a processor that it takes with all its fixtures.
        lines: of each file that it runs.
    """

    name: str
    place: int
    key: str
    seconds: float
    lines: Mapping[str, frozenset[int]] = field(repr=False)


def tracer(files: Sequence[str]) -> coverage.Coverage:
    """Records lines of some files, in memory."""
    paths = [str(ROOT / file) for file in files]
    return coverage.Coverage(data_file=None, include=paths, config_file=False)


def lines_of(made: coverage.Coverage, files: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """Lines by context and file."""
    found: dict[str, dict[str, list[int]]] = {}
    for file in files:
        for line, contexts in made.get_data().contexts_by_lineno(str(ROOT / file)).items():
            for context in contexts:
                found.setdefault(context, {}).setdefault(file, []).append(line)
    return found


def covering(
    items: Sequence[pytest.Item], files: Sequence[str], log: Log, base: Path
) -> list[Test]:
    """Run every test once, on its own; those that fail are named and left out."""
    sources = digest(*((ROOT / file).read_text(encoding="utf-8") for file in files))
    keys = {item.nodeid: digest(key_of(item), sources) for item in items}
    missing = [i for i in items if log.get("test", i.nodeid).get("key") != keys[i.nodeid]]
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        say(f"lines of tests {start + 1} to {start + len(batch)} of {len(missing)}")
        for name, values in _recorded(batch, files, base).items():
            log.add("test", name, {"key": keys[name], **values})
    tests: list[Test] = []
    for place, item in enumerate(items):
        found = log.get("test", item.nodeid)
        if found["failed"]:
            say(f"  fails without a mutant and is left out: {item.nodeid}")
            continue
        lines = {file: frozenset(numbers) for file, numbers in found["lines"].items()}
        tests.append(Test(item.nodeid, place, key_of(item), found["seconds"], lines))
    return tests


def _recorded(batch: Sequence[pytest.Item], files: Sequence[str], base: Path) -> dict[str, dict]:
    out = base / "lines.json"

    def run(folder: Path) -> None:
        use_folder(batch[0].session, folder)
        made, found = tracer(files), {}
        caches = keepers()
        made.start()
        for item in batch:
            for cache in caches:
                cache.cache_clear()
            made.switch_context(item.nodeid)
            began = time.process_time()
            # All fixtures are torn down, so that each test shows what it needs by itself.
            failed = not passes(item, None)
            seconds = round(time.process_time() - began, 3)
            found[item.nodeid] = {"seconds": seconds, "failed": failed}
        made.stop()
        lines = lines_of(made, files)
        for name, values in found.items():
            values["lines"] = lines.get(name, {})
        out.write_text(json.dumps(found), encoding="utf-8")

    trial = Trial.start(base, run)
    failed = trial.end(os.waitpid(trial.child, 0)[1])
    if failed is not None:
        raise RuntimeError(f"tests could not be run: {failed}")
    return json.loads(out.read_text(encoding="utf-8"))


@dataclass
class Selection:
    """Tests of a mutant, those first that are likely to find it soon."""

    tests: list[Test]
    seconds: float
    _found: dict[tuple[str, ...], list[str]] = field(default_factory=lambda: defaultdict(list))

    def of(self, file: str, mutant: Mutant) -> list[Test]:
        """Tests that run a mutant, as many of the quickest as take `seconds` together."""
        if mutant.lines is None:
            # What an import makes shows in the tests of the file, whatever they run.
            place = Path(file)
            mirror = f"tests/{place.parent}/test_{place.stem}.py::"
            able = [t for t in self.tests if t.lines.get(file) or t.name.startswith(mirror)]
        else:
            lines = frozenset(mutant.lines)
            able = [test for test in self.tests if test.lines.get(file, lines - lines) & lines]
        chosen, total = list[Test](), 0.0
        for test in sorted(able, key=lambda test: test.seconds):
            total += test.seconds
            if chosen and total > self.seconds:
                break
            chosen.append(test)
        chosen.sort(key=lambda test: (_size(test.seconds), test.place))
        seen = [*self._found[(file, *mutant.scope)][-3:], *self._found[(file,)][-2:]][::-1]
        first = {name: rank for rank, name in reversed(list(enumerate(seen)))}
        return sorted(chosen, key=lambda test: first.get(test.name, len(seen)))

    def found(self, file: str, mutant: Mutant, killer: str) -> None:
        """Remember which test found a mutant."""
        for names in (self._found[(file, *mutant.scope)], self._found[(file,)]):
            if killer in names:
                names.remove(killer)
            names.append(killer)


def _size(seconds: float) -> int:
    return sum(seconds > edge for edge in (0.02, 0.1, 0.4, 1.5))
