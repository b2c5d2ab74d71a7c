"""A run that is advanced by who watches it: `Session.stream` returns one."""

from __future__ import annotations

import threading
from collections.abc import Generator
from types import TracebackType

from ..errors import OptionError
from ..result import GenerateResult
from .event import StreamEvent
from .turns import Turns

Steps = Generator[StreamEvent, None, GenerateResult]


class Stream:
    """The events of a run, one after another; the run goes on when the next one is asked for.

    An iterator, and a context manager: leaving the block, or dropping the stream, cancels what is
    not finished. The session is this run's from the first event on until it is finished, cancelled
    or has failed. Threads may take turns in asking for events; two that ask at once get one each.

    Args:
        turns: of the session.
        steps: the run.
        awaited: whether closing the session waits for its end, in place of cancelling it.
    """

    def __init__(self, turns: Turns, steps: Steps, *, awaited: bool = False) -> None:
        self._run = _Run(turns, steps, awaited=awaited)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> StreamEvent:
        """Go on to the next event; a stream that was cancelled has no more.

        Raises:
            OptionError: this thread has another unfinished stream of the session, or the session
                is closed.
            BackendError: there is too little memory, or the backend failed.
            NumericsError: a network returned a value that is not finite.
        """
        event = self._run.next()
        if event is None:
            raise StopIteration
        return event

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        self.cancel()

    def __repr__(self) -> str:
        return f"<Stream: it {self._run.state}>"

    def cancel(self) -> None:
        """End the run, from whichever thread; nothing where it has ended already.

        Where another thread is waiting for an event, its loop ends without one, after the AR step
        (or verification) that is being computed, and this returns at once. What the run held is
        freed then, and the session is the next one's.
        """
        self._run.cancel()

    @property
    def result(self) -> GenerateResult:
        """What `Session.generate` returns, once all events were had.

        Raises:
            OptionError: the run is not finished, was cancelled, or has failed.
        """
        result = self._run.result
        if result is None:
            raise OptionError(f"this stream has no result: it {self._run.state}")
        return result


class _Run:
    """What a stream drives: apart from it, so that the session can know it and not keep it.

    Attributes:
        thread: see `Holder`, as for `awaited` and `cancelled`.
        result: once it is finished.
    """

    def __init__(self, turns: Turns, steps: Steps, *, awaited: bool) -> None:
        self._turns, self._steps = turns, steps
        self._advancing = threading.Lock()
        self._freed = False
        self.thread, self.awaited, self.cancelled = threading.get_ident(), awaited, False
        self.result: GenerateResult | None = None

    @property
    def state(self) -> str:
        """How it stands with the run, and what to do."""
        if self.result is not None:
            return "is finished"
        if self.cancelled:
            return "was cancelled, so make another one"
        if self._freed:
            return "has failed, so make another one"
        return "is unfinished, so take all its events first"

    def next(self) -> StreamEvent | None:
        """Return the next event, or None where there is none."""
        try:
            with self._advancing:
                return self._advance()
        finally:
            self._end_if_cancelled()

    def _advance(self) -> StreamEvent | None:
        if self._freed:
            return None
        self._turns.take(self)
        if self.cancelled:
            return None
        try:
            with self._turns.working:
                return next(self._steps)
        except StopIteration as finished:
            self.result = finished.value
            self._end()
            return None
        except BaseException:
            self._end()
            raise

    def cancel(self) -> None:
        """See `Stream.cancel`."""
        if not self._freed:
            self.cancelled = True
            self._turns.wake()
            self._end_if_cancelled()

    def _end_if_cancelled(self) -> None:
        """End a run that shall; where a thread advances it, that one does so afterwards."""
        if self.cancelled and not self._freed and self._advancing.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._advancing.release()

    def _end(self) -> None:
        """Free what the run holds, and let others run; again, where a signal came in between."""
        try:
            self._steps.close()
        finally:
            self._turns.give_back(self)
        self._freed = True
