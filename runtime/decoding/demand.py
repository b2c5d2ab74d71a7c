"""The largest calls that a run makes of each graph, known before it starts.

| dimension | of | at most |
| --- | --- | --- |
| `B` | `backbone` | images, or prefixes of a drafted block; twice that with guidance |
| `V`, `P` | `backbone` | known tokens, tokens of an AR step or of a block |
| `N` | `backbone_local` | tokens since a full AR step |
| `N` | `head_modulation`, `head_step` | tokens sampled together; twice that with guidance |
| `S` | both | head steps |
| `R` | `head_step` | N times the rows that the head sampler evaluates of a token at once |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..backends import GraphDemand
from ..bundle.graph_tensors import CACHES
from ..options import AUTO_REFRESH
from .model import RuntimeModel
from .plan import Plan

Demand = dict[str, GraphDemand]

_HEAD = ("head_modulation", "head_step")
# Tensors that stay on the device, from one graph to the next.
_ON_DEVICE = ("mods",)


def largest_calls(
    plan: Plan, batch: int, models: Mapping[str, RuntimeModel], *, local: bool = False
) -> Demand:
    """Return the largest calls by graph, for the models that the mode uses.

    Args:
        plan: what every AR step does.
        batch: images decoded at once.
        models: by role.
        local: whether AR steps may be local.
    """
    calls = _Calls(plan, models, local=local)
    options, total = plan.options, plan.num_iter
    single = [range(step, step + 1) for step in range(total)]
    if options.mode != "csd":
        calls.add(options.mode, batch, single, aligned=False)
        return calls.demand()
    first = plan.prefilled_steps
    calls.add("draft", batch, single[first:], aligned=False)
    calls.add("target", batch, single[:first], aligned=False)
    if options.verify == "block":
        calls.add("target", batch, plan.blocks(), aligned=True)
    else:  # a block may start anywhere
        calls.add_prefixes([plan.block(step) for step in range(first, total)])
        calls.add("target", 1, single[first:], aligned=False)
    return calls.demand()


class _Calls:
    """The largest calls so far."""

    def __init__(self, plan: Plan, models: Mapping[str, RuntimeModel], *, local: bool) -> None:
        self._local = local
        self._sizes_of: dict[str, dict[str, int]] = {}
        self._plan, self._models = plan, models
        self._sizes = plan.schedule.sizes
        self._known = [plan.schedule.seq_len - stop for _, stop in plan.schedule.bounds]

    def demand(self) -> Demand:
        """Return them, with what a backend may do about them."""
        return {graph: self._demand(graph, sizes) for graph, sizes in self._sizes_of.items()}

    def _demand(self, graph: str, sizes: Mapping[str, int]) -> GraphDemand:
        role, _, kind = graph.rpartition(".")
        if kind == "backbone":
            return GraphDemand(sizes, shrinks="B")
        if kind == "backbone_full":
            # Its caller decodes fewer images at once, with whole branches.
            least = self._branches(range(self._plan.num_iter))
            reader = f"{role}.backbone_local"
            return GraphDemand(
                sizes, shrinks="B", least=least, on_device=CACHES, reader=reader,
                alike={"B": (reader,)},
            )  # fmt: skip
        if kind == "backbone_local":
            return GraphDemand(sizes, shrinks="B", on_device=CACHES)
        # A run has one number of head steps, and guidance takes two conditions of every model.
        heads = tuple(f"{own}.{name}" for own in self._models for name in _HEAD)
        alike = {"S": heads, "N": heads}
        if kind == "head_step":
            return GraphDemand(sizes, shrinks="R", on_device=_ON_DEVICE, alike=alike)
        least = self._branches(range(self._plan.num_iter))
        return GraphDemand(
            sizes, shrinks="N", least=least, on_device=_ON_DEVICE, alike=alike,
            reader=f"{role}.head_step",
        )  # fmt: skip

    def add(self, role: str, batch: int, blocks: Iterable[range], *, aligned: bool) -> None:
        """Each block predicted in one backbone call, given what was known before it."""
        for block in blocks:
            wanted = sum(self._sizes[block.start : block.stop])
            known = self._known[block.start]
            self._backbone(role, batch, block, known, wanted, local=self._local)
            self._head(role, batch, block, aligned=aligned)
            if self._local and self._plan.options.refresh == AUTO_REFRESH:
                self._head(role, batch, block, aligned=True)  # a local step's tokens, to compare

    def add_prefixes(self, blocks: Iterable[range]) -> None:
        """Each AR step of a block given its prefix, and the step after it, in one call."""
        for block in blocks:
            stop = min(block.stop + 1, len(self._sizes))
            steps = range(block.start, stop)
            sizes = self._sizes[block.start : stop]
            known = self._known[stop - 1]
            self._backbone("target", len(sizes), steps, known, max(sizes), local=False)
            self._head("target", 1, block, aligned=True)

    def _branches(self, steps: range) -> int:
        return 2 if self._plan.guided(steps) else 1

    def _backbone(
        self, role: str, batch: int, steps: range, known: int, wanted: int, *, local: bool
    ) -> None:
        sizes = {"B": self._branches(steps) * batch, "V": known, "P": wanted}
        if not local:
            self._join(f"{role}.backbone", **sizes)
            return
        self._join(f"{role}.backbone_full", **sizes)
        # At most all that is known was decoded since the full step.
        self._join(f"{role}.backbone_local", **sizes, N=max(1, known))

    def _head(self, role: str, batch: int, block: range, *, aligned: bool) -> None:
        model, tokens_of = self._models[role], dict[int, int]()
        branches = self._branches(block)
        for step in block:  # those that differ in head steps are sampled apart
            steps = int(self._plan.head_steps[step])
            tokens_of[steps] = tokens_of.get(steps, 0) + batch * self._sizes[step]
        for steps, tokens in tokens_of.items():
            rows = model.chunk_tokens(tokens, steps, branches) * branches
            _, sampler = model.samplers.choose(
                self._plan.options, steps, tokens // batch, batch,
                aligned=aligned, guided=branches == 2,
            )  # fmt: skip
            self._join(f"{role}.head_modulation", N=rows, S=steps)
            self._join(f"{role}.head_step", N=rows, S=steps, R=rows * sampler.largest_window)

    def _join(self, graph: str, **dims: int) -> None:
        """Take the larger of each size."""
        own = self._sizes_of.setdefault(graph, {})
        for name, size in dims.items():
            own[name] = max(own.get(name, 0), size)
