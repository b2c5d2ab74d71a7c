"""Readers that go away, and stdout and stderr that are not there: what was asked for is written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence

from .answers import Case, command, own_folder, tree
from .commands import FAST_BENCH
from .place import FAST, Place

CLOSED_PIPE = 141


def cases(place: Place, everything: bool) -> Iterator[Case]:
    """All closed pipes."""
    bundle = str(place.bundle)
    generate = [bundle, "--labels=1", "--quiet", *FAST, "--out=x.png", "--stats=x.json"]
    bench = [bundle, *FAST_BENCH, "--json=x.json"]
    profile = [bundle, "--threads=1", "--images=1", "--json=x.json"]
    commands = {
        "csd-generate": ("csd.runtime.entry", generate, ["x.json", "x.png"]),
        "csd-generate --out -": (
            "csd.runtime.entry", [*generate, "--out=-"], ["x.json"]),
        "csd-bench": ("csd.tools.entry", bench, ["x.json"]),
        "csd-inspect": ("csd.tools.inspect.entry", [bundle, "--json=x.json"], ["x.json"]),
    }  # fmt: skip
    if everything:
        export = [*place.models(), "--out=bundle", "--calibration-tokens=0"]
        commands |= {
            "profile": ("csd.tools.measure.profile", profile, ["x.json"]),
            "csd-export": ("csd.export.entry", export, None),
            "csd-doctor": ("csd.tools.doctor.entry", [bundle, "--json=x.json"], ["x.json"]),
        }
    for name, (module, argv, files) in commands.items():
        for kind, start in STARTS.items():
            if everything or (name == "csd-generate" or kind == "stdout's reader left"):
                yield Case(f"{name}: {kind}", _tried(place, module, argv, files, start))
    if everything:
        for module in ("csd.runtime.entry", "csd.export.entry", "csd.tools.entry",
                       "csd.tools.doctor.entry", "csd.tools.inspect.entry"):  # fmt: skip
            for option in ("--help", "--version"):
                start = STARTS["stdout's reader left"]
                yield Case(f"{module} {option}", _tried(place, module, [option], [], start))


def _left(descriptor: int) -> Callable[[], None]:
    """Have a pipe that nobody reads at a descriptor."""

    def make() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, descriptor)

    return make


STARTS: dict[str, Callable[[], None]] = {
    "stdout's reader left": _left(1),
    "stderr's reader left": _left(2),
    "no stdout": lambda: os.close(1),
    "no stderr": lambda: os.close(2),
    "no stdin": lambda: os.close(0),
}


def _tried(
    place: Place, module: str, argv: Sequence[str], files: list[str] | None,
    start: Callable[[], None],
) -> Callable[[], str | None]:  # fmt: skip
    def fault() -> str | None:
        with own_folder(place.folder) as folder:
            done = subprocess.run(
                command(module, argv), cwd=folder, capture_output=True, text=True, check=False,
                preexec_fn=start, errors="backslashreplace",
            )  # fmt: skip
            # Results that go to a stdout that is not there are refused.
            refused = done.returncode == 2 and len(done.stderr.splitlines()) <= 1
            if "Traceback" in done.stderr:
                return f"a traceback: {done.stderr[-300:]!r}"
            if refused and "--out=-" in argv:
                return None
            if done.returncode not in (0, CLOSED_PIPE):
                return f"answered with {done.returncode}: {done.stderr[-300:]!r}"
            made = [name for name in tree(folder) if "/" not in name]
            wanted = ["bundle"] if files is None else files
            return None if made == wanted else f"made {made}, not {wanted}"

    return fault
