"""Sizes of a call: named dimensions, ranges of an engine, padding and splitting.

| dimension | of | padded | split |
| --- | --- | --- | --- |
| `R` | rows of `head_step` | to a bucket | yes |
| `V` | known tokens of `backbone` | to the engine's least, with padding positions | no |
| `B` | images of `backbone`, `decoder` | no | yes |
| `S`, `N`, `P`, `K` | | no | only where they lead all outputs |

A call may be split along the dimension that leads every output: rows and images do not see each
other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..bundle.manifest import GraphSpec, TensorSpec
from ..errors import BackendError

Range = tuple[int, int]

_PADDED_TO_BUCKETS = "R"
# What a plan may make smaller, so that a run fits the memory.
SPLIT = ("R", "B")


def bucket(rows: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24, .. that holds so many rows."""
    power = 1 << max(0, rows - 1).bit_length()
    three_quarters = 3 * power // 4
    return three_quarters if power >= 4 and rows <= three_quarters else power


def shape_of(tensor: TensorSpec, dims: Mapping[str, int]) -> tuple[int, ...]:
    """A tensor's shape at given sizes of the named dimensions."""
    return tuple(size if isinstance(size, int) else dims[size] for size in tensor.shape)


def call_dims(graph: str, spec: GraphSpec, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Sizes of the named dimensions, from the shapes of the inputs.

    Raises:
        BackendError: an input is missing or unknown, or the shapes do not fit each other.
    """
    if unknown := sorted(set(shapes) ^ {tensor.name for tensor in spec.inputs}):
        raise BackendError(f"{graph} takes other inputs: check {', '.join(unknown)}")
    dims: dict[str, int] = {}
    for tensor in spec.inputs:
        shape = shapes[tensor.name]
        fits = len(shape) == len(tensor.shape)
        for size, wanted in zip(shape, tensor.shape, strict=False):
            known = wanted if isinstance(wanted, int) else dims.setdefault(wanted, size)
            fits = fits and size == known
        if not fits:
            raise BackendError(
                f"{graph}: {tensor.name} is {list(shape)}, not {list(tensor.shape)} with {dims}"
            )
    return dims


def leading_dim(spec: GraphSpec) -> str | None:
    """The named dimension that leads every output and every input that has it, or None."""
    leaders = {tensor.shape[0] for tensor in spec.outputs}
    name = next(iter(leaders))
    if len(leaders) != 1 or not isinstance(name, str):
        return None
    return None if any(name in tensor.shape[1:] for tensor in spec.inputs) else name


@dataclass(frozen=True)
class Limits:
    """What an engine takes.

    Attributes:
        graph: that it runs.
        ranges: `(least, most)` of each named dimension, perhaps lowered by a plan.
        rebuild: command that builds it again.
    """

    graph: str
    ranges: Mapping[str, Range]
    rebuild: str

    def lowered(self, most: Mapping[str, int]) -> Limits:
        """The same with lower upper ends."""
        ranges = {
            name: (least, max(least, min(top, most.get(name, top))))
            for name, (least, top) in self.ranges.items()
        }
        return replace(self, ranges=ranges)

    def padded(self, dims: Mapping[str, int]) -> dict[str, int]:
        """Sizes that a call is run at.

        Raises:
            BackendError: a dimension is out of range and cannot be padded.
        """
        check_calls([(self, dims, {})], {})
        return {**dims, **{name: self._padded(name, dims[name]) for name in self.ranges}}

    def _padded(self, name: str, size: int) -> int:
        """Size of a dimension that a call is run at, where the engine takes it."""
        least, most = self.ranges[name]
        if name == _PADDED_TO_BUCKETS:
            return min(max(bucket(size), least), most)
        return max(size, least) if name == "V" else size

    def misfits(self, dims: Mapping[str, int]) -> list[str]:
        """Dimensions that are out of range and cannot be padded."""
        sizes = {name: self._padded(name, dims[name]) for name in self.ranges}
        return [
            name
            for name, (least, most) in self.ranges.items()
            if not least <= sizes[name] <= most or sizes[name] < dims[name]
        ]

    def parts(self, spec: GraphSpec, dims: Mapping[str, int]) -> Iterator[slice]:
        """Split a call along its leading dimension into calls of at most the range's end.

        Yields one slice of everything where nothing leads, or nothing has to be split.
        """
        name = leading_dim(spec)
        total = dims[name] if name is not None else 0
        most = self.ranges[name][1] if name is not None and name in self.ranges else max(1, total)
        if total <= most:
            yield slice(0, total)
            return
        count = -(-total // most)  # parts of about one size, so that they share a bucket
        size = -(-total // count)
        for start in range(0, total, size):
            yield slice(start, min(start + size, total))


def check_calls(
    calls: Iterable[tuple[Limits, Mapping[str, int], Mapping[str, Sequence[str]]]],
    engines: Mapping[str, Mapping[str, Range]],
) -> None:
    """Check that engines take calls.

    Args:
        calls: for each, what its engine takes, the sizes of its named dimensions, and for a
            dimension the graphs that get the same size of it.
        engines: ranges of all engines of a session by graph, not lowered.

    Raises:
        BackendError: names the first that is out of range, and one command that widens all.
    """
    first: tuple[Limits, str, int] | None = None
    wider: dict[tuple[str, str], tuple[int, int, int]] = {}
    for limits, dims, alike in calls:
        for name in limits.misfits(dims):
            asked = dims[name]
            first = first or (limits, name, asked)
            ranges = {limits.graph: engines.get(limits.graph, limits.ranges)}
            ranges |= {graph: engines[graph] for graph in alike.get(name, ()) if graph in engines}
            for graph in ranges:
                least, most = ranges[graph][name]
                low, typical, high = wider.get((graph, name), (least, asked, most))
                if not low <= asked <= high:
                    wider[graph, name] = min(low, asked), typical, max(high, asked)
    if first is None:
        return
    limits, name, asked = first
    least, most = limits.ranges[name]
    options = [
        f"--profile {graph}.{name}={':'.join(map(str, sizes))}"
        for (graph, name), sizes in wider.items()
    ]
    raise BackendError(
        f"{limits.graph} was asked for {name} = {asked}, its engine's profile takes {least} to "
        f"{most}: {' '.join([limits.rebuild, *options])}"
    )
