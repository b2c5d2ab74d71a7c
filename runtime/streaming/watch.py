"""The time of a run that its consumer interrupts."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from ..backends import Backend, Timed


class Watch:
    """Times a run: by the wall's clock, and by the device's where there is one.

    A consumer's time is no part of a run. The device has nothing to do then, as every AR step ends
    with its tokens on the host, so its clock is corrected by the same.

    Args:
        backend: what runs the graphs.
    """

    def __init__(self, backend: Backend) -> None:
        self._clock = backend.clock if isinstance(backend, Timed) else None
        self._began, self._paused = time.perf_counter(), 0.0
        if self._clock is not None:
            self._clock.start()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Leave out the time inside."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    def stop(self) -> tuple[float, float | None]:
        """Seconds, and the device's."""
        seconds = time.perf_counter() - self._began - self._paused
        return seconds, None if self._clock is None else self._clock.stop() - self._paused
