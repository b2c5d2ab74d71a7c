"""Time cases side by side, interleaved, and judge their images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...runtime.noise import SeededNoise
from ...runtime.options import GenerateOptions
from ...runtime.session import Session
from ..console import Report
from ..load import LoadMeter
from ..quality import ImageClassifier, as_shown, balanced_labels
from .baselines import Baselines
from .cases import Case

# What measures a run: events of the device around it, or the host until its last wait.
EVENTS, WALL_CLOCK = "CUDA events", "wall clock"


@dataclass
class Measurement:
    """What was measured of a case.

    Attributes:
        seconds: of every repeat, for one batch, by the wall clock.
        device_seconds: the same by events of the device; empty where nothing ran on one that has
            them.
        others: cores that other processes kept busy in each repeat; None where nobody counts.
        acceptance_rate: of the last repeat, or over the quality images; None without drafts.
        accuracy: share of images whose class is recognised; None where it was not measured.
        accuracy_images: number of images behind `accuracy`.
        parts: seconds by part of the last repeat.
        head_evaluations: batched head calls by model of the last repeat.
        head_rounds: sequential head evaluations a token, by model, of the last repeat.
        head_rows: head network rows a token, by model, of the last repeat.
        backbone_rows_share: rows of the backbone that were computed, of those that full AR steps
            have; None of the baselines.
        refresh_error: largest error figure of an image of the last repeat; None without one.
        device_memory_peak: bytes of device memory; None where nobody counts them.
    """

    case: Case
    seconds: list[float] = field(default_factory=list[float])
    device_seconds: list[float] = field(default_factory=list[float])
    others: list[float | None] = field(default_factory=list["float | None"])
    acceptance_rate: float | None = None
    accuracy: float | None = None
    accuracy_images: int = 0
    parts: dict[str, float] = field(default_factory=dict[str, float])
    head_evaluations: dict[str, int] = field(default_factory=dict[str, int])
    head_rounds: dict[str, float] = field(default_factory=dict[str, float])
    head_rows: dict[str, float] = field(default_factory=dict[str, float])
    backbone_rows_share: float | None = None
    refresh_error: float | None = None
    device_memory_peak: int | None = None

    def median(self, clock: str) -> float:
        """Median seconds of a batch by a clock."""
        return float(np.median(self.device_seconds if clock == EVENTS else self.seconds))


@dataclass(frozen=True)
class Runners:
    """What runs the cases.

    Attributes:
        sessions: of one bundle, by CPU threads.
        baselines: by name and CPU threads.
    """

    sessions: Mapping[int, Session]
    baselines: Baselines

    @property
    def session(self) -> Session:
        """The one of the most threads."""
        return self.sessions[max(self.sessions)]


def measure(
    runners: Runners,
    cases: Sequence[Case],
    *,
    batch: int,
    repeats: int,
    seed: int,
    report: Report,
    warm_ups: int = 1,
) -> list[Measurement]:
    """Time every case `repeats` times, interleaved, after `warm_ups` runs that are not counted."""
    labels = balanced_labels(batch, runners.session.bundle.manifest.target.class_num)
    results = [Measurement(case) for case in cases]
    for run in range(warm_ups + repeats):
        timed = run - warm_ups + 1
        report(f"repeat {timed}/{repeats}" if timed > 0 else "warming up")
        for result in results:
            meter = LoadMeter()
            seconds, on_device = _run_once(runners, result, labels, seed + run)
            if timed > 0:
                result.others.append(meter.read().others)
                result.seconds.append(seconds)
                result.device_seconds += [] if on_device is None else [on_device]
    return results


def _run_once(
    runners: Runners, result: Measurement, labels: list[int], seed: int
) -> tuple[float, float | None]:
    """Run a case once, note what it counted, and return its seconds by both clocks."""
    case = result.case
    if case.baseline:
        eager = runners.baselines[case.baseline, case.threads]
        manifest = runners.session.bundle.manifest
        options = case.options.resolved(manifest.target, manifest.head_steps)
        began = time.perf_counter()
        eager.generate(np.array(labels), options, SeededNoise(seed))
        seconds = time.perf_counter() - began
        result.parts, result.device_memory_peak = eager.parts, eager.device_memory_peak
        return seconds, eager.device_seconds
    stats = runners.sessions[case.threads].generate(labels, case.options, seed=seed).stats
    result.acceptance_rate = stats.acceptance_rate
    result.parts, result.device_memory_peak = stats.parts, stats.device_memory_peak
    result.head_evaluations = stats.head_evaluations
    result.backbone_rows_share = stats.backbone_rows_share
    result.refresh_error = stats.largest_error
    for role, tokens in stats.head_tokens.items():
        result.head_rounds[role] = stats.head_rounds[role] / tokens
        result.head_rows[role] = stats.head_rows[role] / tokens
    return stats.seconds, stats.device_seconds


def measure_quality(
    runners: Runners,
    classifier: ImageClassifier,
    results: Sequence[Measurement],
    *,
    images: int,
    seed: int,
    report: Report,
) -> None:
    """Add class accuracy, and acceptance rates over as many images, to the runtime's cases."""
    labels = balanced_labels(images, runners.session.bundle.manifest.target.class_num)
    # The images of a seed do not depend on the threads that make them.
    judged: dict[GenerateOptions, tuple[float, float | None]] = {}
    for result in results:
        if result.case.baseline:
            continue
        options = result.case.options
        if options not in judged:
            report(f"quality of {result.case.name}: {images} images")
            made = runners.session.generate(labels, options, seed=seed)
            accuracy = classifier.accuracy(as_shown(made.latents), labels)
            judged[options] = accuracy, made.stats.acceptance_rate
        result.accuracy, result.acceptance_rate = judged[options]
        result.accuracy_images = images
