"""What a backend offers: open a graph of a bundle, run it on named arrays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ...plugins.rounds import Finished, Start

Array = NDArray[Any]
# Sizes of the named dimensions of a call, as `{"B": 2, "V": 10, "P": 3}`.
Dims = Mapping[str, int]


class Check(Protocol):
    """Checks files of a bundle, by name, before they are loaded: `verification.py:FileCheck`."""

    def __call__(self, names: Iterable[str]) -> None:
        """Check files that are data."""
        ...

    def code(self, name: str) -> None:
        """Check a file that is run."""
        ...


class _Unchecked:
    def __call__(self, names: Iterable[str]) -> None:
        del names

    def code(self, name: str) -> None:
        del name


# Takes files as they are.
unchecked: Check = _Unchecked()


@dataclass(frozen=True)
class GraphDemand:
    """The largest calls that a run makes of a graph, and what a backend may do about them.

    Attributes:
        sizes: of the named dimensions.
        shrinks: the dimension of which the caller takes less, where the backend grants less.
        least: what it must be granted at least.
        on_device: outputs that stay on the device, and inputs that stayed there.
        reader: graph that is called with what stayed on the device, so with the same sizes.
        alike: for a dimension, the graphs of all models that get the same size of it.
    """

    sizes: Mapping[str, int]
    shrinks: str
    least: int = 1
    on_device: tuple[str, ...] = ()
    reader: str | None = None
    alike: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


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
                until any graph of the backend keeps something again; of a graph that was opened
                as a lasting one, until this graph does.

        Returns:
            Arrays, and device tensors for what was kept.

        Raises:
            BackendError: the call does not fit the graph, or the library failed.
        """
        ...


@runtime_checkable
class BindableGraph(Graph, Protocol):
    """A graph of the host, for calls that repeat at the same addresses."""

    def dtype(self, name: str) -> np.dtype[Any]:
        """Type of an input or output, which the arrays of `bind` must have."""
        ...

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
    """Runs the graphs of one bundle: opens them, plans their memory and reports what it is."""

    name: str

    def open(
        self, graph: str, padding: Mapping[str, int] | None = None, *, lasting: bool = False
    ) -> Graph:
        """Load a graph of the bundle; once, however often it is asked for.

        Args:
            graph: its name in the manifest.
            padding: values of entries that a backend adds to an input; 0 where not given.
            lasting: what the graph keeps stays until it keeps something again itself.

        Raises:
            BackendError: it cannot be loaded here.
        """
        ...

    def head_rounds(self, graph: str) -> HeadRounds | None:
        """What runs the head sampler on the device with a graph that is open.

        None where the host does it; `versions` then says why, if the backend has such kernels.

        Raises:
            BackendError: kernels that the user named (`CSD_KERNELS`) do not fit.
        """
        ...

    def prepare(self, demand: Mapping[str, GraphDemand]) -> Mapping[str, Dims]:
        """Make room for a run, given the largest calls that it makes of each graph.

        Returns:
            The sizes granted. Graphs split calls that are larger in their leading dimension; a
            caller keeps to the other ones.

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
