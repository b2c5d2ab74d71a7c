"""Many images in one session: memory stays flat, and one seed stays one image."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from csd.runtime import Bundle, GenerateOptions

from ..runtime.streaming.test_memory import ROOM_BYTES, resident
from .answers import Case
from .place import Place

QUICK, ALL = 40, 1000
# Before what is counted: buffers of the allocator and of the graphs.
WARM = 60


def cases(place: Place, everything: bool) -> Iterator[Case]:
    """One case for each way to decode."""
    for way in ("target", "draft", "csd"):
        yield Case(f"images of {way}", _flat(place, way, ALL if everything else QUICK))


def _flat(place: Place, mode: str, images: int) -> Callable[[], str | None]:
    def fault() -> str | None:
        options = GenerateOptions(mode=mode, num_iter=3, head_steps=2, gamma=2)
        with Bundle.open(place.bundle).session(threads=1) as session:

            def make(number: int) -> bytes:
                made = session.generate([number % 10], options, first_image=number)
                return made.images.tobytes()

            first = make(0)
            for number in range(WARM):
                make(number)
            before = resident()
            for number in range(images):
                make(number)
            grown = resident() - before
            if grown >= ROOM_BYTES:
                return f"{images} images took {grown >> 10} KiB that stayed"
            return None if make(0) == first else f"after {images} images the first is another one"

    return fault
