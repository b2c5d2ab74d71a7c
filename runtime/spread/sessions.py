"""Where pieces of a job are done: in one session, or in those of a cluster, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from ..session import Session

Made = TypeVar("Made")
Piece = tuple[Any, ...]


class Sessions(Protocol):
    """One session or several, all of which make the same of the same piece."""

    def map(self, work: Callable[..., Made], pieces: Sequence[Piece]) -> Iterator[Made]:
        """Call `work(session, *piece)` for each piece; yields what it returns, in their order.

        Args:
            work: a function of a module, which other processes can import.
            pieces: arguments and results are values that can be pickled.

        Raises:
            CsdError: what `work` raises, or the workers die.
        """
        ...


class OneSession:
    """The session of this process, which does one piece after the other.

    Args:
        session: that is open.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def map(self, work: Callable[..., Made], pieces: Sequence[Piece]) -> Iterator[Made]:
        """See `Sessions.map`."""
        for piece in pieces:
            yield work(self._session, *piece)
