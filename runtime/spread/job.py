"""How the work of a command is spread: what workers open, and the cluster that has them."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..backends import BackendOptions
from ..bundle.bundle import Bundle
from ..session import Session
from .cluster import connected
from .pool import Pool, share_of, workers_on
from .worker import Order


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
