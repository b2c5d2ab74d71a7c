"""One model of a bundle at run time: conditions from the backbone, tokens from the head.

| graph | inputs | outputs |
| --- | --- | --- |
| `<model>.backbone` | `tokens [B, V, C]` float32, `visible [B, V]` int64 (L = padding), `query [B, P]` int64, `label [B]` int64 (class_num = unconditional) | `z [B, P, D]` |
| `<model>.head_modulation` | `z [N, D]`, `timestep [S]` in 0..999, int64, or float32 for a model that is `solved` | `mods [S, N, M]` |
| `<model>.head_step` | `x [R, C]`, `step [R]` int64 in 0..S-1, `token [R]` int64 in 0..N-1, `mods` | `eps [R, C]`, `v [R, C]` |

With guidance the rows of `head_step` come in pairs, conditional then unconditional.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ..arrays import Float32, Int64
from ..backends import BindableGraph, Graph, HeadRounds
from ..command.line.logs import logger
from ..config import MARConfig
from ..errors import NumericsError
from ..head import HeadCalibration, HeadReport, HeadRequest
from ..options import GenerateOptions
from ..stats import Stats
from .bound import BoundEvaluator, BoundHead
from .chains import Chains
from .evaluator import Conditions, HeadEvaluator, HeadGraphs
from .rows import backbone_rows, both_branches, conditions_of
from .samplers import HeadSamplers

_LOG = logger(__name__)
# adaLN values of one chunk of tokens; more tokens than fit are sampled chunk after chunk. A host
# takes smaller chunks of many tokens, which cost it no time.
MODULATION_BYTES = 256 << 20
HOST_CHUNK_BYTES, HOST_CHUNK_TOKENS = 32 << 20, 32


class RuntimeModel:
    """The graphs of one model and what they need to know.

    Args:
        role: `target` or `draft`.
        config: its configuration.
        graphs: `backbone`, `head_modulation` and `head_step`.
        calibration: of the head.
        rounds: runs the speculative sampler's rounds beside `head_step`; None is the host.
    """

    def __init__(
        self,
        role: str,
        config: MARConfig,
        graphs: Mapping[str, Graph],
        calibration: HeadCalibration | None = None,
        rounds: HeadRounds | None = None,
    ) -> None:
        self.role = role
        self.config = config
        self.graphs = graphs
        self.calibration = calibration or HeadCalibration()
        # Rounds on the device leave the host nothing to do.
        weights = 2 * config.diffloss_d * config.diffloss_w**2 if rounds is None else None
        self.samplers = HeadSamplers(
            config.beta_schedule, config.token_dim, self.calibration, weights
        )
        modulation, step = graphs["head_modulation"], graphs["head_step"]
        self.head_graphs = HeadGraphs(role, modulation, step, rounds)
        self.bound: BoundHead | None = None
        if isinstance(modulation, BindableGraph) and isinstance(step, BindableGraph):
            self.bound = BoundHead(modulation, step, config.token_dim, config.modulation_dim)

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
        feeds = {"tokens": tokens, "visible": visible, "query": query, "label": labels}
        rows, branches = backbone_rows(self.config, *visible.shape), 1 + guided
        with stats.timed(f"{self.role} backbone"):
            if guided:
                feeds = both_branches(feeds, self.config.class_num)
            z = self.graphs["backbone"].run(feeds, rows=rows.mean * branches)["z"]
        stats.count_full(self.role, rows.total * branches)
        return conditions_of(z, scale, f"{self.role}.backbone", guided=guided, where=where)

    def sample(
        self,
        conditions: Conditions,
        request: HeadRequest,
        options: GenerateOptions,
        *,
        together: int,
        images: int,
        most_tokens: int | None,
        where: str,
        stats: Stats,
    ) -> Chains:
        """Sample the head.

        Args:
            conditions: of N tokens.
            request: of N chains; those with a start are aligned with others.
            options: head sampler and tolerance.
            together: how many of the tokens belong to one image.
            images: how many are decoded at once.
            most_tokens: rows of z in one call of `head_modulation`, guidance's included; None is
                no limit.
            where: what is being sampled, for error messages.
            stats: where time and evaluations are counted.
        """
        steps, aligned = request.noise[1].shape[1], request.start is not None
        guided = conditions.unconditional is not None
        kind, sampler = self.samplers.choose(
            options, steps, together, images, aligned=aligned, guided=guided
        )
        timesteps: Int64 | Float32 = sampler.timesteps.astype(np.int64)
        if self.config.solved:  # what its graph takes
            timesteps = sampler.timesteps.astype(np.float32)
        reports: list[HeadReport] = []
        with stats.timed(f"{self.role} head"):
            for rows in self._chunks(conditions, steps, most_tokens):
                evaluate = self.evaluator(conditions[rows], timesteps, where)
                try:
                    reports.append(sampler.run(evaluate, request[rows]))
                except NumericsError as error:
                    raise self._located(error, evaluate, where) from error
                stats.count_head(self.role, kind, reports[-1], guided=guided, aligned=aligned)
        return Chains.of(HeadReport.joined(reports))

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

    def chunk_tokens(self, tokens: int, steps: int, branches: int) -> int:
        """How many of some tokens are sampled together: as many as their adaLN values allow.

        Args:
            tokens: how many there are.
            steps: S.
            branches: 2 with guidance, else 1.
        """
        per_token = 4 * steps * self.config.modulation_dim * branches
        fitting = max(1, MODULATION_BYTES // per_token)
        if self.bound is not None:
            fitting = min(fitting, max(HOST_CHUNK_TOKENS, HOST_CHUNK_BYTES // per_token))
        return min(tokens, fitting)

    def _chunks(
        self, conditions: Conditions, steps: int, most_tokens: int | None
    ) -> Iterator[slice]:
        branches = 1 if conditions.unconditional is None else 2
        size = self.chunk_tokens(len(conditions), steps, branches)
        if most_tokens is not None:
            size = min(size, max(1, most_tokens // branches))
        if size < len(conditions):
            _LOG.debug("%s head: %d tokens in calls of %d", self.role, len(conditions), size)
        for start in range(0, len(conditions), size):
            yield slice(start, start + size)

    def evaluator(
        self, conditions: Conditions, timesteps: Int64 | Float32, where: str
    ) -> HeadEvaluator:
        """Return the head as `evaluate(x, step, token)`, guidance applied.

        Args:
            conditions: of N tokens; their adaLN values are computed once, when first needed.
            timesteps: training timestep of each head step, `[S]`, as the graph takes them.
            where: what is being sampled, for error messages.
        """
        given = self.head_graphs, conditions, timesteps, where
        return HeadEvaluator(*given) if self.bound is None else BoundEvaluator(self.bound, *given)
