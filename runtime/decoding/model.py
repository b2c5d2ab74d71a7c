"""One model of a bundle at run time: conditions from the backbone, tokens from the head.

| graph | inputs | outputs |
| --- | --- | --- |
| `<model>.backbone` | `tokens [B, V, C]` float32, `visible [B, V]` int64 (L = padding), `query [B, P]` int64, `label [B]` int64 (class_num = unconditional) | `z [B, P, D]` |
| `<model>.head_modulation` | `z [N, D]`, `timestep [S]` int64 in 0..999 | `mods [S, N, M]` |
| `<model>.head_step` | `x [R, C]`, `step [R]` int64 in 0..S-1, `token [R]` int64 in 0..N-1, `mods` | `eps [R, C]`, `v [R, C]` |

With guidance the rows of `head_step` come in pairs, conditional then unconditional.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...plugins.reference import Density
from ..arrays import Float32, Int64
from ..backends import BindableGraph, Graph, HeadRounds
from ..config import MARConfig
from ..errors import NumericsError
from ..head import (
    AffineDraft,
    Evaluate,
    HeadReport,
    HeadSchedule,
    ParallelSampler,
    SequentialSampler,
    SpeculativeSampler,
)
from ..head.device import report_of, start_of
from ..head.draft import ROW_COST
from ..options import GenerateOptions
from ..schedule import diffusion_tables
from ..stats import Stats
from .bound import BoundEvaluator, BoundHead
from .chains import ChainInputs, Chains
from .evaluator import Conditions, HeadEvaluator, HeadGraphs

Sampler = SequentialSampler | SpeculativeSampler | ParallelSampler

# adaLN values of one chunk of tokens; more tokens than fit are sampled chunk after chunk.
MODULATION_BYTES = 256 << 20
# Below this number of head steps `auto` samples sequentially: most drafts are rejected there.
FEW_HEAD_STEPS = 16
# What the parallel sampler takes from a draft's trajectory: sweeps, and rows a token over S.
SWEEPS, SWEPT_ROWS = 7, 2.5


def _sampler_kind(head: str, steps: int, cost: float, *, aligned: bool) -> str:
    """Return the head sampler for an option `head`.

    Args:
        head: `sequential`, `speculative`, `parallel` or `auto`.
        steps: S.
        cost: of a row of every token, in units of a call.
        aligned: whether a chain follows another one's noise and trajectory.
    """
    if head == "auto" and steps < FEW_HEAD_STEPS:
        return "sequential"
    if not aligned:
        return "speculative" if head == "auto" else head
    if head == "auto" and SWEEPS + cost * SWEPT_ROWS * steps > steps + cost * steps:
        return "sequential"  # rows cost more than the calls that are saved
    return "sequential" if head == "sequential" else "parallel"


class RuntimeModel:
    """The graphs of one model and what they need to know.

    Args:
        role: `target` or `draft`.
        config: its configuration.
        graphs: `backbone`, `head_modulation` and `head_step`.
        draft: fitted predictor of the head's transitions, or None.
        row_cost: what a row of the head costs in units of a call.
    """

    def __init__(
        self,
        role: str,
        config: MARConfig,
        graphs: dict[str, Graph],
        draft: AffineDraft | None = None,
        row_cost: float = ROW_COST,
    ) -> None:
        self.role = role
        self.config = config
        self.draft = draft
        self.row_cost = row_cost
        self.graphs = graphs
        # Rows of z in one call of head_modulation, guidance's included; None is no limit.
        self.most_tokens: int | None = None
        # What runs the speculative sampler beside the network; None is the host.
        self.rounds: HeadRounds | None = None
        self._backbone = graphs["backbone"]
        modulation, step = graphs["head_modulation"], graphs["head_step"]
        self.head_graphs = HeadGraphs(role, modulation, step)
        self._bound: BoundHead | None = None
        if isinstance(modulation, BindableGraph) and isinstance(step, BindableGraph):
            self._bound = BoundHead(modulation, step, config.token_dim, config.modulation_dim)
        self._schedules: dict[int, HeadSchedule] = {}
        self._samplers: dict[tuple[str, int, float], Sampler] = {}

    def schedule(self, steps: int) -> HeadSchedule:
        """Head schedule of this model with S = `steps`."""
        if steps not in self._schedules:
            tables = diffusion_tables(self.config.beta_schedule, steps)
            self._schedules[steps] = HeadSchedule(tables)
        return self._schedules[steps]

    def condition(
        self,
        tokens: Float32,
        visible: Int64,
        query: Int64,
        labels: Int64,
        scale: Float32,
        *,
        guided: bool,
        where: str,
        stats: Stats,
    ) -> Conditions:
        """Run the backbone.

        Args:
            tokens: known tokens `[B, V, C]`.
            visible: their positions `[B, V]`, L where padded.
            query: positions to predict `[B, P]`.
            labels: `[B]`.
            scale: guidance scale of each query, `[B * P]`.
            guided: run the unconditional branch too.
            where: what is being predicted, for error messages.
            stats: where time is counted.

        Returns:
            Conditions of the `B * P` queries.
        """
        with stats.timed(f"{self.role} backbone"):
            if guided:
                nobody = np.full_like(labels, self.config.class_num)
                tokens = np.concatenate([tokens, tokens])
                visible = np.concatenate([visible, visible])
                query = np.concatenate([query, query])
                labels = np.concatenate([labels, nobody])
            feeds = {"tokens": tokens, "visible": visible, "query": query, "label": labels}
            # The encoder sees what is known, the decoder everything: their mean.
            seen = self.config.buffer_size + (visible.shape[1] + self.config.seq_len) // 2
            z = self._backbone.run(feeds, rows=len(labels) * seen)["z"]
            z = z.reshape(-1, self.config.condition_dim)
        if not np.isfinite(z).all():
            raise NumericsError(
                f"{self.role}.backbone returned values that are not finite at {where}: check the "
                "weights"
            )
        half = len(z) // 2
        return Conditions(z[:half], z[half:], scale) if guided else Conditions(z, None, scale)

    def sample(
        self,
        conditions: Conditions,
        inputs: ChainInputs,
        steps: int,
        options: GenerateOptions,
        *,
        where: str,
        stats: Stats,
    ) -> Chains:
        """Sample the head.

        Args:
            conditions: of N tokens.
            inputs: randomness of N chains.
            steps: S.
            options: head sampler, tolerance and temperature.
            where: what is being sampled, for error messages.
            stats: where time and evaluations are counted.
        """
        schedule = self.schedule(steps)
        sampler = self._sampler_of(
            options, schedule, inputs.together, started=inputs.start is not None
        )
        reports: list[HeadReport] = []
        with stats.timed(f"{self.role} head"):
            for rows in self._chunks(conditions, steps):
                part = conditions[rows]
                evaluate = self.evaluator(part, schedule.timesteps, where)
                try:
                    report = self._sample_on_device(sampler, evaluate, inputs[rows], options)
                    if report is None:
                        report = self._run_sampler(sampler, evaluate, inputs[rows], options)
                except NumericsError as error:
                    raise self._located(error, evaluate, where) from error
                reports.append(report)
                stats.count_head(
                    self.role, report,
                    guided=conditions.unconditional is not None, aligned=inputs.start is not None,
                )  # fmt: skip
        joined = HeadReport.joined(reports)
        return Chains(
            joined.mean,
            Density(joined.mean, joined.std, joined.sum_log_std),
            joined.trajectory.transpose(1, 0, 2),
            joined.noise[1],
        )

    def _located(self, error: NumericsError, evaluate: HeadEvaluator, where: str) -> NumericsError:
        """The error with graph and place: samplers know neither."""
        mods = evaluate.modulations()
        if isinstance(mods, np.ndarray) and not np.isfinite(mods).all():
            return NumericsError(
                f"{self.role}.head_modulation returned values that are not finite at {where}: "
                "check the weights"
            )
        graph = f"{self.role}.head_step"
        return error if graph in str(error) else NumericsError(f"{graph} at {where}: {error}")

    def _sample_on_device(
        self,
        sampler: Sampler,
        evaluate: HeadEvaluator,
        inputs: ChainInputs,
        options: GenerateOptions,
    ) -> HeadReport | None:
        """Sample where the network runs; None where the host has to do it."""
        if self.rounds is None or not isinstance(sampler, SpeculativeSampler):
            return None
        start = start_of(
            sampler, inputs.noise, inputs.streams(), options.temperature, evaluate.scale
        )
        if start is None:
            return None
        made = self.rounds.run(start, evaluate.modulations())
        return None if made is None else report_of(*made, inputs.noise[0])

    def _run_sampler(
        self,
        sampler: Sampler,
        evaluate: Evaluate,
        inputs: ChainInputs,
        options: GenerateOptions,
    ) -> HeadReport:
        common: dict[str, Any] = {
            "n_tokens": len(inputs.noise[0]),
            "channels": self.config.token_dim,
            "temperature": options.temperature,
            "noise": inputs.noise,
        }
        if isinstance(sampler, ParallelSampler):
            start = None if inputs.start is None else inputs.start.transpose(1, 0, 2)
            return sampler.sample(evaluate, **common, start=start)[1]
        if isinstance(sampler, SpeculativeSampler):
            return sampler.sample(evaluate, **common, streams=inputs.streams())[1]
        return sampler.sample(evaluate, **common)[1]

    def largest_window(
        self, options: GenerateOptions, steps: int, together: int, *, started: bool
    ) -> int:
        """Rows that a token may have in one evaluation.

        Args:
            options: head sampler, guidance and tolerance.
            steps: S.
            together: tokens of one image that are sampled together.
            started: whether a trajectory is given to start from.
        """
        sampler = self._sampler_of(options, self.schedule(steps), together, started=started)
        return 1 if isinstance(sampler, SequentialSampler) else sampler.largest_window

    def _sampler_of(
        self, options: GenerateOptions, schedule: HeadSchedule, together: int, *, started: bool
    ) -> Sampler:
        # What one more transition of every token costs, in units of a call.
        cost = self.row_cost * together * (2 if options.guided else 1)
        kind = _sampler_kind(options.head, schedule.steps, cost, aligned=started)
        setting = cost if kind == "speculative" else options.head_tolerance
        return self._sampler(kind, schedule, setting)

    def _sampler(self, kind: str, schedule: HeadSchedule, setting: float) -> Sampler:
        """Return a sampler; `setting` is a tolerance, or what a transition costs."""
        key = kind, schedule.steps, setting
        if key not in self._samplers:
            fitted = self.draft if self.draft and self.draft.steps == schedule.steps else None
            if kind == "parallel":
                sampler = ParallelSampler(schedule, setting, draft=fitted)
            elif kind == "sequential":
                sampler = SequentialSampler(schedule)
            else:
                draft = fitted or AffineDraft.frozen(schedule.steps, self.config.token_dim)
                sampler = SpeculativeSampler(schedule, draft.windows(setting), fitted)
            self._samplers[key] = sampler
        return self._samplers[key]

    def chunk_tokens(self, tokens: int, steps: int, branches: int) -> int:
        """How many of some tokens are sampled together: as many as their adaLN values allow.

        Args:
            tokens: how many there are.
            steps: S.
            branches: 2 with guidance, else 1.
        """
        per_token = 4 * steps * self.config.modulation_dim * branches
        return min(tokens, max(1, MODULATION_BYTES // per_token))

    def _chunks(self, conditions: Conditions, steps: int) -> Iterator[slice]:
        branches = 1 if conditions.unconditional is None else 2
        size = self.chunk_tokens(len(conditions), steps, branches)
        if self.most_tokens is not None:
            size = min(size, max(1, self.most_tokens // branches))
        for start in range(0, len(conditions), size):
            yield slice(start, start + size)

    def evaluator(self, conditions: Conditions, timesteps: Int64, where: str) -> HeadEvaluator:
        """Return the head as `evaluate(x, step, token)`, guidance applied.

        Args:
            conditions: of N tokens; their adaLN values are computed once, when first needed.
            timesteps: training timestep of each head step, `[S]`.
            where: what is being sampled, for error messages.
        """
        given = self.head_graphs, conditions, timesteps, where
        return HeadEvaluator(*given) if self._bound is None else BoundEvaluator(self._bound, *given)
