"""`csd-eval`: which command was asked for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from ...runtime.command.parser import Parser, run_command

# What each does; its module in `commands` has the same name.
COMMANDS = {
    "run": "generate and store the images of one setting",
    "compare": "runs beside each other",
    "gate": "is a candidate worse than a baseline, as an exit code",
    "history": "one figure over bundles and versions",
    "tune": "the fastest setting that is still as good, as a preset of the bundle",
    "certify": "is the speculative head exact on this machine",
    "merge": "databases of several machines into one",
}


def build_parser() -> Parser:
    """Return the parser of the command line without a command."""
    listed = "; ".join(f"{name}: {what}" for name, what in COMMANDS.items())
    parser = Parser(
        prog="csd-eval",
        description=f"Is the faster version still as good, and which setting should be shipped? "
        f"Each command has its own --help. {listed}.",
        example="csd-eval run bundle --name target --images 1000",
    )
    parser.add_argument("command", choices=tuple(COMMANDS), help="what to do")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `csd-eval`; returns the exit code."""
    given = [*(sys.argv[1:] if argv is None else argv)]
    if given and given[0] in COMMANDS:
        module = import_module(f".commands.{given[0]}", __package__)
        return int(module.main(given[1:]))
    return run_command(_unreached, build_parser(), given)


def _unreached(args: argparse.Namespace) -> int:
    """Never called: a command that the parser takes was taken before it."""
    raise AssertionError(args.command)
