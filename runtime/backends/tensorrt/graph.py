"""A graph run by an engine: inputs through page-locked memory, outputs back, one wait a call.

Device memory of a call, in the arena's turn block:

| part | holds |
| --- | --- |
| inputs | arrays that were given, one after another, copied in one piece |
| outputs | what is not kept, likewise |
| scratch | the execution context's own |

Device tensors are bound where they are; kept outputs lie in the arena's kept block.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from ...manifest import GraphSpec, TensorSpec
from ..base import Array
from ..shapes import SPLIT, Limits, call_dims, leading_dim, shape_of
from .binding import Binding, Engine
from .capture import Recordings
from .cuda import Cuda, Stream
from .memory import ALIGNMENT, Arena, KeptTensor, Layout, Staging, aligned, view

# Calls whose places are remembered; rows and tokens make many combinations.
MOST_CALLS = 4096


@dataclass(frozen=True, eq=False)
class Device:
    """What the graphs of a session share."""

    binding: Binding
    cuda: Cuda
    stream: Stream
    arena: Arena


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
    """A call of given shapes: places on the host, addresses on the device.

    Attributes:
        key: what a recording of it depends on.
        shapes: of all inputs, padded.
        addresses: of all tensors.
        inputs: arrays to write.
        outputs: arrays to read.
        kept: outputs that stay, with their shapes.
        copied: bytes that go in and come out.
        out_at: address of the outputs.
        scratch: address and bytes.
    """

    key: Hashable
    shapes: dict[str, tuple[int, ...]]
    addresses: dict[str, int]
    inputs: tuple[_Place, ...]
    outputs: tuple[_Place, ...]
    kept: tuple[tuple[TensorSpec, tuple[int, ...]], ...]
    copied: tuple[int, int]
    out_at: int
    scratch: tuple[int, int]


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
    ) -> None:
        self.name, self.spec = name, spec
        self._engine, self._device = engine, device
        self._limits = self._planned = limits
        self._padding = padding
        self._leading = leading_dim(spec)
        self._context = device.binding.create_context(engine, captured=False)
        self._staging = Staging(device.cuda, device.stream)
        self.recordings = Recordings(device.cuda, device.stream, enabled=capture)
        self._calls: dict[Hashable, _Call] = {}
        self._scratch: dict[Hashable, int] = {}
        self._versions = device.arena.version, self._staging.version
        self._bound: Hashable = None  # key of the call that the shared context is set up for

    @property
    def limits(self) -> Limits:
        """What the engine takes."""
        return self._limits

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
        """Bytes that a call takes of the arena's kept and turn blocks.

        Args:
            dims: sizes of the named dimensions.
            on_device: outputs that are kept, and inputs that were kept by another graph.
        """
        padded = self._limits.lowered(dims).padded(dims)
        inputs, outputs, kept = self._crossing(padded, on_device)
        return kept.size, inputs.size + outputs.size + self._scratch_bytes(padded)

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
        if self._versions != (self._device.arena.version, self._staging.version):
            self._forget()
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
        scratch = self._scratch_bytes(padded)
        arena, staging = self._device.arena, self._staging
        arena.reserve(stay.size, inputs.size + outputs.size + scratch)
        staging.reserve(inputs.size, outputs.size)
        if self._versions != (arena.version, staging.version):
            self._forget()

        turn, _ = arena.turn
        out_at = turn + inputs.size
        addresses = dict(held)
        addresses.update({name: turn + at for name, at in inputs.offsets.items()})
        addresses.update({name: out_at + at for name, at in outputs.offsets.items()})
        if left:
            base = arena.kept_address(stay.size)
            addresses.update({name: base + at for name, at in stay.offsets.items()})
        going, coming = staging.inputs(inputs.size), staging.outputs(outputs.size)
        return _Call(
            key=(tuple(padded.items()), tuple(held.items()), kept),
            shapes={tensor.name: shape_of(tensor, padded) for tensor in self.spec.inputs},
            addresses=addresses,
            inputs=tuple(self._place(going, inputs.offsets[t.name], t, dims, padded) for t in fed),
            outputs=tuple(
                self._place(coming, outputs.offsets[t.name], t, dims, padded) for t in read
            ),
            kept=tuple((tensor, shape_of(tensor, padded)) for tensor in left),
            copied=(inputs.size, outputs.size),
            out_at=out_at,
            scratch=(out_at + outputs.size, scratch),
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
            np.copyto(place.part, feeds[place.name], casting="same_kind")
        if not self.recordings.launch(call.key):
            self._enqueue_anew(call)
        results: dict[str, Any] = {}
        if call.kept:
            generation = device.arena.next_generation()
            for tensor, shape in call.kept:
                address = call.addresses[tensor.name]
                results[tensor.name] = KeptTensor(shape, tensor.dtype, address, generation)
        if call.outputs:
            device.stream.synchronize()
            results.update({place.name: _host_array(place) for place in call.outputs})
        return results

    def _enqueue_anew(self, call: _Call) -> None:
        """Enqueue a call that is not recorded, and record it where it repeats."""
        if not self.recordings.due(call.key):
            if self._bound != call.key:
                self._bind(self._context, call)
                self._bound = call.key
            self._enqueue(self._context, call)
            return
        binding = self._device.binding
        context = binding.create_context(self._engine, captured=True)
        self._bind(context, call)
        self._enqueue(context, call)  # once, before it is recorded
        if not binding.is_capturable(context, self._device.stream):
            self.recordings.refuse("the library says that this engine cannot be recorded")
            return
        self.recordings.record(call.key, context, lambda: self._enqueue(context, call))
        if self.recordings.refusal is not None:
            binding.forget_messages()

    def _bind(self, context: Any, call: _Call) -> None:
        binding = self._device.binding
        binding.set_shapes(context, call.shapes)
        needed = binding.scratch_bytes(context, self._engine)
        if needed > call.scratch[1]:
            raise BackendError(
                f"{self.name} needs {needed} bytes of scratch for shapes that needed "
                f"{call.scratch[1]} before: give --no-cuda-graph"
            )
        binding.set_scratch(context, *call.scratch)
        for name, address in call.addresses.items():
            binding.set_address(context, name, address)

    def _enqueue(self, context: Any, call: _Call) -> None:
        device, (going, coming) = self._device, call.copied
        turn, _ = device.arena.turn
        device.cuda.to_device(turn, self._staging.inputs(going), device.stream)
        device.binding.enqueue(context, device.stream)
        device.cuda.to_host(self._staging.outputs(coming), call.out_at, device.stream)

    def _scratch_bytes(self, padded: Mapping[str, int]) -> int:
        """Scratch bytes for given sizes."""
        key = tuple(padded.items())
        if key not in self._scratch:
            binding = self._device.binding
            shapes = {tensor.name: shape_of(tensor, padded) for tensor in self.spec.inputs}
            binding.set_shapes(self._context, shapes)
            self._scratch[key] = max(
                ALIGNMENT, aligned(binding.scratch_bytes(self._context, self._engine))
            )
            self._bound = None
        return self._scratch[key]

    def _forget(self) -> None:
        """Drop what refers to addresses that are gone."""
        self._calls.clear()
        self.recordings.clear()
        self._bound = None
        self._versions = self._device.arena.version, self._staging.version

    def close(self) -> None:
        """Release contexts, recordings and host memory."""
        self._forget()
        self._staging.close()
        self._context = None


def _host_array(place: _Place) -> Array:
    """A copy of what came out; bfloat16 as float32."""
    if place.part.dtype == np.uint16:
        return (place.part.astype(np.uint32) << 16).view(np.float32)
    return place.part.copy()
