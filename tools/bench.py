"""Latency and quality of decoding modes, measured side by side in one run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..runtime.bundle import Bundle
from ..runtime.errors import CsdError
from ..runtime.manifest import file_sha256
from ..runtime.noise import SeededNoise
from ..runtime.options import GenerateOptions
from ..runtime.session import Session
from .quality import ImageClassifier, as_shown, balanced_labels

if TYPE_CHECKING:  # it needs PyTorch, which the other modes do not
    from .eager import EagerSampler

Report = Callable[[str], None]
# What measures a run: events of the device around it, or the host until its last wait.
EVENTS, WALL_CLOCK = "CUDA events", "wall clock"
# PyTorch's modes: the table of eager.py, which cannot be imported without it.
BASELINES = ("eager", "eager-bf16", "compile")


@dataclass(frozen=True)
class Case:
    """One thing to measure: options, run by a PyTorch baseline or, without one, by the runtime."""

    name: str
    options: GenerateOptions
    baseline: str | None = None


@dataclass
class Measurement:
    """What was measured of a case.

    Attributes:
        seconds: of every repeat, for one batch, by the wall clock.
        device_seconds: the same by events of the device; empty where nothing ran on one that has
            them.
        acceptance_rate: of the last repeat, or over the quality images; None without drafts.
        accuracy: share of images whose class is recognised; None where it was not measured.
        accuracy_images: number of images behind `accuracy`.
        parts: seconds by part of the last repeat.
        head_evaluations: batched head calls by model of the last repeat.
        head_rounds: sequential head evaluations a token, by model, of the last repeat.
        head_rows: head network rows a token, by model, of the last repeat.
        device_memory_peak: bytes of device memory; None where nobody counts them.
    """

    case: Case
    seconds: list[float] = field(default_factory=list[float])
    device_seconds: list[float] = field(default_factory=list[float])
    acceptance_rate: float | None = None
    accuracy: float | None = None
    accuracy_images: int = 0
    parts: dict[str, float] = field(default_factory=dict[str, float])
    head_evaluations: dict[str, int] = field(default_factory=dict[str, int])
    head_rounds: dict[str, float] = field(default_factory=dict[str, float])
    head_rows: dict[str, float] = field(default_factory=dict[str, float])
    device_memory_peak: int | None = None

    def median(self, clock: str) -> float:
        """Median seconds of a batch by a clock."""
        return float(np.median(self.device_seconds if clock == EVENTS else self.seconds))

    def to_dict(self, batch: int, clock: str, eager: float | None) -> dict[str, Any]:
        """Return JSON values; `eager` is the median of the baseline by the clock of ratios."""
        on_device = bool(self.device_seconds)
        return {
            "name": self.case.name,
            "options": None if self.case.baseline else self.case.options.to_dict(),
            "seconds_per_image": self.median(WALL_CLOCK) / batch,
            "seconds_percentiles_10_90": _percentiles(self.seconds),
            "seconds": self.seconds,
            "device_seconds_per_image": self.median(EVENTS) / batch if on_device else None,
            "device_seconds_percentiles_10_90": (
                _percentiles(self.device_seconds) if on_device else None
            ),
            "device_seconds": self.device_seconds if on_device else None,
            "speed_up_over_eager": eager / self.median(clock) if eager else None,
            "acceptance_rate": self.acceptance_rate,
            "accuracy": self.accuracy,
            "accuracy_images": self.accuracy_images,
            "seconds_by_part": self.parts,
            "head_evaluations": self.head_evaluations,
            "head_rounds_per_token": self.head_rounds,
            "head_rows_per_token": self.head_rows,
            "device_memory_peak_bytes": self.device_memory_peak,
        }


def _percentiles(seconds: list[float]) -> list[float]:
    return [float(p) for p in np.percentile(seconds, (10, 90))]


def figures(results: Sequence[Measurement], batch: int) -> dict[str, Any]:
    """Return the measurements as JSON values, and the clock of their ratios.

    That is `EVENTS` where all were measured by them: a ratio is of two figures of one clock.
    """
    clock = EVENTS if all(result.device_seconds for result in results) else WALL_CLOCK
    eager = next((r.median(clock) for r in results if r.case.baseline == "eager"), None)
    return {"clock": clock, "results": [result.to_dict(batch, clock, eager) for result in results]}


def by_clock(row: Mapping[str, Any], figure: str, clock: str) -> Any:
    """Return a figure of a row of the report by a clock, as `seconds_per_image`; None without."""
    return row[f"device_{figure}" if clock == EVENTS else figure]


@dataclass(frozen=True)
class Sweep:
    """What is varied.

    Attributes:
        modes: of `eager`, `eager-bf16`, `compile`, `target`, `draft`, `csd`.
        heads: head samplers of all modes but the PyTorch ones.
        gammas: for `csd`.
        temperatures: inner temperatures for `csd` at the first gamma, beside the options' own.
        fewer_steps: AR steps at which the target is measured too, where they are fewer: that is
            what a faster mode has to beat.
    """

    modes: Sequence[str]
    heads: Sequence[str] = ("sequential",)
    gammas: Sequence[int] = (8,)
    temperatures: Sequence[float] = ()
    fewer_steps: Sequence[int] = (64, 32, 16, 8)


def make_cases(sweep: Sweep, options: GenerateOptions, num_iter: int) -> list[Case]:
    """List what to measure, with `options` for everything else and `num_iter` AR steps."""
    base = dataclasses.replace(options, mode="target", num_iter=num_iter)
    cases = [Case(name, base, name) for name in BASELINES if name in sweep.modes]
    for head in sweep.heads:
        suffix = "" if head == "sequential" else f", head {head}"
        alone = dataclasses.replace(base, head=head)
        if "target" in sweep.modes:
            cases.append(Case(f"target{suffix}", alone))
            cases += [
                Case(f"target{suffix}, {n} AR steps", dataclasses.replace(alone, num_iter=n))
                for n in sweep.fewer_steps
                if n < num_iter
            ]
        if "draft" in sweep.modes:
            cases.append(Case(f"draft{suffix}", dataclasses.replace(alone, mode="draft")))
        if "csd" in sweep.modes:
            own = options.inner_temperature
            settings = [(gamma, own) for gamma in sweep.gammas]
            settings += [(sweep.gammas[0], value) for value in sweep.temperatures if value != own]
            cases += [
                Case(
                    f"csd{suffix}, gamma {gamma}, T {value:g}",
                    dataclasses.replace(alone, mode="csd", gamma=gamma, inner_temperature=value),
                )
                for gamma, value in settings
            ]
    return cases


def measure(
    session: Session,
    baselines: Mapping[str, EagerSampler],
    cases: Sequence[Case],
    *,
    batch: int,
    repeats: int,
    seed: int,
    report: Report,
    warm_ups: int = 1,
) -> list[Measurement]:
    """Time every case `repeats` times, interleaved, after `warm_ups` runs that are not counted."""
    manifest = session.bundle.manifest
    labels = balanced_labels(batch, manifest.target.class_num)
    results = [Measurement(case) for case in cases]
    for run in range(warm_ups + repeats):
        timed = run - warm_ups + 1
        report(f"repeat {timed}/{repeats}" if timed > 0 else "warming up")
        for result in results:
            options = result.case.options
            if result.case.baseline:
                eager = baselines[result.case.baseline]
                resolved = options.resolved(manifest.target, manifest.head_steps)
                began = time.perf_counter()
                eager.generate(np.array(labels), resolved, SeededNoise(seed + run))
                seconds, on_device = time.perf_counter() - began, eager.device_seconds
                result.parts, result.device_memory_peak = eager.parts, eager.device_memory_peak
            else:
                stats = session.generate(labels, options, seed=seed + run).stats
                seconds, on_device = stats.seconds, stats.device_seconds
                result.acceptance_rate = stats.acceptance_rate
                result.parts, result.device_memory_peak = stats.parts, stats.device_memory_peak
                result.head_evaluations = stats.head_evaluations
                for role, tokens in stats.head_tokens.items():
                    result.head_rounds[role] = stats.head_rounds[role] / tokens
                    result.head_rows[role] = stats.head_rows[role] / tokens
            if timed > 0:
                result.seconds.append(seconds)
                result.device_seconds += [] if on_device is None else [on_device]
    return results


def measure_quality(
    session: Session,
    classifier: ImageClassifier,
    results: Sequence[Measurement],
    *,
    images: int,
    seed: int,
    report: Report,
) -> None:
    """Add class accuracy, and acceptance rates over as many images, to the runtime's cases."""
    labels = balanced_labels(images, session.bundle.manifest.target.class_num)
    for result in results:
        if result.case.baseline:
            continue
        report(f"quality of {result.case.name}: {images} images")
        made = session.generate(labels, result.case.options, seed=seed)
        result.accuracy = classifier.accuracy(as_shown(made.latents), labels)
        result.accuracy_images = images
        result.acceptance_rate = made.stats.acceptance_rate


def eager_samplers(
    bundle: Bundle, names: Sequence[str], weights: Path | None, threads: int, device: str
) -> dict[str, EagerSampler]:
    """Load the target's weights for each of the PyTorch baselines.

    Args:
        bundle: whose target to load.
        names: of `BASELINES`.
        weights: file to load from, unless where the bundle was exported from.
        threads: CPU threads.
        device: `cpu` or `cuda`.

    Raises:
        CsdError: PyTorch or its device is missing, or the weights are gone or are other ones.
    """
    if not names:
        return {}
    without = f"leave {' and '.join(names)} out of --modes"
    try:
        import torch

        from ..models import load_mar
        from ..models.zoo import zoo_entry
        from .eager import EagerSampler
    except ImportError as error:
        raise CsdError(
            f"mode {names[0]} needs {error.name}: pip install 'csd[export]', or {without}"
        ) from error
    if device == "cuda" and not torch.cuda.is_available():
        raise CsdError(
            f"mode {names[0]} on a GPU needs a PyTorch built for CUDA (here is "
            f"{torch.__version__}): install one, give --eager-device cpu, or {without}"
        )
    source = bundle.manifest.sources.get("target")
    if source is None:
        raise CsdError(
            "the bundle does not say which weights it was exported from: export it again, as "
            f"--target-weights is checked against them, or {without}"
        )
    path = weights or (
        zoo_entry(source.path.removeprefix("zoo:")).weights("target")
        if source.path.startswith("zoo:")
        else Path(source.path)
    )
    if not path.is_file() or file_sha256(path) != source.sha256:
        raise CsdError(
            f"the weights that the bundle was exported from are not at {path}: give "
            f"--target-weights FILE, or {without}"
        )
    return {
        name: EagerSampler(load_mar(path, bundle.manifest.target), threads, name, device)
        for name in names
    }


def bundle_classifier(bundle: Bundle, threads: int) -> ImageClassifier | None:
    """Return the classifier of the zoo pair that a bundle holds, or None for other models."""
    from ..models.zoo import zoo_entry

    source = bundle.manifest.sources.get("target")
    if source is None or not source.path.startswith("zoo:"):
        return None
    return ImageClassifier(zoo_entry(source.path.removeprefix("zoo:")).classifier, threads)
