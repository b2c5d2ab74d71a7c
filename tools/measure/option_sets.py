"""Tokens of many option sets, to compare versions: `python -m csd.tools.measure.option_sets`."""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ...runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...runtime.command.parser import Parser
from ...runtime.errors import CsdError
from ...runtime.options import CHAIN_HEADS, GenerateOptions
from ...runtime.session import Session
from ..quality import balanced_labels
from .frame import Figures, check_runs, figures_table, measuring_parser, run_script

# Of every head: images at once, and what differs from the first set.
_SETS: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {"mode": "target"}),
    (3, {"mode": "target", "cfg": 3.0}),
    (1, {"mode": "draft"}),
    (1, {}),
    (3, {"cfg": 3.0, "gamma": 4}),
    (2, {"verify": "prefix", "gamma": 4}),
    (1, {"acceptance": "relaxed", "gamma": 16}),
    (1, {"verify": "prefix", "gamma": 4, "cfg": 3.0, "cfg_schedule": "constant",
         "acceptance": "relaxed"}),
    (1, {"inner_temperature": 1.0, "num_iter": 16, "temperature": 0.9}),
    (1, {"mode": "target", "head_steps": 50, "num_iter": 12}),
    (9, {"head_steps": (50, 5), "num_iter": 12, "gamma": 3}),
    (1, {"prefill": 0.0, "gamma": 32, "head_tolerance": 0.1}),
    (1, {"prefill": 1.0, "num_iter": 8}),
)  # fmt: skip


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = measuring_parser(
        "option_sets",
        "Generate with every head in many option sets and print a digest of the tokens of each. "
        "Two versions of csd that decode alike print the same on one machine with one thread.",
        "--threads 1 --json after.json --against before.json",
        scale=False,
    )
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="compare with what --json saved before"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Digest the tokens of all option sets; returns the exit code."""
    return run_script(build_parser(), argv, check=_check, measure=_figures)


def option_sets() -> list[tuple[int, GenerateOptions]]:
    """Images at once and options of every set."""
    sets: list[tuple[int, GenerateOptions]] = []
    for head in CHAIN_HEADS:
        for batch, changes in _SETS:
            values: dict[str, Any] = {"mode": "csd", "head": head, **changes}
            sets.append((batch, GenerateOptions(**values)))
    return sets


def _check(session: Session, args: argparse.Namespace) -> None:
    check_runs(session, *(options for _, options in option_sets()))
    if args.against is not None:
        _digests(args.against)


def _digests(path: Path) -> list[str]:
    """Digests that an earlier run saved.

    Raises:
        CsdError: the file is none of this script's.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["option_sets"]
        return [str(row["tokens_sha256"]) for row in rows]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CsdError(
            f"cannot compare with {path} ({type(error).__name__}): give a file that --json of this "
            "script saved"
        ) from error


def _figures(session: Session, args: argparse.Namespace) -> Figures:
    before = None if args.against is None else _digests(args.against)
    rows: list[dict[str, Any]] = []
    for place, (batch, options) in enumerate(option_sets()):
        labels = balanced_labels(batch, session.bundle.manifest.target.class_num)
        made = session.generate(labels, options, seed=args.seed)
        digest = hashlib.sha256(made.tokens.tobytes()).hexdigest()
        row: dict[str, Any] = {
            "batch": batch, "options": made.options.to_dict(), "tokens_sha256": digest,
            "accepted": made.stats.accepted, "drafted": made.stats.drafted,
        }  # fmt: skip
        if before is not None:
            row["same"] = place < len(before) and before[place] == digest
        rows.append(row)
    table = figures_table(
        f"tokens of {len(rows)} option sets, seed {args.seed}",
        ("mode", "head", "verify", "acceptance", "cfg", "batch", "gamma", "tokens", "as before"),
        (_shown(row) for row in rows),
    )
    return Figures([table], {"option_sets": rows})


def _shown(row: dict[str, Any]) -> list[str]:
    options = row["options"]
    csd = options["mode"] == "csd"
    same = {True: "yes", False: "NO", None: ""}[row.get("same")]
    return [
        options["mode"], options["head"], options["verify"] if csd else "",
        options["acceptance"] if csd else "", f"{options['cfg']:g}", str(row["batch"]),
        str(options["gamma"]) if csd else "", row["tokens_sha256"][:12], same,
    ]  # fmt: skip
