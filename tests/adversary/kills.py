"""Commands that a signal ends at several moments: nothing half-written, nothing left for good."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from csd.runtime import Bundle

from .answers import Case, ask, command, own_folder, tree
from .commands import FAST_BENCH
from .place import Place, no_work

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -9}
LIBRARY = "onnxruntime_pybind11"
MOST_SECONDS = 300
PROGRESS = re.compile(r"repeat \d+/\d+$|warning: other processes kept|$")
Moment = Callable[["subprocess.Popen[str]", Path], bool]


def cases(place: Place, everything: bool) -> Iterator[Case]:
    """All kills."""
    labels = ",".join("1" * 200)
    generate = [str(place.bundle), f"--labels={labels}", "--mode=target", "--threads=1",
                "--head=sequential", "--head-steps=1000", "--quiet", "--out=x.png"]  # fmt: skip
    bench = [str(place.bundle), *FAST_BENCH, "--repeats=100000", "--json=x.json"]
    export = [*place.models(), "--out=bundle"]
    moments: dict[str, Moment] = {
        "at NumPy's import": _maps("multiarray_umath"),
        "at ONNX Runtime's import": _maps(LIBRARY),
        "at work": _later(_maps(LIBRARY), 1.0),
    }
    writing: dict[str, Moment] = {"while it writes": _later(_partial, 0.5)}
    if everything:
        torch = {"at PyTorch's import": _maps("libtorch_cpu")}
        writing |= {"later": _later(_partial, 8.0)}
        tools = {
            "csd-export": ("csd.export.entry", export, {**moments, **torch, **writing}),
            "profile": ("csd.tools.measure.profile", [str(place.bundle), "--images=100000"],
                        moments),
            "random_model": ("csd.tools.random_model", ["--config=mar_huge", "--out=out"],
                             {**torch, "at NumPy's import": moments["at NumPy's import"]}),
        }  # fmt: skip
    else:
        tools = {"csd-export": ("csd.export.entry", export, writing)}
    for number in CODES:
        name = number.name
        for moment, when in moments.items():
            if everything or moment == "at work" or number in (signal.SIGINT, signal.SIGHUP):
                yield Case(f"csd-generate, {name} {moment}",
                           _killed(place, "csd.runtime.entry", generate, number, when))  # fmt: skip
            if everything:
                yield Case(f"csd-bench, {name} {moment}",
                           _killed(place, "csd.tools.entry", bench, number, when))  # fmt: skip
        for tool, (module, argv, whens) in tools.items():
            for moment, when in whens.items():
                if everything or number == signal.SIGKILL:
                    yield Case(f"{tool}, {name} {moment}",
                               _killed(place, module, argv, number, when))  # fmt: skip
    if everything:
        for number in CODES:
            yield Case(f"csd-export --force, {number.name} while it writes",
                       _replacing(place, export, number))  # fmt: skip


def _maps(library: str) -> Moment:
    """The moment a library is loaded."""

    def reached(process: subprocess.Popen[str], folder: Path) -> bool:
        try:
            return library in Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
        except OSError:
            return False

    return reached


def _partial(process: subprocess.Popen[str], folder: Path) -> bool:
    """The moment something is written under a temporary name."""
    return any(folder.glob(".*.partial"))


def _later(moment: Moment, seconds: float) -> Moment:
    def reached(process: subprocess.Popen[str], folder: Path) -> bool:
        if not moment(process, folder):
            return False
        time.sleep(seconds)
        return True

    return reached


def _kill(
    folder: Path, module: str, argv: Sequence[str], number: signal.Signals, when: Moment
) -> str | None:
    """Start a command, send a signal when the moment has come, and judge how it ends."""
    process = subprocess.Popen(
        command(module, argv), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + MOST_SECONDS
        while not when(process, folder):
            if process.poll() is not None or time.monotonic() > end:
                return f"the moment never came: {process.communicate()[1][-300:]!r}"
            time.sleep(0.002)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        return "did not end"
    finally:
        process.kill()
        process.wait()
    if process.returncode != CODES[number]:
        return f"ended with {process.returncode}: {err[-300:]!r}"
    # How far it was, and that the machine is busy, may be said before.
    said = [line for line in err.splitlines() if not PROGRESS.match(line)]
    if number != signal.SIGKILL and (len(said) != 1 or "interrupted" not in said[0]):
        return f"said {err[-300:]!r}"
    return None


def _killed(
    place: Place, module: str, argv: Sequence[str], number: signal.Signals, when: Moment
) -> Callable[[], str | None]:
    def fault() -> str | None:
        with own_folder(place.folder) as folder:
            if wrong := _kill(folder, module, argv, number, when):
                return wrong
            if number == signal.SIGKILL and module == "csd.export.entry":
                _next_export(place)
            left = [name for name in tree(folder) if name != "out"]
            return f"left behind: {left}" if left else None

    return fault


def _replacing(
    place: Place, export: Sequence[str], number: signal.Signals
) -> Callable[[], str | None]:
    def fault() -> str | None:
        with own_folder(place.folder) as folder:
            shutil.copytree(place.bundle, folder / "bundle")
            before = tree(folder)
            if wrong := _kill(folder, "csd.export.entry", [*export, "--force"], number,
                              _later(_partial, 3.0)):  # fmt: skip
                return wrong
            _next_export(place)
            Bundle.open(folder / "bundle")
            return None if tree(folder) == before else f"left behind: {tree(folder)}"

    return fault


def _next_export(place: Place) -> None:
    """Begin another export to the same place, which removes what a killed one left."""
    from csd.export.cli import main

    with no_work():
        ask(main, [*place.models(), "--out=bundle", "--force"])
