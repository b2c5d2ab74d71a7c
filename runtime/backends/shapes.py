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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..errors import BackendError
from ..manifest import GraphSpec, TensorSpec

Range = tuple[int, int]

_PADDED_TO_BUCKETS = "R"
# Graphs that are called with the same sizes of these dimensions: wider ranges are for both.
_TOGETHER = {"S": ("head_modulation", "head_step"), "N": ("head_modulation", "head_step")}
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


def _sharing(graph: str, dimension: str) -> list[str]:
    """Graphs of a model that must take the same sizes of a dimension, this one among them."""
    role, _, kind = graph.rpartition(".")
    together = _TOGETHER.get(dimension, ())
    return [f"{role}.{other}" for other in together] if kind in together else [graph]


@dataclass(frozen=True)
class Limits:
    """What an engine takes: `(least, most)` of each named dimension, perhaps lowered by a plan."""

    graph: str
    ranges: Mapping[str, Range]
    rebuild: str

    def lowered(self, most: Mapping[str, int]) -> Limits:
        """The same with lower upper ends."""
        ranges = {
            name: (least, max(least, min(top, most.get(name, top))))
            for name, (least, top) in self.ranges.items()
        }
        return Limits(self.graph, ranges, self.rebuild)

    def padded(self, dims: Mapping[str, int]) -> dict[str, int]:
        """Sizes that a call is run at.

        Raises:
            BackendError: a dimension is out of range and cannot be padded.
        """
        out = dict(dims)
        for name, (least, most) in self.ranges.items():
            size = dims[name]
            if name == _PADDED_TO_BUCKETS:
                size = min(max(bucket(size), least), most)
            elif name == "V":
                size = max(size, least)
            if not least <= size <= most or size < dims[name]:
                asked = dims[name]
                wider = f"{name}={min(least, asked)}:{asked}:{max(most, asked)}"
                options = [f"--profile {graph}.{wider}" for graph in _sharing(self.graph, name)]
                raise BackendError(
                    f"{self.graph} was asked for {name} = {asked}, its engine's profile takes "
                    f"{least} to {most}: {' '.join([self.rebuild, *options])}"
                )
            out[name] = size
        return out

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
