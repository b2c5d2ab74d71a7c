"""`csd-eval`: which command was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from ...runtime.command.parser import Parser
from ..front.dispatch import add_command_argument, dispatch

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
        runs=False,
    )
    add_command_argument(parser, tuple(COMMANDS))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `csd-eval`; returns the exit code."""
    package = f"{__package__}.commands"
    return dispatch(build_parser, {name: f"{package}.{name}" for name in COMMANDS}, argv)
