"""The rows of the measurement: which there are, their images, and what these are worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....models.training.frechet import frechet_distance
from ....runtime.arrays import Float32
from ....runtime.options import AUTO_REFRESH, GenerateOptions, format_refresh
from ....runtime.session import Session
from ...console import Report
from ...quality import as_shown, balanced_labels
from .features import FeatureNetwork

# Of a normal law, for an interval of 95 %.
_TWO_SIDED = 1.96


@dataclass(frozen=True)
class Row:
    """One thing to measure.

    Attributes:
        name: of its row.
        options: of the runs.
        whole: AR steps of the rows that it is compared with.
    """

    name: str
    options: GenerateOptions
    whole: int


@dataclass(eq=False)
class Made:
    """Images of a row: labels, tokens and latents of each batch, seconds and counts in all."""

    labels: list[int] = field(default_factory=list[int])
    tokens: list[Float32] = field(default_factory=list[Float32])
    latents: list[Float32] = field(default_factory=list[Float32])
    seconds: float = 0.0
    rows: int = 0
    errors: list[float] = field(default_factory=list[float])


def wanted_rows(
    base: GenerateOptions,
    *,
    num_iters: Sequence[int],
    scales: Sequence[float],
    refreshes: Sequence[int | tuple[int, int] | str],
    tolerances: Sequence[float],
    fewer: Sequence[float],
    intervals: Sequence[tuple[float, float]],
) -> list[Row]:
    """List what to measure: for each number of AR steps and scale all full, fewer, and local.

    Where there is guidance, each of `intervals` is joined with all steps full and with each fixed
    period.
    """
    rows: list[Row] = []
    for count in num_iters:
        for scale in scales:
            full = dataclasses.replace(base, num_iter=count, cfg=scale)
            rows.append(Row(f"{count} AR steps", full, count))
            less = sorted({max(1, round(share * count)) for share in fewer} - {count}, reverse=True)
            rows += [
                Row(f"{n} of {count} AR steps", dataclasses.replace(full, num_iter=n), count)
                for n in less
            ]
            periods: list[int | tuple[int, int] | str] = [1]
            for refresh in refreshes:
                words = f"{count} AR steps, refresh {format_refresh(refresh)}"
                local = dataclasses.replace(full, refresh=refresh)
                if refresh == AUTO_REFRESH:
                    rows += [
                        Row(
                            f"{words} {tolerance:g}",
                            dataclasses.replace(local, refresh_tolerance=tolerance), count,
                        )
                        for tolerance in tolerances
                    ]  # fmt: skip
                elif local.has_local_steps:
                    rows.append(Row(words, local, count))
                    periods.append(refresh)
            rows += [
                Row(
                    f"{count} AR steps, refresh {format_refresh(period)}, guided {low:g}:{high:g}",
                    dataclasses.replace(full, refresh=period, cfg_interval=(low, high)), count,
                )
                for low, high in intervals if scale != 1
                for period in periods
            ]  # fmt: skip
    return rows


def is_whole(value: Mapping[str, Any]) -> bool:
    """Whether a row that `figures_of` returned has all steps full, and guidance in all of them."""
    return value["refresh"] == 1 and value["cfg_interval"] is None


def make_images(
    session: Session, rows: Sequence[Row], images: int, batch: int, seed: int, report: Report
) -> dict[Row, Made]:
    """Generate the images of all rows, batch after batch, after a batch that is not counted."""
    labels = balanced_labels(images, session.bundle.manifest.target.class_num)
    made = {row: Made() for row in rows}
    for row in rows:
        session.generate(labels[:batch], row.options, seed=seed)
    for start in range(0, images, batch):
        report(f"images {start} to {min(start + batch, images)} of {images}")
        for row, own in made.items():
            result = session.generate(
                labels[start : start + batch], row.options, seed=seed, first_image=start
            )
            stats = result.stats
            own.labels += result.labels
            own.tokens.append(result.tokens)
            own.latents.append(result.latents)
            own.seconds += stats.seconds
            own.rows += sum(stats.backbone_rows.values())
            own.errors += stats.errors.get("target", [])
    return made


def figures_of(
    row: Row,
    made: Mapping[Row, Made],
    network: FeatureNetwork,
    reference: NDArray[np.float64],
    bootstraps: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return what the images of a row are worth, as JSON values.

    Args:
        row: which.
        made: images of all rows.
        network: judges them.
        reference: features of real images.
        bootstraps: resamples of the images behind the interval of the distance.
        rng: draws them.
    """
    own, options = made[row], row.options
    whole = dataclasses.replace(
        options, num_iter=row.whole, refresh=1, cfg_interval=None,
        refresh_tolerance=GenerateOptions().refresh_tolerance,
    )  # fmt: skip
    full = next(made[other] for other in made if other.options == whole)
    tokens = np.concatenate(own.tokens) - np.concatenate(full.tokens)
    shown, wanted = (as_shown(np.concatenate(part.latents)) for part in (own, full))
    squares = np.square(shown - wanted).mean(axis=(1, 2, 3))
    features, classes = network(shown)
    draws = [features[rng.integers(len(features), size=len(features))] for _ in range(bootstraps)]
    spread = float(np.std([frechet_distance(draw, reference) for draw in draws]))
    return {
        "name": row.name,
        "group": [row.whole, options.cfg],
        "num_iter": options.num_iter,
        "cfg": options.cfg,
        "refresh": options.refresh,
        "refresh_tolerance": options.refresh_tolerance,
        "cfg_interval": options.cfg_interval,
        "images": len(shown),
        "seconds_per_image": own.seconds / len(shown),
        "backbone_rows_share": own.rows / full.rows,
        "refresh_error": float(np.sqrt(np.mean(np.square(own.errors)))) if own.errors else None,
        "rms": float(np.sqrt(np.square(tokens).mean())),
        # Of images in [-1, 1], whose largest difference is 2; mean error of all pixels.
        "psnr": float(10 * np.log10(4 / squares.mean())) if squares.any() else None,
        "psnr_least": float(10 * np.log10(4 / squares.max())) if squares.any() else None,
        "accuracy": float((classes == np.array(own.labels)).mean()),
        "frechet": frechet_distance(features, reference),
        "frechet_half_interval": _TWO_SIDED * spread,
    }
