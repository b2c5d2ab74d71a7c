"""Write `docs/cli.md` from the parsers: every command with every option.

python -m csd.tools.cli_reference --out docs/cli.md
"""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ..runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from ..runtime.command.files import check_outputs, output_path, write_atomically
from ..runtime.command.parser import Parser, report_stream, run_command
from .eval.cli import COMMANDS
from .front.commands import SUBCOMMANDS

_HEAD = """\
# Commands

Every command with every option, as their `--help` has them. This page is written by
`python -m csd.tools.cli_reference --out docs/cli.md`. Each command is there as `csd NAME` and as
`csd-NAME`. [commands.md](commands.md) says what they share: completion in a shell, logs, and
options without effect.
"""
_TABLE = ("| option | default | what |", "| --- | --- | --- |")


def reference() -> str:
    """Return the page."""
    return "\n".join([_HEAD, *(_section(parser) for parser in parsers())])


def parsers() -> Iterator[Parser]:
    """Yield the parsers of all commands, as they call themselves."""
    for command in SUBCOMMANDS:
        yield import_module(command.module).build_parser()
        if command.name == "eval":
            for name in COMMANDS:
                yield import_module(f"csd.tools.eval.commands.{name}").build_parser()


def _section(parser: Parser) -> str:
    lines = [f"## {parser.prog}", "", f"{_text(parser.description or '')}", ""]
    lines += [f"    {(parser.epilog or '').removeprefix('example: ')}", ""]
    for title, actions in parser.sections():
        shown = [action for action in actions if action.dest not in ("help", "version")]
        if shown:
            lines += [f"**{title}**", "", *_TABLE, *(_row(parser, a) for a in shown), ""]
    return "\n".join(lines)


def _row(parser: Parser, action: argparse.Action) -> str:
    help_text = (action.help or "") % {**vars(action), "prog": parser.prog}
    default = re.search(r"\s*\(default: ([^)]*(?:\([^)]*\)[^)]*)*)\)", help_text)
    what = help_text if default is None else help_text.replace(default[0], "")
    if action.choices is not None:
        what += f"; of {', '.join(map(str, action.choices))}"
    said = default[1] if default else _default(action)
    return f"| `{_cell(_form(action))}` | {_cell(said)} | {_cell(what)} |"


def _form(action: argparse.Action) -> str:
    """An option with what follows it, or what stands in its place."""
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if not action.option_strings:
        return value if action.metavar else action.dest
    name = ", ".join(action.option_strings)
    if action.nargs == 0:
        return name
    return f"{name} [{value}]" if action.nargs == "?" else f"{name} {value}"


def _default(action: argparse.Action) -> str:
    if action.required or not action.option_strings:
        return "to be given"
    if action.default is None or action.default == []:
        return "none"
    return "off" if action.default is False else str(action.default)


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|")


def _text(text: str) -> str:
    return " ".join(text.split())


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="python -m csd.tools.cli_reference",
        description="Write the page about all commands from their parsers.",
        example="python -m csd.tools.cli_reference --out docs/cli.md",
    )
    parser.add_argument(
        "--out", type=output_path, default=Path("docs/cli.md"), help="the page, - for stdout"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Write the page."""
    check_outputs({"--out": args.out})
    with write_atomically(args.out) as stream:
        stream.write(reference().encode())
    print(f"written to {args.out}", file=report_stream(args.out))
    return 0
