"""The backbone with caches: full steps that keep keys and values, local steps that attend to them.

| graph | inputs | outputs |
| --- | --- | --- |
| `<model>.backbone_full` | those of `backbone` | `z [B, P, D]` and the caches |
| `<model>.backbone_local` | `tokens [B, N, C]` decoded since the full step, `new [B, N]` their positions, `query [B, P]`, the caches | `z [B, P, D]` |

The caches are whatever the backend leaves where it runs (`csd.models.local_steps` has shapes).
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...arrays import Float32, Int64
from ...backends import Graph
from ...bundle.graph_tensors import CACHES
from ...config import MARConfig
from ..evaluator import Conditions
from ..rows import backbone_rows, both_branches, conditions_of, local_rows


@dataclass(frozen=True, eq=False)
class Kept:
    """What a full step left.

    Attributes:
        step: AR step before which it was made: what it knows is what was known then.
        guided: whether both branches were.
        caches: by name; good until the next full step of the model.
    """

    step: int
    guided: bool
    caches: Mapping[str, Any]


class CachedBackbone:
    """A model's backbone in full and local steps.

    Args:
        role: `target` or `draft`.
        config: of the model.
        full: the graph `backbone_full`.
        local: the graph `backbone_local`.
    """

    def __init__(self, role: str, config: MARConfig, full: Graph, local: Graph) -> None:
        self.role, self.config = role, config
        self._full, self._local = full, local

    def full(
        self,
        tokens: Float32,
        visible: Int64,
        query: Int64,
        labels: Int64,
        scale: Float32,
        *,
        step: int,
        guided: bool,
        where: str,
    ) -> tuple[Conditions, Kept]:
        """Compute all rows; arguments as for `RuntimeModel.condition`, `step` as for `Kept`."""
        feeds = {"tokens": tokens, "visible": visible, "query": query, "label": labels}
        rows = backbone_rows(self.config, *visible.shape).mean * (1 + guided)
        if guided:
            feeds = both_branches(feeds, self.config.class_num)
        out = self._full.run(feeds, rows=rows, keep=CACHES)
        graph = f"{self.role}.backbone_full"
        conditions = conditions_of(out["z"], scale, graph, guided=guided, where=where)
        return conditions, Kept(step, guided, {name: out[name] for name in CACHES})

    def local(
        self,
        tokens: Float32,
        new: Int64,
        query: Int64,
        kept: Kept,
        scale: Float32,
        *,
        where: str,
    ) -> Conditions:
        """Compute the rows of new tokens and of queries, for the branches that were kept.

        Args:
            tokens: those decoded since the full step, `[B, N, C]`.
            new: their positions, `[B, N]`.
            query: positions to predict, `[B, P]`.
            kept: what the full step left.
            scale: guidance scale of each query, `[B * P]`.
            where: what is being predicted, for error messages.
        """
        feeds = {"tokens": tokens, "new": new, "query": query}
        rows = local_rows(self.config, len(new), new.shape[1], query.shape[1]).mean * (
            1 + kept.guided
        )
        if kept.guided:
            feeds = {name: np.concatenate([value, value]) for name, value in feeds.items()}
        out = self._local.run({**feeds, **kept.caches}, rows=rows)
        graph = f"{self.role}.backbone_local"
        return conditions_of(out["z"], scale, graph, guided=kept.guided, where=where)
