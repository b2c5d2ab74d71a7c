"""Where the time of `target` goes: `python -m csd.tools.measure.profile --help`."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table

from ...plugins import host
from ...runtime.backends import BindableGraph, Graph
from ...runtime.bundle import Bundle
from ...runtime.cli_support import Parser, run_command
from ...runtime.decoding.loop import decode
from ...runtime.decoding.model import RuntimeModel
from ...runtime.decoding.plan import Canvas, Plan
from ...runtime.errors import OptionError
from ...runtime.files import check_writable, write_json
from ...runtime.noise import SeededNoise
from ...runtime.options import HEADS, GenerateOptions
from ...runtime.stats import Stats
from ..machine import describe_machine

HOST_FUNCTIONS = (
    "csd_speculation_gather", "csd_speculation_settle",
    "csd_iteration_gather", "csd_iteration_settle",
)  # fmt: skip
WARM_UPS = 2


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = Parser(
        prog="python -m csd.tools.measure.profile",
        description="Share of the time of whole images, at batch 1, that each network takes, the "
        "compiled host code of the head sampler, and everything else, which is Python.",
        example="python -m csd.tools.measure.profile bundle --json profile.json",
    )
    parser.add_argument("bundle", type=Path, help="directory that csd-export wrote")
    parser.add_argument("--images", type=int, default=15, help="images, one after the other")
    parser.add_argument("--head", choices=HEADS, default="auto", help="head sampler")
    parser.add_argument("--cfg", type=float, default=1.0, help="guidance scale")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the profile; returns the exit code."""
    return run_command(run, build_parser(), argv)


@dataclass
class Totals:
    """Seconds and calls by name."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])
    calls: dict[str, int] = field(default_factory=dict[str, int])

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return `call`, its time added up under a name."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                took = time.perf_counter() - began
                self.seconds[name] = self.seconds.get(name, 0.0) + took
                self.calls[name] = self.calls.get(name, 0) + 1

        return wrapped


class _TimedGraph:
    """A graph whose calls are timed."""

    def __init__(self, graph: BindableGraph, name: str, totals: Totals) -> None:
        self._graph, self._name, self._totals = graph, name, totals
        self._run = totals.timed(name, graph.run)

    def run(
        self, feeds: Mapping[str, Any], rows: int = 0, keep: Collection[str] = ()
    ) -> dict[str, Any]:
        """See `Graph.run`."""
        return self._run(feeds, rows=rows, keep=keep)

    def bind(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], rows: int = 0
    ) -> Callable[[], None]:
        """See `BindableGraph.bind`."""
        return self._totals.timed(self._name, self._graph.bind(inputs, outputs, rows))


@contextlib.contextmanager
def _timed_host(totals: Totals) -> Generator[None]:
    """Time the compiled host code, where it is built."""
    library: Any = host.library()
    if library is None:
        yield
        return
    plain = {name: getattr(library, name) for name in HOST_FUNCTIONS}
    try:
        for name, function in plain.items():
            setattr(library, name, totals.timed("head walk", function))
        yield
    finally:
        for name, function in plain.items():
            setattr(library, name, function)


def run(args: argparse.Namespace) -> int:
    """Profile the target."""
    if args.images < 1:
        raise OptionError(f"images is {args.images}: give at least 1")
    if args.json is not None:
        check_writable(args.json)
    with Bundle.open(args.bundle).session("onnxruntime", args.threads) as session:
        manifest, model = session.bundle.manifest, session.model("target")
        options = GenerateOptions(mode="target", head=args.head, cfg=args.cfg)
        options = options.resolved(manifest.target, manifest.head_steps)
        for index in range(WARM_UPS):
            session.generate([0], options, first_image=index)
        totals, took = Totals(), list[float]()
        graphs: dict[str, Graph] = {
            name: _TimedGraph(cast("BindableGraph", graph), name, totals)
            for name, graph in model.graphs.items()
        }
        timed = RuntimeModel("target", model.config, graphs, model.calibration)
        with _timed_host(totals):
            for index in range(args.images):
                began = time.perf_counter()
                _decode(timed, options, index)
                took.append(time.perf_counter() - began)
    report = _report(totals, took)
    table = Table(title=f"{manifest.name}, target, head {args.head}, {args.images} images")
    for column in ("part", "ms an image", "calls", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for row in report:
        table.add_row(
            row["part"], f"{row['milliseconds']:.1f}", f"{row['calls']:.1f}", f"{row['share']:.0%}"
        )
    Console(highlight=False).print(table)
    if args.json is not None:
        content = {
            "bundle": manifest.name, "head": args.head, "cfg": args.cfg, "images": args.images,
            "threads": args.threads, "machine": describe_machine(), "parts": report,
        }  # fmt: skip
        write_json(args.json, content)
    return 0


def _decode(model: RuntimeModel, options: GenerateOptions, index: int) -> None:
    """Decode an image, label and seed by its number."""
    config = model.config
    plan, noise = Plan.of(options, config.seq_len), SeededNoise(0)
    images = np.array([index], dtype=np.int64)
    canvas = Canvas.blank(config, noise, images % config.class_num, images)
    stats = Stats(plan.schedule.num_iter)
    decode(canvas, {"target": model}, plan, noise, stats)


def _report(totals: Totals, took: list[float]) -> list[dict[str, Any]]:
    whole, count = sum(took), len(took)
    rest = whole - sum(totals.seconds.values())
    parts = {**totals.seconds, "Python": rest, "whole": whole}
    return [
        {
            "part": name,
            "milliseconds": 1e3 * seconds / count,
            "calls": totals.calls.get(name, 0) / count,
            "share": seconds / whole,
        }
        for name, seconds in parts.items()
    ]


if __name__ == "__main__":
    raise SystemExit(main())
