"""`csd`: its manual, and which command was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from ...runtime.command.line.spelling import through_front
from ...runtime.command.parser import Parser
from .commands import GROUPS, SUBCOMMANDS
from .dispatch import add_command_argument, dispatch

_ABOUT = """\
Deploy pairs of masked-autoregressive image models: export them from PyTorch to a bundle, and make
images of it with continuous speculative decoding and fast exact samplers, on a GPU or without one.
"""
_USUAL = """\
the usual path:
  csd export --zoo fashion-mnist --out bundle
  csd generate bundle --labels all --cfg 3 --captions --out grid.png
  csd bench bundle --modes eager,target,csd --heads sequential,auto --gammas 8
"""
_FURTHER = """\
read on:
  csd COMMAND --help   all options of a command
  docs/cli.md          the same as one page; docs/commands.md: completion in a shell, logs
  README.md            what each mode preserves, and what was measured

Each command is also there by a name of its own, as csd-generate.
"""


class _FrontParser(Parser):
    """Its help is the first page of a manual."""

    def format_help(self) -> str:
        width = max(len(command.name) for command in SUBCOMMANDS)
        groups = [
            [group, *(f"  {c.name:<{width}}   {c.about}" for c in SUBCOMMANDS if c.group == group)]
            for group in GROUPS
        ]
        listed = "\n\n".join("\n".join(lines) for lines in groups if len(lines) > 1)
        usage = f"usage: {self.prog} COMMAND [OPTION ...]\n       {self.prog} --help | --version\n"
        return "\n".join((usage, _ABOUT, listed, "", _USUAL, _FURTHER))


def build_parser() -> Parser:
    """Return the parser of the command line without a command."""
    parser = _FrontParser(
        prog="csd",
        description=" ".join(_ABOUT.split()),
        example="csd generate bundle --labels 3,7,9 --cfg 3 --out grid.png",
        runs=False,
    )
    add_command_argument(parser, tuple(command.name for command in SUBCOMMANDS))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `csd`; returns the exit code."""
    with through_front():
        return dispatch(build_parser, {c.name: c.module for c in SUBCOMMANDS}, argv)
