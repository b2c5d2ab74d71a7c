"""The turns of a session: one run at a time, whichever threads ask for one."""

from __future__ import annotations

import threading
from typing import Protocol

from ..errors import OptionError

_CLOSED = "the session is closed: open another one with Bundle.session"


class Holder(Protocol):
    """A run as the turns see it.

    Attributes:
        thread: the one that made it, or advanced it last (`threading.get_ident`).
        awaited: whether closing waits for its end, in place of cancelling it.
        cancelled: whether it shall end without having been finished.
    """

    thread: int
    awaited: bool
    cancelled: bool

    def cancel(self) -> None:
        """End the run: now, or where it is being advanced, at the end of that."""
        ...


class Turns:
    """Who may run. A turn is given back by whatever ends a run, as often as it likes.

    Attributes:
        working: held by the thread that computes, for an AR step or for a decoder; who holds it may
            take it again.
    """

    def __init__(self) -> None:
        self.working = threading.RLock()
        # Reentrant, as a stream that is dropped is ended wherever the interpreter finds it.
        self._changed = threading.Condition()
        self._holder: Holder | None = None
        self._closed = False

    def check_open(self) -> None:
        """Check that runs are still possible.

        Raises:
            OptionError: the session is closed, or is being closed.
        """
        if self._closed:
            raise OptionError(_CLOSED)

    def take(self, run: Holder) -> None:
        """Wait until a run has its turn, or is cancelled; note the thread that advances it.

        Raises:
            OptionError: this thread itself is in the middle of another run, or the session is
                closed.
        """
        run.thread = threading.get_ident()
        with self._changed:
            while self._holder is not run and not run.cancelled:
                self.check_open()
                if self._holder is None:
                    self._holder = run
                    return
                if self._holder.thread == run.thread:
                    raise OptionError(
                        "this thread has an unfinished stream of this session: finish it, call its "
                        "cancel(), or leave its with block"
                    )
                self._changed.wait()

    def give_back(self, run: Holder) -> None:
        """Let others run, if it is this run's turn."""
        with self._changed:
            if self._holder is run:
                self._holder = None
            self._changed.notify_all()

    def wake(self) -> None:
        """Let whoever waits look again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Give no more turns, and wait until there is no run any more.

        A run that is awaited in another thread is waited for; any other is cancelled.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            holder = self._holder
        if holder is None:
            return
        if not holder.awaited or holder.thread == threading.get_ident():
            holder.cancel()
        with self._changed:
            while self._holder is not None:
                self._changed.wait()
