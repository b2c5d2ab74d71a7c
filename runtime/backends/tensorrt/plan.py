"""Fit the calls of a run into device memory by making the largest ones smaller.

| what is too large | what is made smaller |
| --- | --- |
| `mods`, `head_modulation` | N, tokens sampled together, of that model |
| `head_step` | R, rows of one call |
| `backbone`, `decoder` | B, images of one call |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .memory import out_of_limit

Sizes = dict[str, dict[str, int]]
# Bytes of the kept and the turn block that a graph needs at given sizes.
Need = Callable[[str, Mapping[str, int]], tuple[int, int]]


def blocks(sizes: Mapping[str, Mapping[str, int]], need: Need) -> tuple[int, int]:
    """Bytes of both blocks: graphs take turns, so each block is its largest user's."""
    needs = [need(graph, dims) for graph, dims in sizes.items()]
    return max(n[0] for n in needs), max(n[1] for n in needs)


def fit(
    demand: Mapping[str, Mapping[str, int]],
    need: Need,
    available: int | None,
    least: Mapping[str, Mapping[str, int]],
    weights: int = 0,
) -> Sizes:
    """Return sizes that fit.

    Args:
        demand: the largest sizes that each graph is asked for.
        need: what a graph takes.
        available: bytes of both blocks at most, or None.
        least: sizes below which a dimension does not go; 1 where not given.
        weights: bytes that are taken besides, for the message.

    Raises:
        BackendError: not even the smallest calls fit; says what they need.
    """
    sizes = {graph: dict(dims) for graph, dims in demand.items()}
    if available is None:
        return sizes
    while True:
        kept, turn = blocks(sizes, need)
        if kept + turn <= available:
            return sizes
        largest_kept = max(sizes, key=lambda graph: need(graph, sizes[graph])[0])
        largest_turn = max(sizes, key=lambda graph: need(graph, sizes[graph])[1])
        order = (largest_kept, largest_turn) if kept >= turn else (largest_turn, largest_kept)
        if not any(_shrink(sizes, graph, least) for graph in order):
            raise out_of_limit(weights + kept + turn, weights + available)


def _shrink(sizes: Sizes, graph: str, least: Mapping[str, Mapping[str, int]]) -> bool:
    """Halve what makes a graph large; False where it is as small as it can be."""
    role, _, kind = graph.rpartition(".")
    name = {"head_modulation": "N", "head_step": "R"}.get(kind, "B")
    before = sizes[graph].get(name, 0)
    after = max(least.get(graph, {}).get(name, 1), -(-before // 2))
    if after >= before:
        return False
    sizes[graph][name] = after
    step = sizes.get(f"{role}.head_step", {})
    if kind == "head_modulation" and step:
        # Fewer tokens have fewer rows.
        step["R"] = max(1, min(step["R"], -(-step["R"] * after // before)))
        step["N"] = after
    return True


def clipped(
    demand: Mapping[str, Mapping[str, int]],
    most: Callable[[str, str], int | None],
) -> Sizes:
    """Bring the sizes that can be split down to what the engines take.

    N stays at 2 or more where it is: guidance takes a token twice.

    Args:
        demand: the largest sizes that each graph is asked for.
        most: upper end of a graph's dimension, or None.
    """
    sizes = {graph: dict(dims) for graph, dims in demand.items()}
    for graph, dims in sizes.items():
        for name in ("R", "B"):
            top = most(graph, name)
            if name in dims and top is not None:
                dims[name] = min(dims[name], top)
    for graph, dims in sizes.items():
        role, _, kind = graph.rpartition(".")
        if kind != "head_modulation":
            continue
        step = f"{role}.head_step"
        tops = [top for g in (graph, step) if (top := most(g, "N")) is not None]
        dims["N"] = max(min([dims["N"], *tops]), min(2, dims["N"]))
        if step in sizes:
            sizes[step]["N"] = dims["N"]
    return sizes
