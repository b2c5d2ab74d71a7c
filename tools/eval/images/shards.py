"""How images are dealt out: into batches, and batches to machines.

Image i is of class i modulo the number of classes, and number i of the seed's noise, so it is the
same wherever it is made. Batches begin at multiples of their size; a shard has every n-th batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from dataclasses import dataclass

MOST_SHARDS = 10_000


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1 on) of `count`."""

    index: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def read_shard(text: str) -> Shard:
    """Read `i/n`.

    Raises:
        ArgumentTypeError: it is none.
    """
    parts = text.split("/")
    if len(parts) == 2 and all(p.isascii() and p.isdecimal() and len(p) < 6 for p in parts):
        index, count = int(parts[0]), int(parts[1])
        if 1 <= index <= count <= MOST_SHARDS:
            return Shard(index, count)
    raise argparse.ArgumentTypeError(f"{text!r} is no shard: give i/n, as 1/4 to 4/4")


def missing_batches(
    wanted: int, batch: int, there: Collection[int], shard: Shard
) -> Iterator[tuple[int, int]]:
    """Yield the first number and the count of what is to be made, in order.

    Args:
        wanted: images of the whole run.
        batch: images of a call at most.
        there: numbers that are stored.
        shard: what of it is ours.
    """
    known = set(there)
    for place, start in enumerate(range(0, wanted, batch)):
        if place % shard.count != shard.index - 1:
            continue
        lacking = [n for n in range(start, min(start + batch, wanted)) if n not in known]
        # A batch is stored as a whole, so what lacks is all of it, or its end where more images
        # are wanted than before.
        if lacking:
            yield lacking[0], lacking[-1] + 1 - lacking[0]


def own_images(wanted: int, batch: int, shard: Shard) -> int:
    """How many images a shard has in all."""
    return sum(count for _, count in missing_batches(wanted, batch, (), shard))
