"""`csd-eval merge`: databases of several machines into one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ....runtime.command.files import check_outputs, write_json
from ....runtime.command.parser import Parser, report_stream, run_command
from ....runtime.command.text import one_line
from ....runtime.errors import OptionError
from ..options import add_database_argument, add_json_argument
from ..store.database import check_database, open_database
from ..store.merging import check_mergeable, merge_runs


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="csd-eval merge",
        description="Add the runs of other databases to one, which is made if it is not there: "
        "runs of one name become one, and must have the same settings. What is there already is "
        "kept as it is, so a merge may be repeated.",
        example="csd-eval merge board-1.db board-2.db --db all.db",
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="FILE", help="databases to add")
    output = parser.group("output")
    add_database_argument(output)
    add_json_argument(output, "counts")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Merge, when everything that can be refused has been."""
    if len({path.resolve() for path in args.sources}) < len(args.sources):
        raise OptionError("a database is named twice: give each once")
    inputs = {f"the database {path.name}": path for path in args.sources}
    check_database(args.db, inputs)
    check_outputs({"--db": args.db, "--json": args.json}, inputs)
    merged: dict[str, dict[str, int]] = {}
    with ExitStack() as stack:
        sources = [(path, stack.enter_context(open_database(path))) for path in args.sources]
        check_mergeable([*sources, *([(args.db, stack.enter_context(open_database(args.db)))]
                                     if args.db.exists() else [])])  # fmt: skip
        with open_database(args.db, create=True) as target:
            for path, source in sources:
                added = merge_runs(target, source)
                merged[str(path)] = dict(added)
    if args.json is not None:
        write_json(args.json, {"database": str(args.db), "images_added": merged})
    for path, added in merged.items():
        counts = ", ".join(f"{count} images of {name}" for name, count in added.items())
        print(one_line(f"{path}: {counts or 'no runs'}"), file=report_stream(args.json))
    return 0
