"""What a backend offers: open a graph of a bundle, run it on named arrays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from ...plugins.rounds import Finished, Start
from ..manifest import Manifest

Array = NDArray[Any]
# Sizes of the named dimensions of a call, as `{"B": 2, "V": 10, "P": 3}`.
Dims = Mapping[str, int]


class DeviceTensor(Protocol):
    """An output that stayed on the device; feed it to another graph of the same backend."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        ...


Value = Array | DeviceTensor


class Graph(Protocol):
    """A loaded network."""

    def run(
        self, feeds: Mapping[str, Any], rows: int = 0, keep: Collection[str] = ()
    ) -> dict[str, Any]:
        """Run on named inputs and return the named outputs.

        Args:
            feeds: arrays, or device tensors of the same backend.
            rows: how many rows the weights multiply, where the caller knows: a hint for threads.
            keep: outputs to leave on the device, where the backend has one. What is kept is good
                until any graph of the backend keeps something again.

        Returns:
            Arrays, and device tensors for what was kept.

        Raises:
            BackendError: the call does not fit the graph, or the library failed.
        """
        ...


@runtime_checkable
class BindableGraph(Graph, Protocol):
    """A graph of the host, for calls that repeat at the same addresses."""

    def bind(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: int = 0
    ) -> Callable[[], None]:
        """Return a call of the graph that reads and writes these very arrays.

        Args:
            inputs: dense arrays of the inputs' types, all of them.
            outputs: dense arrays for all outputs.
            rows: as for `run`.

        Raises:
            ValueError: an array is not dense. The call raises `BackendError` as `run` does.
        """
        ...


class HeadRounds(Protocol):
    """Runs the rounds of the speculative head sampler where the network runs."""

    def run(self, start: Start, mods: Any) -> tuple[Finished, int, int] | None:
        """Sample N tokens.

        Args:
            start: noise, draft, windows and streams.
            mods: kept by `head_modulation`.

        Returns:
            What was made, network calls, and rows of them (one of a guided pair). None where the
            host has to do it: too many channels or rows, other generators or types, too little
            memory.

        Raises:
            NumericsError: the network was not finite.
            BackendError: the device failed.
        """
        ...


class DeviceClock(Protocol):
    """Times work by the device's own clock."""

    def start(self) -> None:
        """Begin where the device is when it has done what was enqueued before.

        Raises:
            BackendError: the device failed.
        """
        ...

    def stop(self) -> float:
        """Wait for what was enqueued since; returns its seconds, pauses of the device included.

        Raises:
            BackendError: the device failed.
        """
        ...


@runtime_checkable
class Timed(Protocol):
    """A backend whose device has a clock; not all have one, so it is no part of `Backend`."""

    @property
    def clock(self) -> DeviceClock:
        """Times what the backend enqueues."""
        ...


class Backend(Protocol):
    """Opens graphs, plans their memory and reports what it is."""

    name: str

    def open(self, folder: Path, manifest: Manifest, graph: str) -> Graph:
        """Load a graph of a bundle.

        Args:
            folder: the bundle's directory.
            manifest: what is in it.
            graph: name in `manifest.graphs`.

        Raises:
            BackendError: it cannot be loaded here.
        """
        ...

    def head_rounds(self, folder: Path, graph: str) -> HeadRounds | None:
        """What runs the head sampler on the device with a graph that is open.

        None where the host does it; `versions` then says why, if the backend has such kernels.

        Raises:
            BackendError: kernels that the user named (`CSD_KERNELS`) do not fit.
        """
        ...

    def prepare(self, demand: Mapping[str, Dims]) -> Mapping[str, Dims]:
        """Make room for a run, given the largest sizes that each graph will be asked for.

        Returns:
            The sizes granted. A caller must keep to those of `N`; graphs split calls that are
            larger in the other dimensions themselves.

        Raises:
            BackendError: the device has too little memory, or the limit that was given is.
        """
        ...

    @property
    def device_memory(self) -> int | None:
        """Peak of the device memory that weights, tensors and scratch took, in bytes.

        None where nobody counts it.
        """
        ...

    def versions(self) -> dict[str, str]:
        """Library versions and device, for reports."""
        ...

    def close(self) -> None:
        """Release what the device holds; graphs are of no use afterwards."""
        ...
