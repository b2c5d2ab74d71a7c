"""What every head sampler is, and where it runs.

A `ChainSampler` draws from the chain of head steps; others (`solver`) have timesteps of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from ..arrays import Float32, Int64
from . import native
from .request import DeviceEvaluate, Evaluate, HeadReport, HeadRequest
from .schedule import HeadSchedule


class HeadSampler(ABC):
    """Draws the tokens of a request.

    | code | runs | where |
    | --- | --- | --- |
    | `_on_device` | beside the network | the network offers it (`DeviceEvaluate`) |
    | `_compiled` | in C++ on the host | the host library was built |
    | `_plain` | in NumPy | anywhere |
    """

    @property
    @abstractmethod
    def timesteps(self) -> Int64 | Float32:
        """Training timestep of each head step, `[S]` in 0..999."""

    def run(self, evaluate: Evaluate, request: HeadRequest) -> HeadReport:
        """Draw tokens. This is where it is decided which code does it.

        Raises:
            NumericsError: an output of the network is not finite.
            BackendError: the device failed, or the host library that was asked for is not there.
        """
        if isinstance(evaluate, DeviceEvaluate):
            report = self._on_device(evaluate, request)
            if report is not None:
                return report
        run = self._compiled if native.available() else self._plain
        return run(evaluate, request)

    @property
    @abstractmethod
    def largest_window(self) -> int:
        """Rows of a token in one evaluation at most."""

    def _on_device(self, evaluate: DeviceEvaluate, request: HeadRequest) -> HeadReport | None:
        """Sample where the network runs; None where the host has to do it."""
        del evaluate, request
        return None

    @abstractmethod
    def _compiled(self, evaluate: Evaluate, request: HeadRequest) -> HeadReport:
        """Sample in compiled code."""

    @abstractmethod
    def _plain(self, evaluate: Evaluate, request: HeadRequest) -> HeadReport:
        """Sample in NumPy."""


class ChainSampler(HeadSampler):
    """Draws from the chain of reverse transitions.

    Args:
        schedule: the head schedule.
    """

    def __init__(self, schedule: HeadSchedule) -> None:
        self.schedule = schedule

    @property
    def timesteps(self) -> Int64:
        """See `HeadSampler.timesteps`."""
        return self.schedule.timesteps
