"""All figures of a set of images: values, intervals, and how many images each needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import CsdError
from .metrics import classes, distances, neighbours
from .metrics.distances import Pairs
from .metrics.features import Outputs
from .metrics.halves import Estimate, Float, Masks, halves

LEAD = "kernel"


@dataclass(frozen=True)
class Metric:
    """A figure.

    Attributes:
        name: on the command line.
        title: to call it by.
        lower: whether less of it is better.
        scale: of what is shown, and its unit.
        about: what it says, in a few words.
    """

    name: str
    title: str
    lower: bool
    about: str
    percent: bool = False

    def shown(self, value: float, signed: bool = False) -> str:
        """A value of it as text."""
        sign = "+" if signed else ""
        return f"{100 * value:{sign}.2f} %" if self.percent else f"{value:{sign}.4f}"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("kernel", "kernel distance", True, "0 is the law of the real images, 100 % one real "
               "image made again and again; unbiased", percent=True),
        Metric("frechet", "Frechet distance", True, "of Gaussians fitted to features; grows with "
               "fewer images"),
        Metric("precision", "precision", False, "generated images near a real one", percent=True),
        Metric("recall", "recall", False, "real images near a generated one", percent=True),
        Metric("density", "density", False, "real images that reach a generated one, over k"),
        Metric("coverage", "coverage", False, "real images with a generated one in reach",
               percent=True),
        Metric("accuracy", "class accuracy", False, "recognised as the class that was asked for",
               percent=True),
        Metric("inception", "Inception score", False, "classes sharp each and even together"),
    )
}  # fmt: skip
_NEIGHBOURS = ("precision", "recall", "density", "coverage")


class TooFewError(CsdError):
    """There are too few images for a metric."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Images as a graph sees them.

    Attributes:
        features: `[N, F]`.
        logits: `[N, classes]`, of no columns where the graph is no classifier.
        labels: classes `[N]`.
        masks: halves `[R, N]`.
    """

    features: Float
    logits: Float
    labels: NDArray[np.int64]
    masks: Masks

    @classmethod
    def of(cls, outputs: Outputs, labels: NDArray[np.int64], seed: int) -> Sample:
        """Make one; `seed` is that of its halves, one for sets whose images belong together."""
        return cls(
            outputs.features.astype(np.float64),
            outputs.logits.astype(np.float64),
            labels,
            halves(labels, len(labels), seed),
        )

    @cached_property
    def own_pairs(self) -> Pairs:
        """Kernel within the set."""
        return distances.within(self.features, self.masks)

    @cached_property
    def scale(self) -> float:
        """Kernel distance of one image again and again."""
        return distances.kernel_scale(self.features, self.own_pairs)


@dataclass(frozen=True)
class Figures:
    """What was measured of a set of images.

    Attributes:
        count: images.
        values: by the metric's name.
        lacking: why others are not there, by the metric's name.
    """

    count: int
    values: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])
    lacking: Mapping[str, str] = field(default_factory=dict[str, str])

    def need(self, name: str) -> Estimate:
        """Return a value.

        Raises:
            TooFewError: it is not there; says why.
        """
        if name not in self.values:
            raise TooFewError(f"{METRICS[name].title} {self.lacking[name]}")
        return self.values[name]


def needed_images(name: str, width: int, kinds: int) -> int:
    """Least number of images of a metric, so that their halves still have it.

    Args:
        name: of the metric.
        width: F.
        kinds: classes of the classifier.
    """
    if name == "frechet":  # covariances of full rank
        return 2 * (width + 1)
    if name in _NEIGHBOURS:
        return 4 * (neighbours.DENSITY_REACH + 1)
    return max(8, 2 * kinds) if name == "inception" else 8


def judge(
    sample: Sample, reference: Sample | None, names: Sequence[str] = tuple(METRICS)
) -> Figures:
    """Measure a set of images.

    Args:
        sample: the images.
        reference: real ones, or None; without them there are no distances.
        names: metrics that are wanted.
    """
    count, width = sample.features.shape
    kinds = sample.logits.shape[1]
    fewest = count if reference is None else min(count, len(reference.features))
    lacking: dict[str, str] = {}
    for name in names:
        needed = needed_images(name, width, kinds)
        of_classes = name in ("accuracy", "inception")
        if of_classes and not kinds:
            lacking[name] = "needs a classifier: the graph of the features has no logits"
        elif not of_classes and reference is None:
            lacking[name] = "needs real images: give --real PATH"
        elif (count if of_classes else fewest) < needed:
            have = count if of_classes else fewest
            lacking[name] = f"needs {needed} images, there are {have}: give more --images"
    wanted = [name for name in names if name not in lacking]
    return Figures(count, _values(sample, reference, wanted), lacking)


def _values(sample: Sample, reference: Sample | None, wanted: list[str]) -> dict[str, Estimate]:
    values: dict[str, Estimate] = {}
    if reference is not None:
        x, y = sample.features, reference.features
        if LEAD in wanted:
            both = distances.across(x, y, sample.masks, reference.masks)
            distance = distances.kernel_distance(sample.own_pairs, reference.own_pairs, both)
            values[LEAD] = distance.over(reference.scale)
        if "frechet" in wanted:
            values["frechet"] = distances.frechet_distance(x, y, sample.masks, reference.masks)
        if near := [name for name in _NEIGHBOURS if name in wanted]:
            found = _near(sample, reference)
            values |= {name: getattr(found, name) for name in near}
    if "accuracy" in wanted:
        values["accuracy"] = classes.accuracy(sample.logits, sample.labels, sample.masks)
    if "inception" in wanted:
        values["inception"] = classes.inception_score(sample.logits, sample.masks)
    return values


def _near(sample: Sample, reference: Sample) -> neighbours.Neighbours:
    x, y = _first(sample), _first(reference)
    return neighbours.neighbours(
        sample.features[x], reference.features[y], sample.masks[:, x], reference.masks[:, y]
    )


def _first(sample: Sample) -> NDArray[np.int64]:
    """Places of as many images as neighbours are looked for among, of all classes."""
    order = np.lexsort((np.arange(len(sample.labels)), _rank(sample.labels)))
    return np.sort(order[: neighbours.MOST_IMAGES])


def _rank(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which image of its class each is, from 0 on."""
    rank = np.empty(len(labels), dtype=np.int64)
    for kind in np.unique(labels):
        places = np.flatnonzero(labels == kind)
        rank[places] = np.arange(len(places))
    return rank
