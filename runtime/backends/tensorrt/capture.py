"""CUDA graphs of calls that repeat: copies in, network and copies out as one launch.

A call is recorded the second time it is made. Each recording has an execution context of its own,
as the vendor advises, because a context's state belongs to the shapes it was recorded with; all
share one scratch memory. Where a recording fails, the graph is run plainly from then on.

There are at most `MOST_RECORDINGS`, and none makes room for another: a graph with more shapes than
that (`backbone` has one for each AR step) would be recorded anew at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

from ...errors import BackendError
from .cuda import CaptureError, Cuda, Stream

MOST_RECORDINGS = 48


class Recordings:
    """Recorded calls of one graph, by key.

    Args:
        cuda: the CUDA runtime.
        stream: to record and launch on.
        enabled: False never records.

    Attributes:
        refusal: why nothing is recorded any more, or None.
    """

    def __init__(self, cuda: Cuda, stream: Stream, *, enabled: bool) -> None:
        self._cuda, self._stream, self._enabled = cuda, stream, enabled
        self._recorded: dict[Hashable, tuple[Any, Any]] = {}  # executable, context
        self._seen: set[Hashable] = set()
        self.refusal: str | None = None

    def __len__(self) -> int:
        return len(self._recorded)

    def launch(self, key: Hashable) -> bool:
        """Launch a recorded call; False where it is not recorded."""
        found = self._recorded.get(key)
        if found is None:
            return False
        self._cuda.launch(found[0], self._stream)
        return True

    def due(self, key: Hashable) -> bool:
        """Whether to record a call that is about to be made; True from its second time on."""
        if not self._enabled or len(self._recorded) >= MOST_RECORDINGS:
            return False
        if key in self._seen:
            return True
        self._seen.add(key)
        return False

    def record(self, key: Hashable, context: Any, enqueue: Callable[[], None]) -> None:
        """Record a call that was just enqueued once with this context."""
        self._cuda.begin_capture(self._stream)
        reason = ""
        try:
            try:
                enqueue()
            except BackendError as error:
                reason = str(error)
            executable = self._cuda.end_capture(self._stream)
        except CaptureError as error:
            self.refuse(reason or str(error))
            return
        except BaseException:  # as of Ctrl-C: the stream would go on recording
            self._abandon()
            raise
        if reason:
            self._cuda.destroy_graph(executable)
            self.refuse(reason)
            return
        self._recorded[key] = executable, context

    def _abandon(self) -> None:
        """Record this call no more, and leave the stream as it was."""
        with suppress(CaptureError):
            self._cuda.destroy_graph(self._cuda.end_capture(self._stream))
        self._stream.synchronize()  # nobody keeps the context, and its first call is under way

    def refuse(self, reason: str) -> None:
        """Record nothing any more."""
        self._enabled, self.refusal = False, reason

    def clear(self) -> None:
        """Drop all recordings, as when the addresses in them are gone."""
        if self._recorded:
            self._stream.synchronize()
        for executable, _ in self._recorded.values():
            self._cuda.destroy_graph(executable)
        self._recorded.clear()
        self._seen.clear()
