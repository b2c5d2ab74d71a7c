"""Fit the calls of a run into device memory by making the largest ones smaller.

Which dimension of a graph that is, its demand says (`GraphDemand.shrinks`). Where it is one that a
caller keeps to, the graph that reads its outputs shrinks with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ..base import GraphDemand
from .memory import KEPT, out_of_limit

Sizes = dict[str, dict[str, int]]
# Bytes that a graph needs at given sizes of the block for what it keeps, and of the turn block.
Need = Callable[[str, Mapping[str, int]], tuple[int, int]]
TURN = "turn"


def blocks(
    sizes: Mapping[str, Mapping[str, int]], need: Need, block_of: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Bytes of each block: graphs take turns, so each block is its largest user's.

    Args:
        sizes: of the calls, by graph.
        need: what a graph takes.
        block_of: block that holds what a graph keeps, where that is not the kept one.
    """
    return {name: most for name, (most, _) in _users(sizes, need, block_of or {}).items()}


def _users(
    sizes: Mapping[str, Mapping[str, int]], need: Need, block_of: Mapping[str, str]
) -> dict[str, tuple[int, str]]:
    """Bytes of each block, and the graph that needs so many."""
    users: dict[str, tuple[int, str]] = {}
    for graph, dims in sizes.items():
        kept, turn = need(graph, dims)
        for block, size in ((block_of.get(graph, KEPT), kept), (TURN, turn)):
            if block not in users or size > users[block][0]:
                users[block] = size, graph
    return users


def fit(
    demand: Mapping[str, GraphDemand],
    need: Need,
    available: int | None,
    weights: int = 0,
    block_of: Mapping[str, str] | None = None,
) -> Sizes:
    """Return sizes that fit.

    Args:
        demand: the largest calls of each graph.
        need: what a graph takes.
        available: bytes of all blocks at most, or None.
        weights: bytes that are taken besides, for the message.
        block_of: see `blocks`.

    Raises:
        BackendError: not even the smallest calls fit; says what they need.
    """
    sizes = {graph: dict(largest.sizes) for graph, largest in demand.items()}
    if available is None:
        return sizes
    while True:
        users = _users(sizes, need, block_of or {})
        total = sum(size for size, _ in users.values())
        if total <= available:
            return sizes
        # The largest block first; of two as large, what is kept.
        order = sorted(users, key=lambda block: (-users[block][0], block == TURN))
        if not any(_shrink(sizes, users[block][1], demand) for block in order):
            raise out_of_limit(weights + total, weights + available)


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
