"""`csd-eval run`: generate and store the images of one setting."""

from __future__ import annotations

import argparse
import dataclasses
import sqlite3
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ....runtime.cli import (
    add_bundle_argument,
    add_decoding_arguments,
    add_setting_arguments,
    check_effects,
    open_bundle,
    open_session,
    setting_of,
    with_preset,
)
from ....runtime.command.files import check_outputs, write_json
from ....runtime.command.parser import Parser, report_stream, run_command
from ....runtime.command.text import one_line
from ....runtime.errors import OptionError
from ....runtime.images import load_pillow
from ....runtime.noise import SeededNoise
from ....runtime.options import GenerateOptions
from ....runtime.session import Session
from ....runtime.spread.arguments import add_spread_arguments, check_spread
from ....runtime.spread.job import Spread
from ....runtime.spread.sessions import OneSession, Sessions
from ...option_values import COUNT, whole_number_reader
from ..images.generate import Features, about_run, make_images, settings_of
from ..images.shards import Shard, read_shard
from ..options import (
    add_database_argument,
    add_features_argument,
    add_json_argument,
    add_quiet_argument,
    find_features,
    progress_of,
    run_name,
)
from ..store.database import check_database, open_database
from ..store.runs import Run, Settings, add_run, batches_of, numbers_of

# What the target is measured at beside a run, as shares of its AR steps and head steps.
LADDER = (2, 4)


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="csd-eval run",
        description="Generate images of all classes in turn and store them with their features, "
        "options, statistics and versions. A run that ended early goes on where it stopped, with "
        "the same images; with a larger --images it grows.",
        example="csd-eval run bundle --name csd-8 --images 5000 --batch 16 --mode csd --gamma 8",
        lower="--batch",
    )
    add_bundle_argument(parser)
    what = parser.group("what to generate")
    what.add_argument("--name", type=run_name, required=True, help="of the run")
    what.add_argument("--images", type=COUNT, default=1000, help="images in all")
    what.add_argument(
        "--batch", type=whole_number_reader(1, 4096), default=16, help="images at once"
    )
    what.add_argument("--seed", type=int, default=0, help="runs of one seed share their noise")
    add_setting_arguments(parser, what)
    what.add_argument(
        "--ladder",
        action="store_true",
        help="also run the target at a half and a quarter of its AR steps and of its head steps, "
        "as NAME/ar-N and NAME/head-N: what a faster setting has to beat (default: off)",
    )
    what.add_argument(
        "--shard",
        type=read_shard,
        default=Shard(),
        metavar="I/N",
        help="make every n-th batch only, from the i-th on; csd-eval merge joins the databases",
    )
    output = parser.group("output")
    add_database_argument(output)
    add_features_argument(output)
    add_json_argument(output, "counts and seconds")
    add_quiet_argument(output)
    add_decoding_arguments(parser)
    add_spread_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Make what was asked for; what cannot be made is refused before the database is."""
    options = setting_of(args)
    check_spread(args)
    SeededNoise(args.seed)
    inputs = {"the bundle": args.bundle}
    check_database(args.db, inputs)
    check_outputs({"--db": args.db, "--json": args.json}, inputs)
    bundle = open_bundle(args)
    args, options = with_preset(bundle, args, options)
    options = options.resolved(bundle.manifest.target, bundle.manifest.head_steps)
    beside = ladder(options).values() if args.ladder else ()
    check_effects(args, [options, *beside])
    load_pillow()
    features = find_features(args.features, bundle.manifest.zoo, args.threads)
    with ExitStack() as stack:
        with ExitStack() as here:
            session = here.enter_context(open_session(bundle, args))
            about = about_run(session)
            settings = {
                name: settings_of(
                    session, chosen, seed=args.seed, batch=args.batch, precision=args.precision
                )
                for name, chosen in _plan(session, args, options).items()
            }
            sessions: Sessions = OneSession(session)
            spread = None if args.ray is None else Spread.of(bundle, session, args)
            if spread is None:  # else what the session took is the workers'
                stack.push(here.pop_all())
        if spread is not None:
            most = -(-args.images // args.batch)
            sessions, about["threads"] = stack.enter_context(spread.workers(most))
        report = _made(args, sessions, settings, about, features)
    if args.json is not None:
        write_json(args.json, {"database": str(args.db), "runs": report})
    return 0


def _made(
    args: argparse.Namespace,
    sessions: Sessions,
    settings: dict[str, Settings],
    about: dict[str, Any],
    features: Sequence[Features],
) -> list[dict[str, Any]]:
    """Make and store the images of all runs; returns what there is of each, as JSON values."""
    report: list[dict[str, Any]] = []
    with open_database(args.db, create=True) as connection:
        runs = [add_run(connection, name, its, about) for name, its in settings.items()]
        for each in runs:
            with progress_of(args.quiet)(each.settings.bundle) as step:
                made = make_images(
                    connection, sessions, each, args.images, shard=args.shard, features=features,
                    step=step,
                )  # fmt: skip
            report.append(_values(connection, each, made))
            print(one_line(_summary(report[-1], args.db)), file=report_stream(args.json))
    return report


def _plan(
    session: Session, args: argparse.Namespace, options: GenerateOptions
) -> dict[str, GenerateOptions]:
    """Options by the name of their run, all of them checked."""

    def checked(chosen: GenerateOptions) -> GenerateOptions:
        session.check([0], chosen)
        return chosen

    plan = {args.name: checked(options)}
    if args.ladder:
        plan |= {f"{args.name}/{k}": checked(v) for k, v in ladder(options).items()}
        if too_long := [name for name in plan if len(name) > 80]:
            raise OptionError(f"--ladder makes the name {too_long[0]}: give a shorter --name")
    return plan


def ladder(options: GenerateOptions) -> dict[str, GenerateOptions]:
    """The target at fewer AR steps and at fewer head steps, by name.

    Args:
        options: with all defaults filled in; all but the mode and the steps are
            kept, and every step is full.
    """
    target = dataclasses.replace(options, mode="target", refresh=1)
    assert target.num_iter is not None
    steps = {f"ar-{n}": dataclasses.replace(target, num_iter=n)
             for n in _fewer(target.num_iter)}  # fmt: skip
    if isinstance(target.head_steps, int):
        steps |= {f"head-{n}": dataclasses.replace(target, head_steps=n)
                  for n in _fewer(target.head_steps)}  # fmt: skip
    return steps


def _fewer(steps: int) -> list[int]:
    return sorted({steps // part for part in LADDER if steps // part >= 1 and steps > 1})


def _values(connection: sqlite3.Connection, run: Run, made: int) -> dict[str, Any]:
    """What there is of a run, as JSON values."""
    batches, stored = batches_of(connection, run), len(numbers_of(connection, run))
    seconds = sum(b.seconds for b in batches) / max(1, sum(b.count for b in batches))
    return {
        "name": run.name, "images": stored, "made": made, "seconds_per_image": seconds,
        "options": run.settings.options,
    }  # fmt: skip


def _summary(values: dict[str, Any], path: Path) -> str:
    return (
        f"{values['name']}: {values['images']} images, {values['made']} of them now, "
        f"{values['seconds_per_image']:.3f} s an image: {path}"
    )
