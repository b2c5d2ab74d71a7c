"""What enqueues an engine: contexts with shapes, addresses and scratch memory, and recordings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import BackendError
from .binding import Binding, Engine
from .capture import Recordings
from .cuda import Cuda, Stream
from .memory import ALIGNMENT, Arena, aligned

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Device:
    """What the graphs of a session share."""

    binding: Binding
    cuda: Cuda
    stream: Stream
    arena: Arena


@dataclass(frozen=True, eq=False)
class Work:
    """A call of an engine, and what is enqueued around it.

    Attributes:
        key: two works of one key enqueue the same, so that one may be recorded for the other.
        shapes: of all inputs.
        addresses: of all tensors.
        scratch: address and bytes.
        before: enqueues what comes before the engine.
        after: enqueues what comes after it.
    """

    key: Hashable
    shapes: Shapes
    addresses: Mapping[str, int]
    scratch: tuple[int, int]
    before: Callable[[], None]
    after: Callable[[], None]


class Executor:
    """Enqueues one engine.

    Args:
        name: of the graph, for messages.
        engine: what to run.
        device: shared with others.
        capture: whether repeated works are recorded as CUDA graphs.
    """

    def __init__(self, name: str, engine: Engine, device: Device, *, capture: bool) -> None:
        self._name, self._engine, self._device = name, engine, device
        self._context = device.binding.create_context(engine, captured=False)
        self._bound: Hashable = None  # key of the work that the shared context is set up for
        self._scratch: dict[Hashable, int] = {}
        self.recordings = Recordings(device.cuda, device.stream, enabled=capture)

    def scratch_bytes(self, shapes: Shapes) -> int:
        """Scratch memory that a call of these shapes needs."""
        key = tuple(shapes.items())
        if key not in self._scratch:
            binding = self._device.binding
            binding.set_shapes(self._context, shapes)
            self._scratch[key] = max(
                ALIGNMENT, aligned(binding.scratch_bytes(self._context, self._engine))
            )
            self._bound = None
        return self._scratch[key]

    def submit(self, work: Work) -> None:
        """Enqueue a work, by its recording where there is one.

        Raises:
            BackendError: the library refuses.
        """
        if self.recordings.launch(work.key):
            return
        if self.recordings.due(work.key) and self._record(work):
            return
        if self._bound != work.key:
            self._bound = None  # until it is set up as a whole
            if needed := self._bind(self._context, work):
                raise BackendError(
                    f"{self._name} needs {needed} bytes of scratch for shapes that needed "
                    f"{work.scratch[1]} before: build its engine again"
                )
            self._bound = work.key
        self._enqueue(self._context, work)

    def _record(self, work: Work) -> bool:
        """Enqueue a work with a context of its own and record it; False where it is not done."""
        binding, stream = self._device.binding, self._device.stream
        context = binding.create_context(self._engine, captured=True)
        if needed := self._bind(context, work):
            self.recordings.refuse(
                f"a recording needs {needed} bytes of scratch, a plain call {work.scratch[1]}"
            )
            return False
        self._enqueue(context, work)  # once, before it is recorded
        if binding.is_capturable(context, stream):
            self.recordings.record(work.key, context, lambda: self._enqueue(context, work))
        else:
            self.recordings.refuse("the library says that this engine cannot be recorded")
        if self.recordings.refusal is not None:
            stream.synchronize()  # nobody keeps this context, and its call is under way
            binding.forget_messages()
        return True

    def _bind(self, context: Any, work: Work) -> int:
        """Set a context up; returns 0, or the scratch bytes it needs where the work has less."""
        binding = self._device.binding
        binding.set_shapes(context, work.shapes)
        needed = binding.scratch_bytes(context, self._engine)
        if needed > work.scratch[1]:
            return needed
        binding.set_scratch(context, *work.scratch)
        for name, address in work.addresses.items():
            binding.set_address(context, name, address)
        return 0

    def _enqueue(self, context: Any, work: Work) -> None:
        work.before()
        self._device.binding.enqueue(context, self._device.stream)
        work.after()

    def forget(self) -> None:
        """Drop what refers to addresses that are gone."""
        self.recordings.clear()
        self._bound = None

    def close(self) -> None:
        """Release contexts and recordings."""
        self.forget()
        self._context = None
