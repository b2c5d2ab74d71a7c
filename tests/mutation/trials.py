"""Tests that pytest has collected, run for one mutant after another, each in a process of its own.

A `Session` of pytest takes long to start. So one is started, its tests are collected, and none of
them is run in it: it forks for every mutant, and the fork runs those tests that can notice it.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from .patch import ROOT

# What a test may take of a processor, and of the clock: a mutant may go on for ever.
LIMIT_SECONDS, PATIENCE_SECONDS = 10, 60
# Memory that a mutant may take beside what it starts with.
ROOM_BYTES = 4 << 30
# What a trial answers that could not be made.
ERROR = "error"


class Loop:
    """A plugin that does something with the tests in the place of running them."""

    failed: ClassVar[list[str]] = []  # tests of this process

    def __init__(self, work: Callable[[pytest.Session], None]) -> None:
        self._work = work

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if not session.testsfailed:
            self._work(session)
        return True


def with_tests(tests: Sequence[str], keywords: str, work: Callable[[pytest.Session], None]) -> int:
    """Collect tests and call `work`; returns pytest's exit code."""
    plugins = [f"-pno:{name}" for name in ("cacheprovider", "xdist", "cov")]
    options = ["-q", "-s", "--tb=native", "-m", "not slow and not gpu", "-k", keywords]
    with silence():
        return int(pytest.main([*options, *plugins, *tests], plugins=[Loop(work)]))


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Let nothing be printed but by `say`."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def say(text: str) -> None:
    """Print a line, whatever pytest does with the output."""
    print(text, file=sys.__stdout__, flush=True)


def passes(item: pytest.Item, following: pytest.Item | None) -> bool:
    """Run a test; its fixtures stay where the following one needs them."""
    Loop.failed.clear()
    item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
    return not Loop.failed


def first_failure(
    items: Sequence[pytest.Item], seconds: Callable[[pytest.Item], float]
) -> str | None:
    """Run tests up to the first that fails; returns its name."""
    for item, following in zip(items, [*items[1:], None], strict=True):
        limit = max(LIMIT_SECONDS, 10 * seconds(item))
        signal.setitimer(signal.ITIMER_PROF, limit)
        signal.alarm(int(max(PATIENCE_SECONDS, 10 * limit)))
        if not passes(item, following):
            return item.nodeid
    return None


@dataclass
class Trial:
    """A process that tries a mutant."""

    child: int
    answer: int
    folder: Path

    @classmethod
    def start(cls, base: Path, run: Callable[[Path], str | None]) -> Trial:
        """Fork; `run` gets an empty folder, and returns the name of the test that failed."""
        answer, told = os.pipe()
        child = os.fork()
        folder = base / f"trial-{child or os.getpid()}"
        if child:
            os.close(told)
            return cls(child, answer, folder)
        code, name = 1, ERROR
        try:
            os.close(answer)
            os.setpgrp()
            folder.mkdir(mode=0o700)
            _limit_memory()
            # Bundles that were exported once lie beside the folder (tests/kept.py).
            os.environ["PYTEST_XDIST_WORKER"] = "trial"
            failed = run(folder)
            code, name = (0, "") if failed is None else (1, failed)
        finally:
            with contextlib.suppress(OSError):
                os.write(told, name.encode()[:4000])
            os._exit(code)

    def end(self, status: int) -> str | None:
        """What killed the mutant, or None, from the status of the process that has ended."""
        with os.fdopen(self.answer, "rb") as answer:
            name = answer.read().decode()
        shutil.rmtree(self.folder, ignore_errors=True)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return "time" if number in (signal.SIGPROF, signal.SIGALRM) else f"signal {number}"
        return None if status == 0 else name


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def use_folder(session: pytest.Session, folder: Path) -> None:
    """Let temporary files of the tests lie in a folder."""
    session.config._tmp_path_factory._basetemp = folder  # type: ignore[attr-defined]


def share_library(base: Path) -> None:
    """Let tests that compile the host library take one that is compiled once."""
    from csd.plugins import build

    library, compiled = base / build.HOST_LIBRARY, build.build_host

    def build_once(path: Path) -> Path:
        if not library.exists():
            compiled(library)
        return Path(shutil.copy(library, path))

    build.build_host = build_once


def key_of(item: pytest.Item) -> str:
    """Hash of what a test is made of: itself, the rest of its file, and what that imports."""
    function = item.function  # type: ignore[attr-defined]
    digest = hashlib.sha256(f"{item.nodeid}\n{_around(item.path)}\n".encode())
    digest.update(inspect.getsource(function).encode())
    for path in sorted(_helpers(item.path) - {item.path}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _around(path: Path) -> str:
    """A file of tests without the tests."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not getattr(node, "name", "").startswith("test_")]
    return ast.unparse(tree)


@functools.cache
def _helpers(path: Path) -> frozenset[Path]:
    """A file of tests, and those that it is made with."""
    found, waiting = set[Path](), [path, *(folder / "conftest.py" for folder in path.parents)]
    while waiting:
        path = waiting.pop()
        if path in found or ROOT not in path.parents or not path.is_file():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                module = (node.module or "").split(".") if node.module else []
                folder = path.parents[node.level - 1].joinpath(*module)
                waiting.append(folder.with_suffix(".py"))
                waiting += [folder / f"{alias.name}.py" for alias in node.names]
    return frozenset(found)
