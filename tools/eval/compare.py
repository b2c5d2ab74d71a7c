"""Several runs beside each other: figures in each feature space, differences, pairs, speed."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...export.progress import OnStep
from ...runtime.command.text import shown
from ...runtime.errors import OptionError
from .images.generate import Features
from .images.real import TEST, TRAIN, RealImages, read_features
from .judge import METRICS, Figures, Sample, judge
from .metrics import paired
from .metrics.halves import Float
from .metrics.two_sample import energy_test
from .store.features import features_of, fill_features, find_space
from .store.runs import Run, batches_of, images_of, labels_of, numbers_of
from .verdicts import Verdict, verdict

# What the names of the runs of a search begin with.
SEARCHES = "tune/"
# Images of two runs that are held against each other pixel by pixel, at once.
CHUNK = 32
# Halves of real images, and of runs that share no noise with the first one.
_REFERENCE_SEED, _OTHER_SEED = 1 << 20, 1 << 10


@dataclass(frozen=True, eq=False)
class Pairs:
    """How far images of one seed and number lie apart, `[n]` each.

    Attributes:
        psnr: dB; infinite where two images are the same.
        ssim: structural similarity.
        features: Euclidean distance of features in the first space.
    """

    psnr: Float
    ssim: Float
    features: Float

    @property
    def same(self) -> float:
        """Share of pairs that are the same to the bit."""
        return float(np.isinf(self.psnr).mean())


@dataclass(frozen=True, eq=False)
class InSpace:
    """A run in a feature space.

    Attributes:
        figures: of its images.
        verdicts: on its differences from the first run, by metric; none of the first itself.
        p_value: of one law with the first run's images; None of the first itself.
    """

    figures: Figures
    verdicts: Mapping[str, Verdict]
    p_value: float | None


@dataclass(frozen=True, eq=False)
class Row:
    """A run of a comparison.

    Attributes:
        run: in the database.
        spaces: figures by the title of the space.
        pairs: with the first run; None of the first itself, and where noise is not shared.
        seconds: an image, the median of the batches.
        others: cores that other processes kept busy on average, or None.
        beside: whether it was added to those that were asked for: the target at fewer steps.
    """

    run: Run
    spaces: Mapping[str, InSpace]
    pairs: Pairs | None
    seconds: float
    others: float | None
    beside: bool = False


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs beside each other.

    Attributes:
        rows: the first one is what the others are compared with.
        numbers: of the images, `[n]`; of each run its own where noise is not shared.
        floor: figures of real images that nobody trained on, by space; empty without real images.
        real: title of the real images, or None.
        notes: what a reader must know.
    """

    rows: Sequence[Row]
    numbers: Mapping[str, Sequence[int]]
    floor: Mapping[str, Figures]
    real: str | None
    notes: Sequence[str]

    @property
    def count(self) -> int:
        """Images of each run."""
        return len(self.numbers[self.rows[0].run.name])

    @property
    def lead(self) -> str:
        """Title of the space that leads."""
        return next(iter(self.rows[0].spaces))


def share_noise(a: Run, b: Run) -> bool:
    """Whether image i of both was made of the same noise, for the same class."""
    one, other = a.settings, b.settings
    return (one.seed, one.classes, one.shape) == (other.seed, other.classes, other.shape)


def check_together(runs: Sequence[Run]) -> None:
    """Check that runs can be compared.

    Raises:
        OptionError: their images are of other sizes or classes, or one run is named twice.
    """
    if len({run.name for run in runs}) < len(runs):
        raise OptionError("a run is named twice: give each once")
    first = runs[0]
    for run in runs[1:]:
        mine, theirs = first.settings, run.settings
        if mine.shape != theirs.shape:
            raise OptionError(
                f"run {shown(run.name)} has images of {theirs.shape[1]} x {theirs.shape[0]}, run "
                f"{shown(first.name)} of {mine.shape[1]} x {mine.shape[0]}: compare runs of one "
                "size"
            )
        if mine.classes != theirs.classes:
            raise OptionError(
                f"run {shown(run.name)} has {theirs.classes} classes, run {shown(first.name)} "
                f"{mine.classes}: compare runs of the same classes"
            )


def fewer_steps(
    connection: sqlite3.Connection, runs: Sequence[Run], every: Sequence[Run], most: int | None
) -> list[Run]:
    """Runs of the target of the first run's bundle and seed, at fewer AR steps or head steps.

    Args:
        connection: to the database.
        runs: that were asked for; those are not among them.
        every: all that there are; those of searches are left out, and those with fewer images.
        most: images of each run, or None.
    """
    first = runs[0]
    numbers = set(common_numbers(connection, runs, most)[first.name])

    def key(run: Run) -> tuple[object, ...]:
        options = {k: v for k, v in run.settings.options.items() if k in _OF_TARGET}
        return (run.settings.content_sha256, run.settings.seed, *sorted(map(str, options.items())))

    wanted = key(first)
    return [
        run
        for run in every
        if run not in runs
        and not run.name.startswith(SEARCHES)
        and key(run) == wanted
        and run.settings.options["mode"] == "target"
        and _fewer(run, first)
        and numbers <= set(numbers_of(connection, run))
    ]


# Options of a target alone that are kept where its steps are fewer.
_OF_TARGET = ("cfg", "cfg_schedule", "cfg_interval", "temperature", "mask_schedule")


def _fewer(run: Run, first: Run) -> bool:
    mine, theirs = run.settings.options, first.settings.options
    return mine["num_iter"] < theirs["num_iter"] or (
        isinstance(mine["head_steps"], int)
        and isinstance(theirs["head_steps"], int)
        and mine["head_steps"] < theirs["head_steps"]
    )


def common_numbers(
    connection: sqlite3.Connection, runs: Sequence[Run], most: int | None
) -> dict[str, list[int]]:
    """Numbers of the images of each run that are compared: as many of each.

    Raises:
        OptionError: a run has no images, or runs that share noise have none in common.
    """
    stored = {run.name: numbers_of(connection, run) for run in runs}
    if empty := [name for name, numbers in stored.items() if not numbers]:
        raise OptionError(f"run {shown(empty[0])} has no images: run csd-eval run again")
    first = runs[0]
    paired_with = [run.name for run in runs if share_noise(first, run)]
    common = sorted(set[int].intersection(*(set(stored[name]) for name in paired_with)))
    if not common:
        raise OptionError(
            f"run {shown(first.name)} and {shown(paired_with[-1])} have no image in common: merge "
            "their shards first"
        )
    count = min(len(common), *(len(numbers) for numbers in stored.values()), most or len(common))
    return {
        name: (common if name in paired_with else numbers)[:count]
        for name, numbers in stored.items()
    }


def compare(
    connection: sqlite3.Connection,
    runs: Sequence[Run],
    beside: Sequence[Run],
    spaces: Sequence[Features],
    real: RealImages | None,
    *,
    most: int | None,
    real_count: int,
    names: Sequence[str] = tuple(METRICS),
    tests: bool = True,
    step: OnStep,
) -> Comparison:
    """Compare runs with the first of them.

    Args:
        connection: to the database; features that lack are added to it.
        runs: that were asked for.
        beside: that are added.
        spaces: feature spaces, the leading one first.
        real: real images, or None.
        most: images of each run, or None for all that there are of each.
        real_count: real images of the reference.
        names: metrics that are wanted.
        tests: whether two-sample tests and pairs of images are wanted.
        step: called with what is done.

    Raises:
        CsdError: runs do not go together, or the database is damaged.
    """
    every = [*runs, *beside]
    check_together(every)
    numbers = common_numbers(connection, every, most)
    first, count = runs[0], len(numbers[runs[0].name])
    samples: dict[str, dict[str, Sample]] = {}
    floor: dict[str, Figures] = {}
    found: dict[str, dict[str, InSpace]] = {run.name: {} for run in every}
    for features in spaces:
        title = features.space.title
        reference = floor_sample = None
        if real is not None:
            step(f"{title}, real images", 0, 2)
            shape = first.settings.shape
            reference, floor_sample = (
                _real_sample(connection, real, features, split, n, shape, place)
                for place, (split, n) in enumerate(((TRAIN, real_count), (TEST, count)))
            )
            floor[title] = judge(floor_sample, reference, names)
        samples[title] = {}
        for place, run in enumerate(every):
            step(title, place, len(every))
            seed = 0 if share_noise(first, run) else _OTHER_SEED + place
            sample = _sample(connection, run, features, numbers[run.name], seed)
            samples[title][run.name] = sample
            figures = judge(sample, reference, names)
            base = found[first.name].get(title)
            if base is None:
                found[run.name][title] = InSpace(figures, {}, None)
                continue
            verdicts = {
                name: verdict(METRICS[name], value.minus(base.figures.values[name]), count)
                for name, value in figures.values.items()
                if name in base.figures.values
            }
            p_value = None
            if tests:
                p_value = energy_test(
                    samples[title][first.name].features, sample.features,
                    np.random.default_rng(place), paired=share_noise(first, run),
                )  # fmt: skip
            found[run.name][title] = InSpace(figures, verdicts, p_value)
    lead = samples[spaces[0].space.title]
    rows: list[Row] = []
    for place, run in enumerate(every):
        step("pairs of images", place, len(every))
        pairs = None
        if tests and run is not first and share_noise(first, run):
            apart = paired.feature_distance(lead[first.name].features, lead[run.name].features)
            pairs = _pairs(connection, first, run, numbers[run.name], apart)
        rows.append(_row(connection, run, found[run.name], pairs, beside=run in beside))
    notes = _notes(rows, spaces, real)
    return Comparison(rows, numbers, floor, None if real is None else real.title, notes)


def _row(
    connection: sqlite3.Connection, run: Run, spaces: Mapping[str, InSpace], pairs: Pairs | None,
    *, beside: bool,
) -> Row:  # fmt: skip
    batches = batches_of(connection, run)
    known = [batch.others for batch in batches if batch.others is not None]
    seconds = float(np.median([batch.seconds / batch.count for batch in batches]))
    others = float(np.mean(known)) if known else None
    return Row(run, spaces, pairs, seconds, others, beside)


def _sample(
    connection: sqlite3.Connection, run: Run, features: Features, numbers: Sequence[int], seed: int
) -> Sample:
    fill_features(connection, run, features.space, features.extract)
    space = find_space(connection, features.space.sha256)
    assert space is not None
    outputs = features_of(connection, run, space, numbers)
    labels: NDArray[np.int64] = np.array(labels_of(connection, run, numbers), dtype=np.int64)
    return Sample.of(outputs, labels, seed)


def _real_sample(
    connection: sqlite3.Connection, real: RealImages, features: Features, split: str, count: int,
    shape: tuple[int, int], place: int,
) -> Sample:  # fmt: skip
    found = read_features(connection, real, features, split, count, shape)
    return Sample.of(found.outputs, found.labels, _REFERENCE_SEED + place)


def _pairs(
    connection: sqlite3.Connection, first: Run, run: Run, numbers: Sequence[int], apart: Float
) -> Pairs:
    psnr: list[Float] = []
    ssim: list[Float] = []
    for start in range(0, len(numbers), CHUNK):
        part = numbers[start : start + CHUNK]
        a, b = (images_of(connection, each, part) for each in (first, run))
        psnr.append(paired.psnr(a, b))
        ssim.append(paired.ssim(a, b))
    return Pairs(np.concatenate(psnr), np.concatenate(ssim), apart)


def _notes(rows: Sequence[Row], spaces: Sequence[Features], real: RealImages | None) -> list[str]:
    notes: list[str] = []
    first = rows[0].run.settings.options
    added = [row.run.settings.options for row in rows[1:]]
    for name, what in (("num_iter", "AR"), ("head_steps", "head")):
        fewer = [o for o in added if o["mode"] == "target" and str(o[name]) != str(first[name])]
        if not fewer:
            notes.append(
                f"No run of the target at fewer {what} steps with as many images is in the "
                "database, which is what a faster setting has to beat: csd-eval run BUNDLE --name "
                f"{rows[0].run.name} --ladder, with the options of that run, makes them."
            )
    if len(spaces) == 1:
        notes.append(
            "One feature space alone can misrank: --features FILE.onnx puts another beside it."
        )
    if real is None:
        notes.append("There are no real images, so there are no distances to them: --real PATH.")
    busy = [row.run.name for row in rows if row.others is not None and row.others > 0.25]
    if busy:
        more = f" and {len(busy) - 4} more" if len(busy) > 4 else ""
        notes.append(
            f"Seconds of {', '.join(busy[:4])}{more} were measured beside other work, and will not "
            "repeat."
        )
    if len({(row.run.settings.backend, str(row.run.about.get("threads"))) for row in rows}) > 1:
        notes.append("Seconds are of several backends or numbers of threads.")
    return notes
