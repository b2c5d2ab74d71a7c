"""`csd-eval certify`: is the speculative head exact on this bundle, backend and machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ....runtime.cli import (
    add_bundle_argument,
    add_machine_arguments,
    open_bundle,
    open_session,
)
from ....runtime.command.files import check_outputs, write_json
from ....runtime.command.parser import Parser, run_command
from ....runtime.session import Session
from ...console import results_console
from ...machine import describe_machine
from ...option_values import GUIDANCE, SEED, whole_number_reader
from ..exactness import Certificate, Finding, certify
from ..options import SIGNIFICANCE, add_json_argument, add_quiet_argument, progress_of

EXACT, DIFFERENT, TOO_FEW = 0, 1, 3
_SAID = {
    EXACT: "EXACT: no difference seen, and the planted bug was found",
    DIFFERENT: "NOT EXACT: tokens of the speculative head have another law",
    TOO_FEW: "NO CERTIFICATE: the planted bug was not found, give more --tokens",
}


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="csd-eval certify",
        description="Test that the speculative head draws from the law of the sequential one, on "
        "this bundle, backend and machine: tokens in fixed contexts, two-sample tests, corrected "
        "for their number, and a planted bug that they must find. Exit code 0: exact; 1: not; 3: "
        "too few tokens to find the bug.",
        example="csd-eval certify bundle --backend tensorrt --json certificate.json",
        lower="--tokens",
    )
    add_bundle_argument(parser)
    what = parser.group("what is tested")
    what.add_argument(
        "--contexts",
        type=whole_number_reader(1, 64),
        default=4,
        help="fixed contexts of each model",
    )
    what.add_argument(
        "--tokens", type=whole_number_reader(20, 1000), default=500,
        help="tokens of each sampler in each context",
    )  # fmt: skip
    what.add_argument(
        "--level", type=SIGNIFICANCE, default=0.01, help="chance of a false alarm in all tests"
    )
    what.add_argument("--cfg", type=GUIDANCE, default=1.0, help="guidance scale, 1 = none")
    what.add_argument("--seed", type=SEED, default=0, help="of contexts, noise and permutations")
    output = parser.group("output")
    add_json_argument(output, "certificate")
    add_quiet_argument(output)
    add_machine_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Finding, print, and save the certificate."""
    check_outputs({"--json": args.json}, {"the bundle": args.bundle})
    bundle = open_bundle(args)
    with open_session(bundle, args) as session:
        session.keep_backend()
        with progress_of(args.quiet)("certify") as step:
            found = certify(
                session, contexts=args.contexts, tokens=args.tokens, level=args.level,
                cfg=args.cfg, seed=args.seed, step=step,
            )  # fmt: skip
        code = certificate_code(found)
        if args.json is not None:
            write_json(args.json, _values(args, session, found, code))
    console = results_console(args.json)
    console.print(_table(found, session.backend.name))
    console.print(_SAID[code], soft_wrap=True)
    return code


def certificate_code(found: Certificate) -> int:
    """The exit code of a certificate: a difference that was seen is one, bug or no bug."""
    if not found.exact:
        return DIFFERENT
    return EXACT if found.sharp else TOO_FEW


def _table(found: Certificate, backend: str) -> Table:
    table = Table(
        title=f"{backend}, {found.steps} head steps, {len(found.tests)} tests at level "
        f"{found.level:g}",
        caption="smallest p-values, adjusted; a difference is below the level",
    )
    for column in ("head", "evaluations a token", "speculative", "planted bug"):
        table.add_column(column, justify="left" if column == "head" else "right", no_wrap=True)
    for role, rounds in found.rounds.items():
        smallest = (min(t.adjusted for t in tests if t.role == role)
                    for tests in (found.tests, found.control))  # fmt: skip
        table.add_row(role, f"{rounds:.1f} of {found.steps}", *(f"{p:.4f}" for p in smallest))
    return table


def _values(
    args: argparse.Namespace, session: Session, found: Certificate, code: int
) -> dict[str, Any]:
    def rows(tests: Sequence[Finding]) -> list[dict[str, Any]]:
        return [dict(vars(test)) for test in tests]

    return {
        "bundle": session.bundle.identity(),
        "exit_code": code, "verdict": _SAID[code], "level": found.level,
        "contexts": args.contexts, "tokens": args.tokens, "cfg": args.cfg, "seed": args.seed,
        "head_steps": found.steps, "evaluations_per_token": found.rounds,
        "tests": rows(found.tests), "planted_bug": rows(found.control),
        "backend": {"name": session.backend.name, **session.versions()},
        "threads": session.origin.threads, "host_library": session.origin.host_library is not None,
        "machine": describe_machine(),
    }  # fmt: skip
