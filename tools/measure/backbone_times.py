"""Time of the target's backbone in each precision: `python -m csd.tools.measure.backbone_times`."""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ...runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ...runtime.backends.onnx_runtime import PRECISIONS
from ...runtime.command.parser import Parser
from ...runtime.decoding.plan import Canvas, Plan
from ...runtime.noise import SeededNoise
from ...runtime.options import GenerateOptions
from ...runtime.session import Session
from ...runtime.stats import Stats
from ..console import progress_report
from ..option_values import COUNT
from .frame import Figures, check_runs, figures_table, measuring_parser, run_script

_BACKEND = "onnxruntime"
# AR steps that are timed, as shares of all: a typical one, and those halfway to both ends.
_PLACES = (0.25, 0.5, 0.75)


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = measuring_parser(
        "backbone_times",
        "Time the target's backbone at one image, in every precision that a bundle has for the "
        "CPU: calls take turns, and the least time of each counts. CPU time repeats better than "
        "the clock's where other programs run.",
        "--cfg 3 --threads 1 --rounds 40 --json backbone.json",
    )
    parser.add_argument("--rounds", type=COUNT, default=20, help="calls of each")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement; returns the exit code."""
    return run_script(build_parser(), argv, check=_check, measure=_figures, backend=_BACKEND)


def _options(args: argparse.Namespace) -> GenerateOptions:
    return GenerateOptions(mode="target", cfg=args.cfg, cfg_schedule="constant")


def _check(session: Session, args: argparse.Namespace) -> None:
    check_runs(session, _options(args))


@dataclass
class _Least:
    """The least that calls took so far, in seconds."""

    cpu: list[float] = field(default_factory=list[float])
    wall: list[float] = field(default_factory=list[float])

    def time(self, call: Callable[[], object]) -> None:
        """Call, and note what it took."""
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)


def _figures(session: Session, args: argparse.Namespace) -> Figures:
    bundle = session.bundle
    precisions = [name for name in PRECISIONS if name in bundle.manifest.precisions]
    options = _options(args).resolved(bundle.manifest.target, bundle.manifest.head_steps)
    plan = Plan.of(options, bundle.manifest.target.seq_len)
    steps = sorted({int(place * plan.num_iter) for place in _PLACES})
    taken = {(name, step): _Least() for step in steps for name in precisions}
    progress = progress_report()
    with ExitStack() as stack:
        calls: dict[tuple[str, int], Callable[[], object]] = {}
        for name in precisions:
            each = stack.enter_context(bundle.session(_BACKEND, args.threads, precision=name))
            calls |= {(name, step): _call(each, plan, step, args.seed) for step in steps}
        for call in calls.values():  # warms up
            call()
        for number in range(args.rounds):
            progress(f"round {number + 1}/{args.rounds}")
            for key, least in taken.items():
                least.time(calls[key])
    rows = [_row(plan, name, step, taken, precisions[0]) for name, step in taken]
    table = figures_table(
        f"{bundle.manifest.name}, the target's backbone, {args.threads} threads, least of "
        f"{args.rounds}",
        (
            "precision",
            "AR step",
            "batch",
            "known",
            "predicted",
            "CPU ms",
            "ms",
            f"{precisions[0]} / it",
        ),
        map(_shown, rows),
    )
    return Figures([table], {"backbone": rows})


def _call(session: Session, plan: Plan, step: int, seed: int) -> Callable[[], object]:
    """The backbone's call of one AR step of an image; guided, it has both branches."""
    model, noise, image = session.model("target"), SeededNoise(seed), np.zeros(1, dtype=np.int64)
    canvas = Canvas.blank(model.config, noise, image, image)
    visible = canvas.known(plan.schedule, step)
    query = canvas.positions(plan.schedule, range(step, step + 1))
    shape = 1, visible.shape[1], model.config.token_dim
    tokens = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return partial(
        model.condition, tokens, visible, query, canvas.labels,
        np.ones(query.size, dtype=np.float32), guided=plan.guided(range(step, step + 1)),
        where=f"AR step {step}", stats=Stats(plan.num_iter),
    )  # fmt: skip


def _row(
    plan: Plan, name: str, step: int, taken: Mapping[tuple[str, int], _Least], first: str
) -> dict[str, Any]:
    least, other = taken[name, step], taken[first, step]
    return {
        "precision": name,
        "step": step,
        "batch": 2 if plan.guided(range(step, step + 1)) else 1,
        "known": plan.schedule.seq_len - plan.schedule.bounds[step][1],
        "predicted": plan.schedule.sizes[step],
        "cpu_seconds": min(least.cpu),
        "seconds": min(least.wall),
        "cpu_ratio": min(other.cpu) / min(least.cpu),
    }


def _shown(row: Mapping[str, Any]) -> list[str]:
    return [
        row["precision"], str(row["step"]), str(row["batch"]), str(row["known"]),
        str(row["predicted"]),
        f"{1e3 * row['cpu_seconds']:.1f}", f"{1e3 * row['seconds']:.1f}",
        f"{row['cpu_ratio']:.2f}",
    ]  # fmt: skip
