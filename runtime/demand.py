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

from .decode import Plan
from .model import RuntimeModel

Demand = dict[str, dict[str, int]]


def largest_calls(plan: Plan, batch: int, models: Mapping[str, RuntimeModel]) -> Demand:
    """Return sizes of the named dimensions by graph, for the models that the mode uses.

    Args:
        plan: what every AR step does.
        batch: images decoded at once.
        models: by role.
    """
    options, total = plan.options, plan.schedule.num_iter
    single = [range(step, step + 1) for step in range(total)]
    if options.mode != "csd":
        return _of_model(options.mode, models, plan, batch, single, started=False)
    first = plan.prefilled_steps
    demand = _of_model("draft", models, plan, batch, single[first:], started=False)
    starts = range(first, total)
    blocks = [range(step, min(step + options.gamma, total)) for step in starts]
    target = [_of_model("target", models, plan, batch, single[:first], started=False)]
    if options.verify == "block":
        # Blocks follow one another: nothing is rolled back.
        blocks = blocks[:: options.gamma]
        target.append(_of_model("target", models, plan, batch, blocks, started=True))
    else:
        target.append(_of_prefixes(models, plan, blocks))
        target.append(_of_model("target", models, plan, 1, single[first:], started=False))
    for part in target:
        _join(demand, part)
    return demand


def _of_model(
    role: str,
    models: Mapping[str, RuntimeModel],
    plan: Plan,
    batch: int,
    blocks: Iterable[range],
    *,
    started: bool,
) -> Demand:
    """Each block predicted in one backbone call, given what was known before it."""
    demand: Demand = {}
    for block in blocks:
        wanted = sum(plan.schedule.sizes[block.start : block.stop])
        backbone = {"B": batch, "V": _known(plan, block.start), "P": wanted}
        _join(demand, _call(role, models, plan, block, backbone, batch, started=started))
    return demand


def _of_prefixes(models: Mapping[str, RuntimeModel], plan: Plan, blocks: Iterable[range]) -> Demand:
    """Each AR step of a block given its own prefix, and the step after the block, in one call."""
    demand: Demand = {}
    for block in blocks:
        stop = min(block.stop + 1, plan.schedule.num_iter)
        sizes = plan.schedule.sizes[block.start : stop]
        backbone = {"B": len(sizes), "V": _known(plan, stop - 1), "P": max(sizes)}
        _join(demand, _call("target", models, plan, block, backbone, 1, started=True))
    return demand


def _call(
    role: str,
    models: Mapping[str, RuntimeModel],
    plan: Plan,
    block: range,
    backbone: dict[str, int],
    batch: int,
    *,
    started: bool,
) -> Demand:
    model, branches = models[role], 2 if plan.options.guided else 1
    demand = {f"{role}.backbone": {**backbone, "B": branches * backbone["B"]}}
    tokens_of: dict[int, int] = {}  # those that differ in head steps are sampled apart
    for step in block:
        steps = plan.head_steps[step]
        tokens_of[steps] = tokens_of.get(steps, 0) + batch * plan.schedule.sizes[step]
    for steps, tokens in tokens_of.items():
        rows = model.chunk_tokens(tokens, steps, branches) * branches
        window = model.largest_window(plan.options, steps, tokens // batch, started=started)
        head = {"N": rows, "S": steps}
        _join(demand, {
            f"{role}.head_modulation": head,
            f"{role}.head_step": {**head, "R": rows * window},
        })  # fmt: skip
    return demand


def _known(plan: Plan, step: int) -> int:
    return plan.schedule.seq_len - plan.schedule.bounds[step][1]


def _join(demand: Demand, other: Demand) -> None:
    """Take the larger of each size."""
    for graph, dims in other.items():
        own = demand.setdefault(graph, {})
        for name, size in dims.items():
            own[name] = max(own.get(name, 0), size)
