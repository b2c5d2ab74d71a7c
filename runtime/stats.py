"""What a run took: seconds by part, network evaluations, drafted and accepted tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Float32
from .head import HeadReport

PARTS = (
    "draft backbone",
    "draft head",
    "target backbone",
    "target head",
    "refresh check",
    "accept/resample",
    "decoder",
)


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        done: AR steps finished.
        total: AR steps in all.
        accepted: draft tokens accepted so far.
        drafted: draft tokens verified so far.
        local: calls of a backbone so far that were local.
        error: largest error figure of an image so far (`Stats.largest_error`); None without one.
    """

    done: int
    total: int
    accepted: int
    drafted: int
    local: int = 0
    error: float | None = None

    @classmethod
    def of(cls, stats: Stats, done: int, total: int) -> Progress:
        """Return how far a run is that has done so many AR steps."""
        local = sum(stats.local_steps.values())
        return cls(done, total, stats.accepted, stats.drafted, local, stats.largest_error)


@dataclass(repr=False)
class Stats:
    """Counts and times of a run.

    Attributes:
        seconds: wall-clock seconds in all, to the end of the last wait for a device, without those
            that the consumer of a stream or a progress callback took between two AR steps.
        device_seconds: the same by the device's own clock, between an event before the run and one
            after it; None on a host, and where the backend has no such clock.
        parts: seconds by part (`PARTS`).
        ar_steps: AR steps decoded, prefix verification's repeated ones included.
        guided_ar_steps: of them, those with guidance, whose networks ran for two branches.
        full_steps: calls of the backbone that computed all rows, by model.
        local_steps: calls of the backbone that computed the rows of new tokens and queries, by
            model.
        backbone_rows: rows that blocks of the backbone computed, by model, those of checks and of
            both branches included.
        backbone_rows_full: the same if every call had computed all rows and none was a check.
        displacement: for a model and an image, by its number: sum of squares of what the tokens of
            full steps would have been displaced by, had these been local, and its terms.
        verifications: target verifications of a drafted block.
        drafted: draft tokens verified.
        accepted: of them, accepted.
        resampled: of them, replaced by a residual sample.
        dropped: of them, discarded because an earlier AR step had a rejection (prefix).
        unreachable: resampled tokens whose residual was empty or was not hit: drawn from the
            target's last step instead.
        head_samplers: tokens by the head sampler that drew them, by model; aligned chains apart.
        head_evaluations: batched head calls by model.
        head_rows: head network rows by model.
        head_tokens: tokens sampled by model.
        head_rounds: sequential evaluations summed over tokens, by model.
        aligned_evaluations: batched head calls of the target's aligned chains.
        drafted_by_step: verified draft tokens by AR step.
        accepted_by_step: accepted draft tokens by AR step.
        device_memory_peak: bytes of device memory that weights, tensors and scratch took at most
            since the session was opened; None where nobody counts them.
    """

    num_iter: int
    seconds: float = 0.0
    device_seconds: float | None = None
    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    ar_steps: int = 0
    guided_ar_steps: int = 0
    full_steps: dict[str, int] = field(default_factory=dict[str, int])
    local_steps: dict[str, int] = field(default_factory=dict[str, int])
    backbone_rows: dict[str, int] = field(default_factory=dict[str, int])
    backbone_rows_full: dict[str, int] = field(default_factory=dict[str, int])
    displacement: dict[str, dict[int, tuple[float, int]]] = field(
        default_factory=dict[str, dict[int, tuple[float, int]]]
    )
    verifications: int = 0
    drafted: int = 0
    accepted: int = 0
    resampled: int = 0
    dropped: int = 0
    unreachable: int = 0
    head_samplers: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    head_evaluations: dict[str, int] = field(default_factory=dict[str, int])
    head_rows: dict[str, int] = field(default_factory=dict[str, int])
    head_tokens: dict[str, int] = field(default_factory=dict[str, int])
    head_rounds: dict[str, int] = field(default_factory=dict[str, int])
    aligned_evaluations: int = 0
    device_memory_peak: int | None = None

    def __post_init__(self) -> None:
        self.drafted_by_step = np.zeros(self.num_iter, dtype=np.int64)
        self.accepted_by_step = np.zeros(self.num_iter, dtype=np.int64)

    def __repr__(self) -> str:
        rate = self.acceptance_rate
        accepted = "" if rate is None else f", acceptance rate {rate:.1%}"
        return f"<Stats: {self.seconds:.2f} s, {self.ar_steps} AR steps{accepted}>"

    @property
    def taken(self) -> float:
        """Seconds by the device's own clock, where there is one, else by the wall's."""
        return self.seconds if self.device_seconds is None else self.device_seconds

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted draft tokens / drafted tokens; None where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @contextmanager
    def timed(self, part: str) -> Generator[None]:
        """Add the time inside to a part."""
        began = time.perf_counter()
        try:
            with profiler_range(part):
                yield
        finally:
            self.parts[part] += time.perf_counter() - began

    def count_head(
        self, model: str, kind: str, report: HeadReport, *, guided: bool, aligned: bool = False
    ) -> None:
        """Add what a head sampler of a model took, and which kind it was; guidance doubles rows."""
        chosen = self.head_samplers.setdefault(f"{model}, aligned" if aligned else model, {})
        chosen[kind] = chosen.get(kind, 0) + len(report.rounds)
        self.aligned_evaluations += report.evaluations if aligned else 0
        rows = report.row_evaluations * (2 if guided else 1)
        counts = (
            (self.head_evaluations, report.evaluations),
            (self.head_rows, rows),
            (self.head_tokens, len(report.rounds)),
            (self.head_rounds, int(report.rounds.sum())),
        )
        for counter, amount in counts:
            counter[model] = counter.get(model, 0) + amount

    def count_full(self, model: str, rows: int) -> None:
        """Add a call of a backbone that computed all of so many rows."""
        for counter, amount in (
            (self.full_steps, 1), (self.backbone_rows, rows), (self.backbone_rows_full, rows)
        ):  # fmt: skip
            counter[model] = counter.get(model, 0) + amount

    def count_local(self, model: str, rows: int, of_full: int) -> None:
        """Add a local call of a backbone: its rows, and those that a full one has."""
        for counter, amount in (
            (self.local_steps, 1), (self.backbone_rows, rows), (self.backbone_rows_full, of_full)
        ):  # fmt: skip
            counter[model] = counter.get(model, 0) + amount

    def count_check(self, model: str, rows: int) -> None:
        """Add the rows of a local call whose tokens are compared and not kept."""
        self.backbone_rows[model] = self.backbone_rows.get(model, 0) + rows

    def note_displacement(self, model: str, images: NDArray[np.int64], squares: Float32) -> None:
        """Add what tokens were displaced by, squared, `[B, P, C]`, given the images' numbers."""
        of_model = self.displacement.setdefault(model, {})
        for image, own in zip(images.tolist(), squares, strict=True):
            total, count = of_model.get(image, (0.0, 0))
            of_model[image] = total + float(own.sum(dtype=np.float64)), count + own.size

    @property
    def errors(self) -> dict[str, list[float]]:
        """Root mean square of the displacement of each image in order of number, by model.

        In units of the tokens, as the model emits them.
        """
        return {
            model: [float(np.sqrt(total / count)) for _, (total, count) in sorted(own.items())]
            for model, own in self.displacement.items()
        }

    @property
    def backbone_rows_share(self) -> float:
        """Rows of the backbones that were computed, of those that full steps have; 1 without."""
        of_full = sum(self.backbone_rows_full.values())
        return sum(self.backbone_rows.values()) / of_full if of_full else 1.0

    @property
    def largest_error(self) -> float | None:
        """The largest of `errors`; None without one."""
        return max((error for own in self.errors.values() for error in own), default=None)

    def count_verified(self, step_of: NDArray[np.int64], accepted: NDArray[np.bool_]) -> None:
        """Add verified draft tokens, given each one's AR step and whether it was accepted."""
        self.drafted += len(step_of)
        self.accepted += int(accepted.sum())
        np.add.at(self.drafted_by_step, step_of, 1)
        np.add.at(self.accepted_by_step, step_of, accepted)

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as JSON values."""
        by_step = [
            int(a) / int(d) if d else None
            for a, d in zip(self.accepted_by_step, self.drafted_by_step, strict=True)
        ]
        return {
            "seconds": self.seconds,
            "device_seconds": self.device_seconds,
            "seconds_by_part": dict(self.parts),
            "ar_steps": self.ar_steps,
            "guided_ar_steps": self.guided_ar_steps,
            "full_steps": dict(self.full_steps),
            "local_steps": dict(self.local_steps),
            "backbone_rows": dict(self.backbone_rows),
            "backbone_rows_if_all_full": dict(self.backbone_rows_full),
            "refresh_error": self.errors,
            "verifications": self.verifications,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "resampled": self.resampled,
            "dropped": self.dropped,
            "unreachable_residuals": self.unreachable,
            "acceptance_rate": self.acceptance_rate,
            "acceptance_rate_by_ar_step": by_step,
            "head_samplers": {model: dict(own) for model, own in self.head_samplers.items()},
            "head_evaluations": dict(self.head_evaluations),
            "head_rows": dict(self.head_rows),
            "head_rounds_per_token": {
                model: rounds / self.head_tokens[model]
                for model, rounds in self.head_rounds.items()
            },
            "aligned_evaluations_per_verification": (
                self.aligned_evaluations / self.verifications if self.verifications else None
            ),
            "device_memory_peak_bytes": self.device_memory_peak,
        }


ProgressCallback = Callable[[Progress], None]


@lru_cache(maxsize=1)
def _annotate() -> Any:
    try:
        import nvtx  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return nvtx.annotate


def profiler_range(name: str) -> AbstractContextManager[Any]:
    """Name what happens inside, for NVIDIA's profilers, where the `nvtx` package is installed."""
    annotate = _annotate()
    return nullcontext() if annotate is None else annotate(message=name, domain="csd")
