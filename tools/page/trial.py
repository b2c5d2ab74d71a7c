"""A run that is watched: the setting first, then the target with the same noise."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ...runtime.result import GenerateResult
from ...runtime.session import Session
from ...runtime.streaming.event import StreamEvent
from ...runtime.streaming.stream import Stream
from .controls import Choice
from .overlay import Image, marked, no_marks, tinted


@dataclass(frozen=True, eq=False)
class Shown:
    """What there is to see.

    Attributes:
        doing: how far it is, in words.
        picture: of the setting so far, uint8 `[H, W, 3]`; None before the first AR step.
        beside: of the target so far, likewise.
        verdicts: of the setting when it is done, with its tokens tinted; None where nothing is
            drafted.
        made: of the setting, when it is done.
        target: of the target, when all is done.
    """

    doing: str
    picture: Image | None = None
    beside: Image | None = None
    verdicts: Image | None = None
    made: GenerateResult | None = None
    target: GenerateResult | None = None


class Run:
    """What a button stops, from any thread, before the run begins or in the middle of it.

    Attributes:
        stopped: whether it was.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._stream: Stream | None = None

    def stop(self) -> None:
        """Cancel what is decoded, and what would be decoded next."""
        self.stopped = True
        if self._stream is not None:
            self._stream.cancel()

    @contextmanager
    def following(self, stream: Stream) -> Generator[Stream]:
        """Have a stream cancelled by `stop`; leaving the block cancels it too."""
        self._stream = stream
        if self.stopped:
            stream.cancel()
        with stream:
            yield stream


def watch(session: Session, choice: Choice, run: Run) -> Generator[Shown]:
    """Decode, and yield what there is to see after each AR step and verification.

    The last that is yielded has both results, unless the run was stopped.

    Args:
        session: of the bundle.
        choice: what to decode.
        run: stops it.

    Raises:
        CsdError: as for `Session.stream`.
    """
    shown = Shown("waiting")
    marks = no_marks(session.bundle.manifest.target.seq_len)
    with run.following(_stream(session, choice)) as stream:
        for event in stream:
            judged = event.positions[0], event.accepted[0], event.resampled[0]
            marks = marked(marks, *judged)
            picture = tinted(event.images()[0], marks)
            shown = replace(shown, doing=_progress(choice.options.mode, event), picture=picture)
            yield shown
    if run.stopped:
        yield replace(shown, doing="stopped")
        return
    made = stream.result
    picture = made.images[0]
    verdicts = tinted(picture, marks) if made.stats.drafted else None
    shown = replace(
        shown, doing="the target comes next", picture=picture, verdicts=verdicts, made=made
    )
    yield shown
    with run.following(_stream(session, choice.of_target)) as stream:
        for event in stream:
            doing = _progress("target, for comparison", event)
            shown = replace(shown, doing=doing, beside=event.images()[0])
            yield shown
    if run.stopped:
        yield replace(shown, doing="stopped")
        return
    target = stream.result
    yield replace(shown, doing="done", beside=target.images[0], target=target)


def _stream(session: Session, choice: Choice) -> Stream:
    return session.stream([choice.label], choice.options, seed=choice.seed)


def _progress(what: str, event: StreamEvent) -> str:
    return f"{what}: AR step {event.progress.done} of {event.progress.total}"
