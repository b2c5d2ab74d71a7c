"""Workers on a cluster: who has which piece, and what happens when one of them dies.

Results come in the order of the pieces, whoever made them. A piece whose worker died is made again,
by whoever is free; what was handed over is not.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from ..command.frame import raise_if_stopped
from ..command.line.logs import logger
from ..command.text import first_line
from ..errors import CsdError
from .sessions import Piece
from .worker import Order, Refusal, Worker

Made = TypeVar("Made")

# Pieces of a worker at a time: the next one is there when one is done.
QUEUED = 2
# Pieces, for each worker, that may be done before an earlier one is.
AHEAD = 4
MOST_DEATHS = 3
# How long nothing may go on before it is said that the cluster has no room.
PATIENCE = 300.0
_TICK = 0.5
_LOG = logger(__name__)


@dataclass(frozen=True)
class Share:
    """What of a cluster each worker has.

    Attributes:
        workers: how many there are.
        threads: CPU threads of each.
        cpus: cores of each that the cluster counts as taken, a fraction where several share one.
        gpus: the same, of GPUs.
    """

    workers: int
    threads: int
    cpus: float
    gpus: float


def share_of(
    cpus: float, gpus: float, *, on_gpu: bool, workers: int | None, threads: int | None, most: int
) -> Share:
    """Divide a cluster: a worker for each GPU, or for each group of cores.

    Args:
        cpus: cores of the cluster.
        gpus: GPUs of the cluster.
        on_gpu: whether the backend runs on a GPU.
        workers: that were asked for, or None.
        threads: of a worker that were asked for, or None.
        most: pieces of the job: more workers would have nothing to do.

    Raises:
        CsdError: the cluster has no GPU, and one is needed.
    """
    cores = max(1, int(cpus))
    if on_gpu and gpus < 1:
        raise CsdError(
            "the Ray cluster has no GPU, which the backend runs on: add a node with one, or give "
            "--backend onnxruntime"
        )
    default = int(gpus) if on_gpu else max(1, cores // (threads or 2))
    count = max(1, workers or default)
    of_each = cores // count or cores / count
    threads = threads or max(1, int(of_each) if workers else min(2, cores))
    taken = min(float(threads), of_each)
    return Share(
        workers=min(count, max(1, most)),
        threads=threads,
        cpus=taken,
        gpus=0.0 if not on_gpu else 1.0 if count <= gpus else gpus / count,
    )


@contextmanager
def workers_on(ray: Any, order: Order, share: Share) -> Generator[Pool]:
    """Have workers on a cluster, which end with the block however that is left.

    Args:
        ray: the module, connected.
        order: what each of them opens.
        share: how many there are, and what each takes.
    """
    pool = Pool(ray, order, share)
    try:
        yield pool
    finally:
        pool.close()


class Pool:
    """Workers of one order; see `workers_on`."""

    def __init__(self, ray: Any, order: Order, share: Share) -> None:
        self._ray, self._order, self._share = ray, order, share
        # Restarts are ours: Ray's would not say that there was one.
        self._kind = ray.remote(Worker).options(
            num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0, max_task_retries=0,
            scheduling_strategy="SPREAD",
        )  # fmt: skip
        self._opening: dict[Any, Any] = {}
        self._open: list[Any] = []
        self._died_opening = 0
        for _ in range(share.workers):
            self._begin()

    def _begin(self) -> None:
        worker = self._kind.remote(self._order)
        self._opening[worker.open.remote()] = worker

    def close(self) -> None:
        """End the workers, in the middle of their pieces if need be."""
        for worker in (*self._open, *self._opening.values()):
            self._ray.kill(worker)
        self._open, self._opening = [], {}

    def map(self, work: Callable[..., Made], pieces: Sequence[Piece]) -> Iterator[Made]:
        """See `Sessions.map`.

        Raises:
            CsdError: what `work` raised, a node cannot take part, a piece's workers died again and
                again, or the cluster has no room.
        """
        job = _Job(pieces, AHEAD * self._share.workers)
        since = time.monotonic()
        for wanted in range(len(pieces)):
            while wanted not in job.made:
                self._hand_out(work, job, wanted)
                waiting = [*job.running, *self._opening]
                ready, _ = self._ray.wait(waiting, num_returns=1, timeout=_TICK)
                raise_if_stopped()
                since = time.monotonic() if ready or job.running else since
                for done in ready:
                    if done in self._opening:
                        self._note_open(done)
                    else:
                        self._note_made(done, job)
                if time.monotonic() - since > PATIENCE:
                    raise CsdError(
                        f"no worker of the Ray cluster began within {PATIENCE:.0f} s, with "
                        f"{self._share.cpus:g} cores and {self._share.gpus:g} GPUs each: end what "
                        "else runs there, or give --ray-workers more of them"
                    )
            yield job.taken(wanted)

    def _hand_out(self, work: Callable[..., Any], job: _Job, wanted: int) -> None:
        """Give pieces to the workers that have the fewest."""
        has = Counter(worker for _, worker in job.running.values())
        while self._open and (number := job.next(wanted)) is not None:
            worker = min(self._open, key=lambda each: has[each])
            if has[worker] >= QUEUED:
                return
            job.todo.popleft()
            has[worker] += 1
            job.running[worker.run.remote(work, *job.pieces[number])] = number, worker

    def _note_open(self, done: Any) -> None:
        worker = self._opening.pop(done)
        try:
            answer = self._value(done)
        except self._ray.exceptions.RayActorError as error:
            self._died_opening += 1
            if self._died_opening > MOST_DEATHS:
                raise CsdError(
                    f"workers of the Ray cluster die before they work ({_last_line(error)}): have "
                    "csd and what the backend needs on each node, and enough memory"
                ) from error
            self._begin()
            return
        if isinstance(answer, Refusal):
            raise CsdError(answer.message)
        self._open.append(worker)

    def _note_made(self, done: Any, job: _Job) -> None:
        number, worker = job.running.pop(done)
        try:
            job.made[number] = self._value(done)
        except self._ray.exceptions.RayActorError as error:
            job.give_back(number, error)
            if worker in self._open:  # the first of its pieces that tells
                self._open.remove(worker)
                _LOG.warning("a worker died, and what it was making is made again")
                self._begin()

    def _value(self, done: Any) -> Any:
        try:
            return self._ray.get(done)
        except self._ray.exceptions.RayTaskError as error:
            # As in one process; Ray's text, with the traceback of the worker, is its context.
            raise error.cause or error from error


class _Job:
    """The pieces of one `map`, by their numbers."""

    def __init__(self, pieces: Sequence[Piece], ahead: int) -> None:
        self.pieces, self._ahead = pieces, ahead
        self.todo = deque(range(len(pieces)))
        self.running: dict[Any, tuple[int, Any]] = {}
        self.made: dict[int, Any] = {}
        self._deaths: Counter[int] = Counter()

    def next(self, wanted: int) -> int | None:
        """The piece to hand out next; None where there is none, or too many wait for `wanted`."""
        number = self.todo[0] if self.todo else None
        return number if number is not None and number < wanted + self._ahead else None

    def give_back(self, number: int, error: Exception) -> None:
        """Have a piece made again."""
        self._deaths[number] += 1
        if self._deaths[number] > MOST_DEATHS:
            raise CsdError(
                f"{MOST_DEATHS + 1} workers died at the same images ({_last_line(error)}): give "
                "fewer --ray-workers, or fewer images at once, as they may lack memory"
            ) from error
        self.todo = deque(sorted((*self.todo, number)))

    def taken(self, number: int) -> Any:
        """What was made of a piece, which is forgotten."""
        made = self.made.pop(number)
        if isinstance(made, Refusal):
            raise CsdError(made.message)
        return made


def _last_line(error: Exception) -> str:
    """What Ray says of a death: the cause, where there is one, stands last."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else first_line(error)
