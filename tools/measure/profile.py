"""Where the time of `target` goes: `python -m csd.tools.measure.profile --help`."""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ...runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
import contextlib
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from ...plugins import host
from ...runtime.backends import BindableGraph, Graph
from ...runtime.command.parser import Parser
from ...runtime.decoding.loop import decode
from ...runtime.decoding.model import RuntimeModel
from ...runtime.decoding.plan import Canvas, Plan
from ...runtime.noise import SeededNoise
from ...runtime.options import HEADS, GenerateOptions
from ...runtime.session import Session
from ...runtime.stats import Stats
from ..option_values import COUNT
from .frame import Figures, check_runs, figures_table, measuring_parser, run_script

HOST_FUNCTIONS = (
    "csd_speculation_gather", "csd_speculation_settle",
    "csd_iteration_gather", "csd_iteration_settle",
)  # fmt: skip
WARM_UPS = 2


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = measuring_parser(
        "profile",
        "Share of the time of whole images, at batch 1, that each network takes, the compiled host "
        "code of the head sampler, and everything else, which is Python.",
        "--json profile.json",
    )
    parser.add_argument("--images", type=COUNT, default=15, help="images, one after the other")
    parser.add_argument("--head", choices=HEADS, default="auto", help="head sampler")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the profile; returns the exit code."""
    # Calls of a device return before they are done, so only a host's can be timed one by one.
    return run_script(build_parser(), argv, check=_check, measure=_figures, backend="onnxruntime")


def _options(args: argparse.Namespace) -> GenerateOptions:
    return GenerateOptions(mode="target", head=args.head, cfg=args.cfg)


def _check(session: Session, args: argparse.Namespace) -> None:
    check_runs(session, _options(args))


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

    def dtype(self, name: str) -> np.dtype[Any]:
        """See `BindableGraph.dtype`."""
        return self._graph.dtype(name)

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


def _figures(session: Session, args: argparse.Namespace) -> Figures:
    manifest, model = session.bundle.manifest, session.model("target")
    options = _options(args).resolved(manifest.target, manifest.head_steps)
    for index in range(WARM_UPS):
        session.generate([0], options, seed=args.seed, first_image=index)
    totals, took = Totals(), list[float]()
    graphs: dict[str, Graph] = {
        name: _TimedGraph(cast("BindableGraph", graph), name, totals)
        for name, graph in model.graphs.items()
    }
    timed = RuntimeModel("target", model.config, graphs, model.calibration)
    with _timed_host(totals):
        for index in range(args.images):
            began = time.perf_counter()
            _decode(timed, options, args.seed, index)
            took.append(time.perf_counter() - began)
    parts = _parts(totals, took)
    table = figures_table(
        f"{manifest.name}, target, head {args.head}, {args.images} images",
        ("part", "ms an image", "calls", "share"),
        (
            (
                row["part"], f"{row['milliseconds']:.1f}", f"{row['calls']:.1f}",
                f"{row['share']:.0%}",
            )
            for row in parts
        ),
    )  # fmt: skip
    return Figures([table], {"parts": parts})


def _decode(model: RuntimeModel, options: GenerateOptions, seed: int, index: int) -> None:
    """Decode the image of a number, which says its label too."""
    config = model.config
    plan, noise = Plan.of(options, config.seq_len), SeededNoise(seed)
    images = np.array([index], dtype=np.int64)
    canvas = Canvas.blank(config, noise, images % config.class_num, images)
    stats = Stats(plan.schedule.num_iter)
    for _ in decode(canvas, {"target": model}, plan, noise, stats):
        pass


def _parts(totals: Totals, took: list[float]) -> list[dict[str, Any]]:
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
