"""The options of commands that spread their work, which cost a run without them nothing."""

from __future__ import annotations

import argparse

from ..command.line.effects import Effect, refuse_without_effect
from ..command.parser import Parser
from ..errors import OptionError

# In place of an address: a cluster on this machine, for this command alone.
LOCAL = "local"
MOST_WORKERS = 4096


def add_spread_arguments(parser: Parser) -> None:
    """Add the options that say over which machines work is spread."""
    machine = parser.group("machine")
    machine.add_argument(
        "--ray",
        metavar=f"ADDRESS|{LOCAL}",
        help="spread the work over the Ray cluster whose head is at host:port, or over the cores "
        f"of this machine ({LOCAL}); the bundle lies at the same path on each node (default: one "
        "process)",
    )
    machine.add_argument(
        "--ray-workers",
        type=int,
        metavar="N",
        help="processes of --ray (default: one for each GPU, or for each --threads cores)",
    )


def check_spread(args: argparse.Namespace) -> None:
    """Check the options of `add_spread_arguments`, before any work.

    Raises:
        CsdError: Ray is not installed.
        OptionError: a value is out of range or has no effect.
    """
    refuse_without_effect(args.given, _SPREAD, [args.ray])
    if args.ray_workers is not None and not 1 <= args.ray_workers <= MOST_WORKERS:
        raise OptionError(f"ray-workers is {args.ray_workers}: give 1 to {MOST_WORKERS}")
    if args.ray is not None:
        from .cluster import need_ray

        need_ray(args.ray)


_SPREAD: tuple[Effect[str | None], ...] = (
    Effect(
        ("ray_workers",), lambda ray: ray is not None,
        "only --ray has workers", f"give --ray {LOCAL}",
    ),
)  # fmt: skip
