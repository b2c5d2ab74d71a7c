"""The largest calls that a run makes of each graph, known before it starts.

| dimension | of | at most |
| --- | --- | --- |
| `B` | `backbone` | images, or prefixes of a drafted block; twice that with guidance |
| `V`, `P` | `backbone` | known tokens, tokens of an AR step or of a block |
| `N` | `head_modulation`, `head_step` | tokens sampled together; twice that with guidance |
| `S` | both | head steps |
| `R` | `head_step` | N times the rows that the head sampler evaluates of a token at once |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .model import RuntimeModel
from .plan import Plan

Demand = dict[str, dict[str, int]]


def largest_calls(plan: Plan, batch: int, models: Mapping[str, RuntimeModel]) -> Demand:
    """Return sizes of the named dimensions by graph, for the models that the mode uses.

    Args:
        plan: what every AR step does.
        batch: images decoded at once.
        models: by role.
    """
    calls = _Calls(plan, models)
    options, total = plan.options, plan.schedule.num_iter
    single = [range(step, step + 1) for step in range(total)]
    if options.mode != "csd":
        calls.add(options.mode, batch, single, started=False)
        return calls.demand
    first = plan.prefilled_steps
    calls.add("draft", batch, single[first:], started=False)
    calls.add("target", batch, single[:first], started=False)
    blocks = [range(step, min(step + options.gamma, total)) for step in range(first, total)]
    if options.verify == "block":
        # Blocks follow one another: nothing is rolled back.
        calls.add("target", batch, blocks[:: options.gamma], started=True)
    else:
        calls.add_prefixes(blocks)
        calls.add("target", 1, single[first:], started=False)
    return calls.demand


class _Calls:
    """The largest calls so far, `demand`."""

    def __init__(self, plan: Plan, models: Mapping[str, RuntimeModel]) -> None:
        self.demand: Demand = {}
        self._plan, self._models = plan, models
        self._branches = 2 if plan.options.guided else 1
        self._sizes = plan.schedule.sizes
        self._known = [plan.schedule.seq_len - stop for _, stop in plan.schedule.bounds]

    def add(self, role: str, batch: int, blocks: Iterable[range], *, started: bool) -> None:
        """Each block predicted in one backbone call, given what was known before it."""
        for block in blocks:
            wanted = sum(self._sizes[block.start : block.stop])
            self._backbone(role, batch, self._known[block.start], wanted)
            self._head(role, batch, block, started=started)

    def add_prefixes(self, blocks: Iterable[range]) -> None:
        """Each AR step of a block given its prefix, and the step after it, in one call."""
        for block in blocks:
            stop = min(block.stop + 1, len(self._sizes))
            sizes = self._sizes[block.start : stop]
            self._backbone("target", len(sizes), self._known[stop - 1], max(sizes))
            self._head("target", 1, block, started=True)

    def _backbone(self, role: str, batch: int, known: int, wanted: int) -> None:
        self._join(f"{role}.backbone", B=self._branches * batch, V=known, P=wanted)

    def _head(self, role: str, batch: int, block: range, *, started: bool) -> None:
        model, tokens_of = self._models[role], dict[int, int]()
        for step in block:  # those that differ in head steps are sampled apart
            steps = self._plan.head_steps[step]
            tokens_of[steps] = tokens_of.get(steps, 0) + batch * self._sizes[step]
        for steps, tokens in tokens_of.items():
            rows = model.chunk_tokens(tokens, steps, self._branches) * self._branches
            together = tokens // batch
            window = model.largest_window(self._plan.options, steps, together, started=started)
            self._join(f"{role}.head_modulation", N=rows, S=steps)
            self._join(f"{role}.head_step", N=rows, S=steps, R=rows * window)

    def _join(self, graph: str, **dims: int) -> None:
        """Take the larger of each size."""
        own = self.demand.setdefault(graph, {})
        for name, size in dims.items():
            own[name] = max(own.get(name, 0), size)
