"""Install the least versions that `pyproject.toml` allows, and run what needs them.

    python -m tests.bounds python3.10 FOLDER BUNDLE     # the runtime and `csd-bench --plot`
    python -m tests.bounds python3.11 FOLDER            # the export, which installs PyTorch

FOLDER receives an environment. CONTRIBUTING.md says what was tried.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOUND = re.compile(r"([\w-]+)>=([\w.]+)(?:; extra == ['\"](\w+)['\"])?")


def least(*extras: str) -> list[str]:
    """Requirements of the runtime and of some extras, each at its lower bound."""
    found = (BOUND.fullmatch(line) for line in requires("csd-edge") or [])
    return [f"{match[1]}=={match[2]}" for match in found if match and match[3] in (None, *extras)]


def run(*argv: object) -> None:
    """Show a command and run it; it must succeed."""
    print("$", *argv, flush=True)
    subprocess.run([str(part) for part in argv], check=True, cwd=os.sep)


def main(python: str, folder: str, bundle: str | None = None) -> None:
    """Make the environment and run the commands."""
    place = Path(folder).resolve()
    run(python, "-m", "venv", place)
    programs = place / "bin"
    pins = least("cpu", "tools") if bundle else least("cpu", "export")
    run(programs / "pip", "install", "--quiet", ROOT, *pins)
    if bundle is None:
        made = place / "bundle"
        run(programs / "csd-export", "--zoo", "fashion-mnist", "--precision", "fp16", "--out", made)
        return
    given = Path(bundle).resolve()
    few = ("--num-iter", 8, "--out", place / "image.png")
    run(programs / "csd-generate", given, "--labels", "3,7", "--mode", "csd", *few)
    few = ("--num-iter", 4, "--repeats", 1, "--plot", place / "plot.png")
    run(programs / "csd-bench", given, "--modes", "target", "--heads", "auto", *few)


if __name__ == "__main__":
    main(*sys.argv[1:])
