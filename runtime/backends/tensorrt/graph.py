"""A graph run by an engine: inputs through page-locked memory, outputs back, one wait a call.

Device memory of a call, in the arena's turn block:

| part | holds |
| --- | --- |
| inputs | arrays that were given, one after another, copied in one piece |
| outputs | what is not kept, likewise |
| scratch | the execution context's own |

Device tensors are bound where they are; kept outputs lie in the arena's kept block, those of a
lasting graph in a block of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundle.manifest import GraphSpec, TensorSpec
from ..shapes import SPLIT, Limits, call_dims, leading_dim, shape_of
from .binding import Engine
from .execution import Device, Executor, Work
from .memory import KEPT, KeptTensor, Layout, Staging, read, view, write

# Calls whose places are remembered; rows and tokens make many combinations.
MOST_CALLS = 4096


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a host array of a call lies in page-locked memory.

    Attributes:
        whole: the padded tensor.
        part: what belongs to the call; `whole` itself where nothing is padded.
        fill: value of the padding, or None where nothing is padded.
    """

    name: str
    whole: NDArray[Any]
    part: NDArray[Any]
    fill: int | None


@dataclass(frozen=True, eq=False)
class _Call:
    """A call of given shapes, with its places on the host.

    Attributes:
        work: what is enqueued.
        inputs: arrays to write.
        outputs: arrays to read.
        kept: outputs that stay, with their shapes.
    """

    work: Work
    inputs: tuple[_Place, ...]
    outputs: tuple[_Place, ...]
    kept: tuple[tuple[TensorSpec, tuple[int, ...]], ...]


class EngineGraph:
    """See `Graph`.

    Args:
        name: of the graph, for messages.
        spec: its tensors.
        engine: what runs it.
        device: shared with the other graphs.
        limits: what the engine takes.
        padding: values of padded entries by input; 0 for the others.
        capture: whether repeated calls are recorded as CUDA graphs.
        lasting: whether what it keeps stays until it keeps something again itself.
    """

    def __init__(
        self,
        name: str,
        spec: GraphSpec,
        engine: Engine,
        device: Device,
        limits: Limits,
        padding: Mapping[str, int],
        *,
        capture: bool,
        lasting: bool = False,
    ) -> None:
        self.name, self.spec = name, spec
        self.block = name if lasting else KEPT
        self.executor = Executor(name, engine, device, capture=capture)
        self._device = device
        self._limits = self._planned = limits
        self._padding = padding
        self._leading = leading_dim(spec)
        self._staging = Staging(device.cuda, device.stream)
        self._calls: dict[Hashable, _Call] = {}
        self._versions = device.arena.version, self._staging.version

    @property
    def limits(self) -> Limits:
        """What the engine takes."""
        return self._limits

    @property
    def planned(self) -> Limits:
        """What a run's plan leaves of it."""
        return self._planned

    def plan(self, most: Mapping[str, int], on_device: Collection[str]) -> None:
        """Make room on the host for the largest calls, and split those that are larger.

        Args:
            most: sizes of the named dimensions.
            on_device: as for `needs`.
        """
        self._planned = self._limits.lowered({k: v for k, v in most.items() if k in SPLIT})
        self._calls.clear()
        inputs, outputs, _ = self._crossing(self._limits.lowered(most).padded(most), on_device)
        self._staging.reserve(inputs.size, outputs.size)

    def needs(self, dims: Mapping[str, int], on_device: Collection[str]) -> tuple[int, int]:
        """Bytes that a call takes of the block that holds what it keeps, and of the turn block.

        Args:
            dims: sizes of the named dimensions.
            on_device: outputs that are kept, and inputs that were kept by another graph.
        """
        padded = self._limits.lowered(dims).padded(dims)
        inputs, outputs, kept = self._crossing(padded, on_device)
        return kept.size, inputs.size + outputs.size + self.scratch_bytes(padded)

    def _crossing(
        self, padded: Mapping[str, int], on_device: Collection[str]
    ) -> tuple[Layout, Layout, Layout]:
        """Lay out the inputs and outputs that cross, and the outputs that stay."""
        into, out = self.spec.inputs, self.spec.outputs
        return (
            Layout.of([tensor for tensor in into if tensor.name not in on_device], padded),
            Layout.of([tensor for tensor in out if tensor.name not in on_device], padded),
            Layout.of([tensor for tensor in out if tensor.name in on_device], padded),
        )

    def run(
        self, feeds: Mapping[str, Any], rows: int = 0, keep: Collection[str] = ()
    ) -> dict[str, Any]:
        """See `Graph.run`."""
        kept = tuple(sorted(keep))
        shapes = tuple((name, tuple(value.shape)) for name, value in feeds.items())
        held = tuple(
            (name, value.address) for name, value in feeds.items() if isinstance(value, KeptTensor)
        )
        self.follow()
        call = self._calls.get((shapes, held, kept))
        if call is None:
            dims = call_dims(self.name, self.spec, dict(shapes))
            parts = list(self._planned.parts(self.spec, dims))
            if len(parts) > 1 and not kept:
                return self._in_parts(feeds, parts)
            call = self._placed(dims, dict(held), kept)
            if len(self._calls) >= MOST_CALLS:
                self._calls.clear()
            self._calls[shapes, held, kept] = call
        return self._run(call, feeds)

    def _in_parts(self, feeds: Mapping[str, Any], parts: list[slice]) -> dict[str, Any]:
        leads = {t.name for t in self.spec.inputs if self._leading in t.shape}
        pieces: list[dict[str, Any]] = []
        for part in parts:
            own = {name: v[part] if name in leads else v for name, v in feeds.items()}
            pieces.append(self.run(own))
        return {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}

    def _placed(
        self, dims: dict[str, int], held: Mapping[str, int], kept: tuple[str, ...]
    ) -> _Call:
        """Find places for a call, which may move everything that was there."""
        padded = self._planned.padded(dims)
        fed = [tensor for tensor in self.spec.inputs if tensor.name not in held]
        read = [tensor for tensor in self.spec.outputs if tensor.name not in kept]
        left = [tensor for tensor in self.spec.outputs if tensor.name in kept]
        inputs, outputs, stay = self._crossing(padded, {*held, *kept})
        scratch = self.scratch_bytes(padded)
        arena, staging = self._device.arena, self._staging
        arena.reserve(**{self.block: stay.size, "turn": inputs.size + outputs.size + scratch})
        staging.reserve(inputs.size, outputs.size)
        self.follow()

        turn, base = arena.address("turn"), arena.address(self.block)
        out_at = turn + inputs.size
        addresses = dict(held)
        addresses.update({name: turn + at for name, at in inputs.offsets.items()})
        addresses.update({name: out_at + at for name, at in outputs.offsets.items()})
        addresses.update({name: base + at for name, at in stay.offsets.items()})
        going, coming = staging.inputs(inputs.size), staging.outputs(outputs.size)
        cuda, stream = self._device.cuda, self._device.stream
        work = Work(
            key=(tuple(padded.items()), tuple(held.items()), kept),
            shapes=self.input_shapes(padded),
            addresses=addresses,
            scratch=(out_at + outputs.size, scratch),
            before=partial(cuda.to_device, turn, going, stream),
            after=partial(cuda.to_host, coming, out_at, stream),
        )
        return _Call(
            work,
            tuple(self._place(going, inputs.offsets[t.name], t, dims, padded) for t in fed),
            tuple(self._place(coming, outputs.offsets[t.name], t, dims, padded) for t in read),
            tuple((tensor, shape_of(tensor, padded)) for tensor in left),
        )

    def _place(
        self, memory: Any, offset: int, tensor: TensorSpec, dims: dict[str, int],
        padded: dict[str, int],
    ) -> _Place:  # fmt: skip
        whole = view(memory, offset, tensor, padded)
        shape = shape_of(tensor, dims)
        part = whole[tuple(slice(size) for size in shape)]
        fill = None if shape == whole.shape else self._padding.get(tensor.name, 0)
        return _Place(tensor.name, whole, part, fill)

    def _run(self, call: _Call, feeds: Mapping[str, Any]) -> dict[str, Any]:
        device = self._device
        for value in feeds.values():
            if isinstance(value, KeptTensor):
                device.arena.check(value)
        for place in call.inputs:
            if place.fill is not None:
                place.whole.fill(place.fill)
            write(place.part, feeds[place.name])
        self.executor.submit(call.work)
        results: dict[str, Any] = {}
        if call.kept:
            generation = device.arena.next_generation(self.block)
            for tensor, shape in call.kept:
                address = call.work.addresses[tensor.name]
                results[tensor.name] = KeptTensor(
                    shape, tensor.dtype, address, generation, self.block
                )
        if call.outputs:
            device.stream.synchronize()
            results.update({place.name: read(place.part) for place in call.outputs})
        return results

    def input_shapes(self, dims: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs at given sizes."""
        return {tensor.name: shape_of(tensor, dims) for tensor in self.spec.inputs}

    def scratch_bytes(self, dims: Mapping[str, int]) -> int:
        """Scratch memory of a call of given sizes."""
        return self.executor.scratch_bytes(self.input_shapes(dims))

    def follow(self) -> None:
        """Drop what refers to addresses that are gone."""
        versions = self._device.arena.version, self._staging.version
        if self._versions != versions:
            self._calls.clear()
            self.executor.forget()
            self._versions = versions

    def close(self) -> None:
        """Release contexts, recordings and host memory."""
        self._calls.clear()
        self.executor.close()
        self._staging.close()
