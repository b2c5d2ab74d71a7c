"""`csd-eval tune`: the fastest setting that is still as good, as a preset of the bundle."""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack

from ....runtime.bundle import schema
from ....runtime.bundle.manifest import Manifest, local_graphs
from ....runtime.bundle.manifest_checks import PRECISIONS
from ....runtime.bundle.presets import PRESET_NAME, Evidence, Preset
from ....runtime.bundle.signature import signature_warning
from ....runtime.cli import (
    add_bundle_argument,
    add_decoding_arguments,
    check_effects,
    decoding_options,
    open_bundle,
    open_session,
)
from ....runtime.command.files import check_outputs, write_json
from ....runtime.command.line.logs import logger
from ....runtime.command.parser import Parser, parse_list, run_command
from ....runtime.command.text import one_line, plain
from ....runtime.effects import OF_SEARCH
from ....runtime.errors import OptionError
from ....runtime.images import load_pillow
from ....runtime.options import HEADS, MODES, SOLVER
from ....runtime.session import Session
from ...console import progress_report, results_console
from ...machine import describe_machine
from ...option_values import SEED, whole_number_reader
from ..images.generate import settings_of
from ..images.real import find_real
from ..options import (
    SIGNIFICANCE,
    add_database_argument,
    add_features_argument,
    add_json_argument,
    add_quiet_argument,
    add_real_arguments,
    check_compared,
    need_features,
    progress_of,
    share,
)
from ..store.database import check_database, open_database
from ..tune.bench import SessionBench
from ..tune.candidates import Candidate, candidates, name_of
from ..tune.presets import check_presets, write_preset
from ..tune.search import FIRST_IMAGES, TRIES, Found, search

_LOG = logger(__name__)
FOUND, NOTHING, NO_TIME = 0, 1, 3
_BUDGET = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(s|min|h)")
_UNITS = {"s": 1, "min": 60, "h": 3600}
_DEFAULT = "default"


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="csd-eval tune",
        description="Search the fastest setting whose images are not worse than the target's by "
        "more than a margin, and write it into the bundle as a preset, with the evidence: "
        "csd-generate BUNDLE --preset tuned decodes with it. Decoding options that are given are "
        "the target's, whose quality is the standard. Exit code 0: a preset was written; 1: "
        "nothing faster is as good; 3: the budget was spent before, and the same command goes on.",
        example="csd-eval tune bundle --within 2% --budget 30min --cfg 3",
        lower="--batch",
    )
    add_bundle_argument(parser)
    what = parser.group("what is searched")
    what.add_argument(
        "--within", type=share, default="2%", metavar="SHARE", help="margin, as 2%% or 0.02"
    )
    what.add_argument(
        "--budget", type=_budget, metavar="TIME", help="as 90s, 30min or 2h (default: no end)"
    )
    what.add_argument("--name", type=_preset_name, default="tuned", help="of the preset")
    what.add_argument(
        "--modes", default=",".join(MODES), help="modes to try, those that the bundle has"
    )
    what.add_argument(
        "--precisions",
        default=_DEFAULT,
        help=f"precisions to try, of {', '.join((_DEFAULT, *PRECISIONS))}",
    )
    what.add_argument(
        "--images", type=whole_number_reader(FIRST_IMAGES, 100_000), default=1024,
        help="images of each setting in the last round, and in the test",
    )  # fmt: skip
    what.add_argument(
        "--batch", type=whole_number_reader(1, 4096), default=16, help="images at once"
    )
    what.add_argument("--seed", type=SEED, default=0, help="of the rounds; the test's is one more")
    what.add_argument(
        "--error", type=SIGNIFICANCE, default=0.05,
        help="chance that a preset is written that is worse by more than the margin",
    )  # fmt: skip
    add_features_argument(what)
    add_real_arguments(what)
    parser.group("decoding")
    parser.group("head").add_argument("--head", choices=HEADS, default="auto", help="the target's")
    output = parser.group("output")
    add_database_argument(output)
    add_json_argument(output, "preset and its evidence")
    add_quiet_argument(output)
    add_decoding_arguments(parser, refresh=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Search, and write what was found."""
    began = time.monotonic()
    options = decoding_options(args, mode="target", head=args.head)
    inputs = {"the bundle": args.bundle}
    check_compared(args)
    check_database(args.db, inputs)
    check_outputs({"--db": args.db, "--json": args.json}, inputs)
    bundle = open_bundle(args)
    check_presets(bundle, args.name)
    full = options.resolved(bundle.manifest.target, bundle.manifest.head_steps)
    baseline = Candidate(name_of(full, args.precision), full, args.precision)
    settings = _settings(args, bundle.manifest, baseline)
    _LOG.info("%d settings beside the target's own", len(settings))
    _LOG.debug("settings: %s", ", ".join(one.name for one in settings))
    check_effects(args, [full, *(one.options for one in settings)], OF_SEARCH)
    load_pillow()
    zoo = bundle.manifest.zoo
    features, real = need_features(args.features, zoo, args.threads), find_real(args.real, zoo)
    report = progress_report()
    with ExitStack() as opened:
        session = opened.enter_context(open_session(bundle, args))
        session.check([0], full)
        settings_of(session, full, seed=args.seed, batch=args.batch, precision=args.precision)
        sessions: dict[str | None, Session] = {args.precision: session}
        for precision in {one.precision for one in settings} - {args.precision}:
            given = argparse.Namespace(**{**vars(args), "precision": precision})
            sessions[precision] = opened.enter_context(open_session(bundle, given))
        connection = opened.enter_context(open_database(args.db, create=True))
        step = opened.enter_context(progress_of(args.quiet)("tune"))
        bench = SessionBench(
            connection, sessions, baseline, args.name, args.seed, args.batch, features,
            real, args.real_images, step, None if args.budget is None else began + args.budget,
        )  # fmt: skip
        found = search(
            bench, settings, margin=args.within, error=args.error, most=args.images,
            report=(lambda _: None) if args.quiet else report,
        )  # fmt: skip
        backend = session.backend.name
    return _finish(args, found, bench.metric, backend)


def _settings(args: argparse.Namespace, manifest: Manifest, baseline: Candidate) -> list[Candidate]:
    wanted = parse_list("modes", args.modes, str, known=MODES)
    solved = baseline.options.head == SOLVER
    modes = [
        mode for mode in wanted
        if (mode == "target" or "draft" in manifest.models) and not (mode == "csd" and solved)
    ]  # fmt: skip
    known = (_DEFAULT, *PRECISIONS)
    given = parse_list("precisions", args.precisions, str, known=known)
    precisions = [args.precision if name == _DEFAULT else name for name in given]
    found = candidates(
        baseline.options, modes=modes, precisions=list(dict.fromkeys(precisions)),
        max_gamma=manifest.max_gamma, head=not solved, local=bool(local_graphs(manifest)),
    )  # fmt: skip
    found = [one for one in found if (one.options, one.precision) !=
             (baseline.options, baseline.precision)]  # fmt: skip
    if not found:
        raise OptionError("there is nothing to choose among: give more --modes")
    return found


def _finish(args: argparse.Namespace, found: Found, metric: str, backend: str) -> int:
    """Write the preset and what is to be said."""
    preset = _preset(args, found, metric, backend)
    if preset is not None:
        write_preset(args.bundle, args.name, preset)
        code, said = FOUND, _praise(args, found, preset)
    elif found.complete:
        code, said = NOTHING, (
            f"none of {found.looked_at} settings was shown to be faster than the target and within "
            f"{args.within:.2%} of it: nothing was written"
        )  # fmt: skip
    else:
        code, said = NO_TIME, (
            "the budget was spent before a setting was tested: nothing was written; the images "
            f"are kept in {args.db}, and the same command goes on"
        )  # fmt: skip
    if args.json is not None:
        write_json(args.json, {
            "exit_code": code, "verdict": said, "looked_at": found.looked_at,
            "name": None if preset is None else args.name,
            "setting": None if found.candidate is None or preset is None else found.candidate.name,
            "preset": None if preset is None else dataclasses.asdict(preset),
        })  # fmt: skip
    console = results_console(args.json)
    console.print(said, soft_wrap=True)
    if preset is not None and (warning := signature_warning(args.bundle)):
        console.print(f"warning: {warning}", soft_wrap=True)
    return code


def _preset(args: argparse.Namespace, found: Found, metric: str, backend: str) -> Preset | None:
    """The setting that was found, with its evidence; None where there is none."""
    if found.candidate is None or found.measured is None:
        return None
    measured, machine = found.measured, describe_machine()
    evidence = Evidence(
        metric=plain(metric, 200), images=measured.images, margin=args.within,
        drop=measured.drop.value, most=measured.above(args.error / TRIES), error=args.error,
        seconds=measured.seconds, baseline_seconds=measured.baseline_seconds, backend=backend,
        machine=plain(machine["processor"], 200) or "unknown", date=machine["date"],
    )  # fmt: skip
    return Preset(found.candidate.options, found.candidate.precision, evidence)


def _praise(args: argparse.Namespace, found: Found, preset: Preset) -> str:
    assert found.candidate is not None
    evidence = preset.evidence
    return one_line(
        f"preset {args.name}: {found.candidate.name}, {evidence.seconds:.3f} s an image in place "
        f"of {evidence.baseline_seconds:.3f}, drop {evidence.drop:+.2%} (at most "
        f"{evidence.most:+.2%}) on {evidence.images} images: csd-generate {args.bundle} --preset "
        f"{args.name}"
    )


def _budget(text: str) -> float:
    match = _BUDGET.fullmatch(text.strip()) if text.isascii() and len(text) < 40 else None
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: give one as 90s, 30min or 2h")
    return seconds


def _preset_name(text: str) -> str:
    try:
        return PRESET_NAME(text, "name")
    except schema.FieldError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
