"""What models of every size take, by form of file and precision: `python -m csd.tools.measure.models`.

Random weights of a preset's shape are written as published files come, exported in a process of its
own whose memory is watched, and the bundle makes an image in another. One row after another; what
`--json` has saved before, of the same code and machine, is not made again.
"""  # noqa: E501

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ....runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....models.families import presets
from ....runtime.command.files import (
    check_outputs,
    is_stdout,
    is_stream,
    output_path,
    partial_directory,
    write_atomically,
    write_json,
)
from ....runtime.command.parser import Parser, parse_list, run_command
from ....runtime.errors import CsdError
from ...console import Report, progress_report, results_console
from ...load import LoadMeter, busy_warning, cores, idle_load, load_report
from ...machine import describe_machine
from ...option_values import THREADS
from ..frame import figures_table
from .measure import Bench, count_parameters
from .rows import (
    FORMS,
    PRECISIONS,
    Model,
    Row,
    is_current,
    key_of,
    made_with,
    named_configs,
    obstacle,
    wanted_rows,
)
from .table import COLUMNS, failures, markdown, shown

Saved = dict[tuple[str, str, str], dict[str, Any]]


def build_parser() -> Parser:
    """Return the command-line parser."""
    prog = "python -m csd.tools.measure.models"
    parser = Parser(
        prog=prog,
        description="Export random weights of the shape of published models, each in a process of "
        "its own, and make an image of few steps with the bundle: seconds, memory at most, bytes, "
        "largest difference to PyTorch. By default every form of file with one model, and every "
        "precision with every model. The exit code is 1 where a row failed.",
        example=f"{prog} --presets mar_base,emigm_base --json models.json",
    )
    add = parser.add_argument
    add("--presets", help=f"which models, of {', '.join(presets())}, or JSON files (default: all "
        "that the memory and the disk have room for)")  # fmt: skip
    add("--forms", default=",".join(FORMS), help="of file: all that the released training keeps, "
        "a .pth of averages alone, safetensors, safetensors in shards")  # fmt: skip
    add("--precisions", default=",".join(PRECISIONS), help="of the graphs")
    add("--all", action="store_true", help="every model with every form and precision "
        "(default: every form with one model, every precision with one form)")  # fmt: skip
    add("--again", action="store_true", help="make rows again that --json has "
        "(default: only those that failed, or are of other code or another machine)")  # fmt: skip
    add("--threads", type=THREADS, default=2, help="CPU threads of PyTorch and of the image; the "
        "export's checks take every core")  # fmt: skip
    add("--work", type=Path, metavar="DIR", default=Path(tempfile.gettempdir()),
        help="where weights and bundles lie until their rows are done")  # fmt: skip
    add("--json", type=output_path, metavar="FILE", help="save the rows after each, and go on "
        "with those that it has, - for stdout (default: not saved)")  # fmt: skip
    add("--markdown", type=output_path, metavar="FILE", help="save the table as Markdown, - for "
        "stdout (default: not saved)")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the rows; returns the exit code (1: one failed)."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Measure the rows that are wanted and not there."""
    forms = parse_list("forms", args.forms, str, known=tuple(FORMS))
    precisions = parse_list("precisions", args.precisions, str, known=PRECISIONS)
    configs = named_configs(_names(args.presets))
    if not args.work.is_dir():
        raise CsdError(f"--work {args.work} is no folder: give one that is there")
    check_outputs({"--json": args.json, "--markdown": args.markdown})
    saved, report = _read(args.json), progress_report()
    with partial_directory(args.work / "csd-models") as work:
        models = count_parameters(configs, work)
        rows, left_out = _fitting(models, forms, precisions, args, report)
        table = _Table(args, saved, left_out)
        made = made_with(args.threads)
        _measure(rows, table, made, work, args, report)
    table.save(last=True)
    console = results_console(args.json, args.markdown)
    mine = [table.rows[row.key] for row in rows]
    title = f"random weights, {args.threads} thread{'s' * (args.threads > 1)}"
    console.print(figures_table(title, COLUMNS, map(shown, mine)))
    for line in (*(line for row in mine for line in failures(row)), *_loads(mine)):
        console.print(line, soft_wrap=True)
    return int(any(row["failures"] for row in mine))


def _names(text: str | None) -> list[str]:
    return list(presets()) if text is None else parse_list("presets", text, str)


def _fitting(
    models: Sequence[Model],
    forms: Sequence[str],
    precisions: Sequence[str],
    args: argparse.Namespace,
    report: Report,
) -> tuple[list[Row], dict[str, str]]:
    """The rows that fit this machine, and why the others' models do not.

    Models that were asked for by name are tried all the same.

    Raises:
        CsdError: none fits.
    """
    left_out: dict[str, str] = {}
    fitting: list[Model] = []
    every = wanted_rows(models, forms, precisions, every=args.all)
    for model in models:
        why = obstacle([row for row in every if row.model is model], args.work)
        if why is not None:
            report(f"{model.name} {why}: {'left out' if args.presets is None else 'tried'}")
        if why is None or args.presets is not None:
            fitting.append(model)
        else:
            left_out[model.name] = why
    if not fitting:
        raise CsdError("no model fits this machine: give --presets with those to try all the same")
    return wanted_rows(fitting, forms, precisions, every=args.all), left_out


def _measure(
    rows: Sequence[Row],
    table: _Table,
    made: Mapping[str, Any],
    work: Path,
    args: argparse.Namespace,
    report: Report,
) -> None:
    """Measure rows that are not there, the weights of a model and a form of them written once."""
    todo = [row for row in rows if args.again or not table.has(row, made)]
    if len(todo) < len(rows):
        report(f"{len(rows) - len(todo)} of {len(rows)} rows are there already")
    done = itertools.count(1)
    for model, of_model in itertools.groupby(todo, key=lambda row: row.model):
        with partial_directory(work / model.name) as folder:
            bench = Bench(model, folder, args.threads)
            report(f"{model.name}: drawing {model.parameters / 1e6:.0f} million weights")
            bench.draw()
            for form, of_form in itertools.groupby(of_model, key=lambda row: row.form):
                with bench.form(form) as weights:
                    for row in of_form:
                        name = " ".join(row.key)
                        report(f"{name}: row {next(done)} of {len(todo)}")
                        table.add({**_measured(bench, row, weights, report),
                                   "made_with": made})  # fmt: skip


def _measured(bench: Bench, row: Row, weights: Path, report: Report) -> dict[str, Any]:
    """A row, with the load of the machine before and during it."""
    idle, most = idle_load(), cores()  # the export's checks take all of them
    if warning := busy_warning(idle, None, most, most):
        report(f"warning: {warning}")
    meter = LoadMeter()
    values = bench.measure(row, weights)
    for line in failures(values):
        report(line)
    return {**values, "load": load_report(idle, meter.read(), most)}


def _loads(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to say of how busy the machine was, whichever row it was."""
    busy = [" ".join(key_of(row)) for row in rows if row["load"]["warning"]]
    if not busy:
        return []
    return [f"WARNING: the machine was busy beside {'; '.join(busy)}: seconds will not repeat, "
            "memory and sizes do; measure again with --again"]  # fmt: skip


def _read(path: Path | None) -> Saved:
    """Rows that --json saved before, by what names them.

    Raises:
        CsdError: the file is none of this script's.
    """
    if path is None or is_stdout(path) or not path.is_file():
        return {}
    try:
        return {key_of(row): row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CsdError(
            f"cannot go on with {path} ({type(error).__name__}): give a file that --json of this "
            "script saved, or a new one"
        ) from error


class _Table:
    """The rows that were saved before and those that are measured now, and the files of both."""

    def __init__(self, args: argparse.Namespace, saved: Saved, left_out: Mapping[str, str]) -> None:
        self.rows = saved
        self._json, self._markdown, self._left_out = args.json, args.markdown, dict(left_out)

    def has(self, row: Row, made: Mapping[str, Any]) -> bool:
        """Whether a row is there and is what would be measured now."""
        return row.key in self.rows and is_current(self.rows[row.key], row, made)

    def add(self, row: dict[str, Any]) -> None:
        """Add a measured row, and save it."""
        self.rows[key_of(row)] = row
        self.save()

    def save(self, *, last: bool = False) -> None:
        """Write the files; what is no file gets them once, at the end."""
        rows = list(self.rows.values())
        if self._json is not None and (last or not is_stream(self._json)):
            values = {"machine": describe_machine(), "left_out": self._left_out, "rows": rows}
            write_json(self._json, values)
        if self._markdown is not None and (last or not is_stream(self._markdown)):
            with write_atomically(self._markdown) as stream:
                stream.write(markdown(rows).encode())
