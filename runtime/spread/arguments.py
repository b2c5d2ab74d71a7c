"""The options of commands that spread their work, and what they lead to."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..backends import BackendOptions
from ..bundle.bundle import Bundle
from ..command.line.effects import Effect, refuse_without_effect
from ..command.parser import Parser
from ..errors import OptionError
from ..session import Session
from .cluster import LOCAL, connected, need_ray
from .pool import Pool, share_of, workers_on
from .worker import Order

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
        need_ray(args.ray)


_SPREAD: tuple[Effect[str | None], ...] = (
    Effect(
        ("ray_workers",), lambda ray: ray is not None,
        "only --ray has workers", f"give --ray {LOCAL}",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """How work is to be spread: what workers open, and what they are asked to be like.

    Attributes:
        order: what each opens.
        address: of the cluster.
        asked: workers that were asked for, or None.
        threads: of a worker that were asked for, or None.
    """

    order: Order
    address: str
    asked: int | None
    threads: int | None

    @classmethod
    def of(cls, bundle: Bundle, session: Session, args: argparse.Namespace) -> Spread:
        """How the command line asks for it, with the backend that a session here has taken.

        Args:
            bundle: that is open.
            session: of it, whose versions the workers must have.
            args: parsed by `add_machine_arguments` and `add_spread_arguments`.
        """
        options = BackendOptions(
            session.backend.name, args.threads, args.precision, args.memory_limit,
            not args.no_cuda_graph,
        )  # fmt: skip
        # Who signed the manifest was asked here, and a worker's is the same; its files are hashed.
        policy = args.verify_files if args.require_signature is None else "always"
        return cls(
            order=Order(
                Path(bundle.path).resolve(), bundle.identity()["manifest_sha256"], policy, options,
                session.versions(),
            ),
            address=args.ray,
            asked=args.ray_workers,
            threads=args.threads if "threads" in args.given else None,
        )  # fmt: skip

    @contextmanager
    def workers(self, most: int) -> Generator[tuple[Pool, int]]:
        """Have the workers; yields them, and the threads of each.

        Args:
            most: pieces of the job.

        Raises:
            CsdError: the cluster cannot be reached, or has no GPU where one is needed.
        """
        with connected(self.address) as ray:
            there = ray.cluster_resources()
            share = share_of(
                there.get("CPU", 1), there.get("GPU", 0), workers=self.asked, most=most,
                on_gpu=self.order.options.backend != "onnxruntime", threads=self.threads,
            )  # fmt: skip
            options = replace(self.order.options, threads=share.threads)
            with workers_on(ray, replace(self.order, options=options), share) as pool:
                yield pool, share.threads
