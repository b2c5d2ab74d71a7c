"""Rounds, rows, seconds of the head samplers: `python -m csd.tools.measure.head_curve --help`."""

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ...runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...runtime.arrays import Float32
from ...runtime.command.parser import Parser
from ...runtime.decoding.evaluator import Conditions
from ...runtime.decoding.model import RuntimeModel
from ...runtime.errors import OptionError
from ...runtime.head import (
    AffineDraft,
    HeadReport,
    HeadSchedule,
    ParallelSampler,
    SequentialSampler,
    SpeculativeSampler,
)
from ...runtime.session import Session
from ...runtime.stats import Stats
from ..option_values import COUNT
from .frame import Figures, figures_table, measuring_parser, run_script

WINDOWS = (1, 2, 4, 8, 16, 32, 64)
TOLERANCES = (0.1, 0.01, 0.001)


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = measuring_parser(
        "head_curve",
        "Sample the same tokens with every head sampler: sequential evaluations and network rows "
        "a token, seconds, distance to the sequential sample.",
        "--tokens 64 --json head.json",
    )
    parser.add_argument("--model", choices=("target", "draft"), default="target", help="whose head")
    parser.add_argument("--tokens", type=COUNT, default=64, help="tokens, in contexts of all fills")
    parser.add_argument("--batch", type=COUNT, default=1, help="tokens sampled together")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    return run_script(build_parser(), argv, check=_check, measure=_figures)


def _check(session: Session, args: argparse.Namespace) -> None:
    if args.model not in session.bundle.manifest.models:
        raise OptionError(f"bundle {args.bundle} has no {args.model}: give --model target")
    if session.bundle.manifest.calibration is None:
        raise OptionError(
            f"bundle {args.bundle} has no calibration: export without --calibration-tokens 0"
        )


def collect_conditions(
    session: Session, role: str, tokens: int, cfg: float = 1.0, seed: int = 0
) -> Conditions:
    """Return conditions of tokens in random contexts of all fill levels, `[tokens]`.

    A context is a random subset of a generated image's tokens, so nothing depends on a head
    sampler under test.
    """
    model, rng = session.model(role), np.random.default_rng(seed)
    config = model.config
    image = session.generate([int(rng.integers(config.class_num))], seed=seed).tokens
    parts: list[Conditions] = []
    for _ in range(tokens):
        order = rng.permutation(config.seq_len)[None]
        known = int(rng.integers(config.seq_len))
        visible, query = order[:, :known], order[:, known : known + 1]
        given = np.take_along_axis(image, visible[..., None], axis=1)
        label = rng.integers(config.class_num, size=1)
        scale = np.full(1, cfg, dtype=np.float32)
        parts.append(
            model.condition(
                given,
                visible,
                query,
                label,
                scale,
                guided=cfg != 1.0,
                where="a measurement",
                stats=Stats(1),
            )
        )
    guided = [part.unconditional for part in parts if part.unconditional is not None]
    return Conditions(
        np.concatenate([part.z for part in parts]),
        np.concatenate(guided) if guided else None,
        np.concatenate([part.scale for part in parts]),
    )


@dataclass(frozen=True)
class _Row:
    name: str
    rounds: float
    rows: float
    seconds: float
    deviation: float | None


def _figures(session: Session, args: argparse.Namespace) -> Figures:
    draft = session.bundle.head_draft(args.model)
    assert draft is not None
    conditions = collect_conditions(session, args.model, args.tokens, args.cfg, args.seed)
    rows = _measure(session.model(args.model), conditions, draft, args.batch, args.seed)
    table = figures_table(
        f"{session.bundle.manifest.name}, {args.model}, {args.tokens} tokens",
        ("sampler", "rounds", "rows", "ms", "deviation"),
        (
            (
                row.name, f"{row.rounds:.1f}", f"{row.rows:.0f}", f"{1000 * row.seconds:.2f}",
                "" if row.deviation is None else f"{row.deviation:.1e}",
            )
            for row in rows
        ),
    )  # fmt: skip
    return Figures([table], {"results": [vars(row) for row in rows]})


def _measure(
    model: RuntimeModel, conditions: Conditions, draft: AffineDraft, batch: int, seed: int
) -> list[_Row]:
    schedule = model.samplers.schedule(draft.steps)
    rng = np.random.default_rng(seed)
    count, channels = len(conditions), model.config.token_dim
    noise = (
        rng.standard_normal((count, channels), dtype=np.float32),
        rng.standard_normal((count, schedule.steps, channels), dtype=np.float32),
    )
    reference: Float32 | None = None
    rows: list[_Row] = []
    for name, sampler in _samplers(schedule, draft).items():
        tokens: list[Float32] = []
        reports: list[HeadReport] = []
        seconds = 0.0
        for start in range(0, count, batch):
            part = slice(start, start + batch)
            own = conditions[part]
            began = time.perf_counter()
            evaluate = model.evaluator(own, schedule.timesteps, "a measurement")
            given = (noise[0][part], noise[1][part])
            if isinstance(sampler, SpeculativeSampler):
                streams = [np.random.default_rng(seed + start + k) for k in range(len(own))]
                drawn, report = sampler.sample(
                    evaluate, n_tokens=len(own), channels=channels, noise=given, streams=streams
                )
            else:
                drawn, report = sampler.sample(
                    evaluate, n_tokens=len(own), channels=channels, noise=given
                )
            seconds += time.perf_counter() - began
            tokens.append(drawn)
            reports.append(report)
        made = np.concatenate(tokens)
        reference = made if reference is None else reference
        same_sample = isinstance(sampler, ParallelSampler)
        rows.append(
            _Row(
                name,
                float(np.concatenate([report.rounds for report in reports]).mean()),
                sum(report.row_evaluations for report in reports) / count,
                seconds / count,
                float(np.abs(made - reference).mean()) if same_sample else None,
            )
        )
    return rows


def _samplers(
    schedule: HeadSchedule, draft: AffineDraft
) -> dict[str, SequentialSampler | SpeculativeSampler | ParallelSampler]:
    samplers: dict[str, SequentialSampler | SpeculativeSampler | ParallelSampler] = {
        "sequential": SequentialSampler(schedule)
    }
    for window in WINDOWS:
        samplers[f"speculative, frozen, K = {window}"] = SpeculativeSampler(schedule, window)
    for window in WINDOWS:
        samplers[f"speculative, fitted, K = {window}"] = SpeculativeSampler(schedule, window, draft)
    samplers["speculative, fitted, calibrated K"] = SpeculativeSampler(schedule, draft=draft)
    for tolerance in TOLERANCES:
        samplers[f"parallel, J = 0, tolerance {tolerance:g}"] = ParallelSampler(schedule, tolerance)
    for tolerance in TOLERANCES:
        samplers[f"parallel, fitted, tolerance {tolerance:g}"] = ParallelSampler(
            schedule, tolerance, draft=draft
        )
    return samplers
