from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from csd.runtime import Bundle, GenerateOptions, SeededNoise

# One of every way to decode, and quick.
WAYS = {
    "target": GenerateOptions(num_iter=6, head_steps=4),
    "draft": GenerateOptions(mode="draft", num_iter=6, head_steps=4),
    "block": GenerateOptions(mode="csd", num_iter=8, head_steps=4, gamma=3),
    "prefix": GenerateOptions(
        mode="csd", num_iter=8, head_steps=4, gamma=3, verify="prefix", inner_temperature=1.0
    ),
    "guided": GenerateOptions(mode="csd", num_iter=8, head_steps=4, gamma=3, cfg=2.0),
    "speculative": GenerateOptions(num_iter=6, head_steps=20, head="speculative"),
}
every_way = pytest.mark.parametrize("way", WAYS)
LABELS = [3, 1, 4]
SEED = 5
SECONDS = 60  # that a test waits for a thread


@pytest.fixture(scope="module")
def wanted(tiny_bundle):
    """What a fresh session generates: tokens and images of every way."""
    made = {}
    for way, options in WAYS.items():
        with Bundle.open(tiny_bundle).session(threads=1) as session:
            made[way] = session.generate(LABELS, options, seed=SEED)
    return made


@pytest.fixture(scope="module")
def session(tiny_bundle):
    with Bundle.open(tiny_bundle).session(threads=1) as session:
        yield session


class MeddlingNoise(SeededNoise):
    """Noise of a seed that does something when it is asked for the k-th time."""

    def __init__(self, call: int, meddle: Callable[[], object]) -> None:
        super().__init__(SEED)
        object.__setattr__(self, "left", [call])
        object.__setattr__(self, "meddle", meddle)

    def initial(self, images, positions, channels):
        self.left[0] -= 1
        if self.left[0] == 0:
            self.meddle()
        return super().initial(images, positions, channels)


class Gate:
    """Holds whoever passes until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(SECONDS)


class Worker(threading.Thread):
    """A thread whose result or error is had by `done`."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work, self._made, self._error = work, None, None
        self.start()

    def run(self) -> None:
        try:
            self._made = self._work()
        except BaseException as error:
            self._error = error

    def done(self):
        self.join(SECONDS)
        assert not self.is_alive(), "the thread hangs"
        if self._error is not None:
            raise self._error
        return self._made
