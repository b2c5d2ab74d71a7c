"""`csd-doctor`: will a bundle run on this machine, and which command mends what is in its way."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...runtime.command.files import check_outputs, is_stdout, write_json
from ...runtime.command.parser import Parser, report_stream, run_command
from ...runtime.command.text import plain
from ...runtime.errors import BundleError
from ...runtime.libraries.causes import explain_missing
from ...runtime.version import VERSION
from ..option_values import add_json_report
from .check import PROBLEM, STATES, Check, report_lines
from .machine.gpu import gpu_checks
from .machine.jetson import jetson_checks
from .machine.memory import available_memory, disk_checks, memory_checks
from .machine.processor import DEFAULT_THREADS, processor_checks, usable_threads
from .machine.system import System
from .software.packages import REQUIRED, Package, find_packages, package_checks
from .software.python import python_checks

SCHEMA = 1
NOT_FIT = 1
_MANIFEST = "manifest.json"  # its own module imports NumPy


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="csd-doctor",
        description="Look at this machine, and at whether a bundle runs on it: what is ok, what is "
        "worth a note, and of each problem the reason and the command that mends it (exit code 0: "
        "no problem, 1: a problem, 2: an error of the command line).",
        example="csd-doctor bundle",
    )
    parser.add_argument(
        "bundle", type=Path, nargs="?",
        help="directory that csd-export wrote (default: the machine alone)",
    )  # fmt: skip
    parser.add_argument(
        "--no-run", action="store_true",
        help="leave the short run of the bundle out (default: an image of few AR steps is made)",
    )  # fmt: skip
    add_json_report(parser, "the findings", "text")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `csd-doctor`; returns the exit code (1: there is a problem, 2: an error)."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Look at what was asked for and tell."""
    inputs = {} if args.bundle is None else {"the bundle": args.bundle}
    check_outputs({"--json": args.json}, inputs)
    if args.bundle is not None and not os.path.lexists(args.bundle / _MANIFEST):
        raise BundleError(
            f"no bundle at {plain(str(args.bundle), 160)} (it has no {_MANIFEST}): give the folder "
            "that csd-export wrote, or none to look at the machine alone"
        )
    checks = examine(args.bundle, run_it=not args.no_run)
    if args.json is not None:
        write_json(args.json, document(args.bundle, checks))
    if not is_stdout(args.json):
        stream = report_stream(args.json)
        for line in report_lines(checks):
            print(line, file=stream)
        print(f"\n{_summary(args.bundle, checks)}", file=stream)
    return NOT_FIT if any(check.state == PROBLEM for check in checks) else 0


def examine(bundle: Path | None, *, run_it: bool, system: System | None = None) -> list[Check]:
    """Look at the machine, and at a bundle.

    Args:
        bundle: a folder with a manifest, or None.
        run_it: whether an image is made, where a backend runs the bundle.
        system: whose files are read; None is this machine's.
    """
    system = system or System()
    packages = find_packages()
    gpu = gpu_checks(system)
    has_gpu = any(check.name.startswith("device ") for check in gpu)
    checks = python_checks(numpy=packages["numpy"].works)
    checks += package_checks(packages, gpu=has_gpu)
    checks += processor_checks(system)
    checks += memory_checks(system)
    checks += disk_checks(bundle)
    checks += jetson_checks(system)
    checks += gpu
    if bundle is not None:
        checks += _bundle_checks(bundle, packages, system, run_it=run_it)
    return checks


def document(bundle: Path | None, checks: Sequence[Check]) -> dict[str, Any]:
    """The findings as JSON values.

    The keys are `schema` (1), `kind` (`doctor`), `csd`, `bundle` (as it was given, or null), `fit`
    (whether there is no problem), `counts` by state and `checks`: a list of `area`, `name`, `state`
    (`ok`, `note`, `problem`), `finding`, `reason` and `remedy`.
    """
    return {
        "schema": SCHEMA,
        "kind": "doctor",
        "csd": VERSION,
        "bundle": None if bundle is None else str(bundle),
        "fit": all(check.state != PROBLEM for check in checks),
        "counts": _counts(checks),
        "checks": [check.to_dict() for check in checks],
    }


def _bundle_checks(
    bundle: Path, packages: Mapping[str, Package], system: System, *, run_it: bool
) -> list[Check]:
    lacking = [name for name in REQUIRED if not packages[name].works]
    if lacking:
        package = packages[lacking[0]]
        return [Check(
            "bundle", "files", PROBLEM, f"not looked at: that needs {lacking[0]}", package.reason,
            package.remedy,
        )]  # fmt: skip
    try:
        from .bundle.backends import backend_checks, trial_check
        from .bundle.files import look_at, shown_progress
    except ImportError as error:
        known = explain_missing(error)
        if known is None:
            raise
        return [Check("bundle", "files", PROBLEM, "not looked at", *known)]
    found = look_at(bundle, shown_progress())
    checks = [*found.checks]
    if found.manifest is None:
        return checks
    ending = {name: (one.reason, one.remedy) for name, one in packages.items() if one.ends}
    threads = min(DEFAULT_THREADS, usable_threads(system))
    runs, best = backend_checks(
        bundle, found.manifest, found.sizes,
        threads=threads, available=available_memory(system), ending=ending,
    )  # fmt: skip
    checks += runs
    if run_it and best is not None and found.sound:
        checks.append(trial_check(bundle, best, threads))
    return checks


def _counts(checks: Sequence[Check]) -> dict[str, int]:
    return {state: sum(check.state == state for check in checks) for state in STATES}


def _summary(bundle: Path | None, checks: Sequence[Check]) -> str:
    counts = _counts(checks)
    what = "csd runs here" if bundle is None else "this machine runs the bundle"
    if counts[PROBLEM]:
        what = "csd does not run here" if bundle is None else "this bundle does not run here"
    problems = f"{counts[PROBLEM]} problem{'' if counts[PROBLEM] == 1 else 's'}"
    return f"{what}: {problems}, {counts['note']} notes"
