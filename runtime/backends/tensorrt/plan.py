"""Fit the calls of a run into device memory by making the largest ones smaller.

Which dimension of a graph that is, its demand says (`GraphDemand.shrinks`). Where it is one that a
caller keeps to, the graph that reads its outputs shrinks with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ..base import GraphDemand
from .memory import out_of_limit

Sizes = dict[str, dict[str, int]]
# Bytes of the kept and the turn block that a graph needs at given sizes.
Need = Callable[[str, Mapping[str, int]], tuple[int, int]]


def blocks(sizes: Mapping[str, Mapping[str, int]], need: Need) -> tuple[int, int]:
    """Bytes of both blocks: graphs take turns, so each block is its largest user's."""
    needs = [need(graph, dims) for graph, dims in sizes.items()]
    return max(n[0] for n in needs), max(n[1] for n in needs)


def fit(
    demand: Mapping[str, GraphDemand], need: Need, available: int | None, weights: int = 0
) -> Sizes:
    """Return sizes that fit.

    Args:
        demand: the largest calls of each graph.
        need: what a graph takes.
        available: bytes of both blocks at most, or None.
        weights: bytes that are taken besides, for the message.

    Raises:
        BackendError: not even the smallest calls fit; says what they need.
    """
    sizes = {graph: dict(largest.sizes) for graph, largest in demand.items()}
    if available is None:
        return sizes
    while True:
        kept, turn = blocks(sizes, need)
        if kept + turn <= available:
            return sizes
        largest_kept = max(sizes, key=lambda graph: need(graph, sizes[graph])[0])
        largest_turn = max(sizes, key=lambda graph: need(graph, sizes[graph])[1])
        order = (largest_kept, largest_turn) if kept >= turn else (largest_turn, largest_kept)
        if not any(_shrink(sizes, graph, demand) for graph in order):
            raise out_of_limit(weights + kept + turn, weights + available)


def _shrink(sizes: Sizes, graph: str, demand: Mapping[str, GraphDemand]) -> bool:
    """Halve what makes a graph large; False where it is as small as it can be."""
    name, reader = demand[graph].shrinks, demand[graph].reader
    before = sizes[graph].get(name, 0)
    after = max(demand[graph].least, -(-before // 2))
    if after >= before:
        return False
    sizes[graph][name] = after
    if reader is not None and reader in sizes:
        own, rows = sizes[reader], demand[reader].shrinks
        own[rows] = max(1, min(own[rows], -(-own[rows] * after // before)))
        own[name] = after
    return True


def clipped(
    demand: Mapping[str, GraphDemand], most: Callable[[str, str], int | None]
) -> dict[str, GraphDemand]:
    """Bring the sizes that can be made smaller down to what the engines take.

    Args:
        demand: the largest calls of each graph.
        most: upper end of a graph's dimension, or None.
    """
    sizes = {graph: dict(largest.sizes) for graph, largest in demand.items()}
    for graph, largest in demand.items():
        name, own, reader = largest.shrinks, sizes[graph], largest.reader
        places = (graph, reader) if reader is not None else (graph,)
        tops = [top for place in places if (top := most(place, name)) is not None]
        if name in own:
            own[name] = max(min([own[name], *tops]), min(largest.least, own[name]))
        if reader is not None and reader in sizes:
            sizes[reader][name] = own[name]
    return {graph: replace(demand[graph], sizes=own) for graph, own in sizes.items()}
