"""A comparison as JSON values, and as tables of a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.table import Table

from ..compare import Comparison, Pairs, Row
from ..judge import LEAD, METRICS, Figures

FLOOR = "real images (test)"


def comparison_values(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON values."""
    return {
        "images": comparison.count,
        "compared_with": comparison.rows[0].run.name,
        "real": comparison.real,
        "floor": {title: figures_values(f) for title, f in comparison.floor.items()},
        "runs": [_row_values(row) for row in comparison.rows],
        "notes": list(comparison.notes),
    }


def figures_values(figures: Figures) -> dict[str, Any]:
    """Return figures as JSON values; what is lacking says why."""
    return {
        "images": figures.count,
        **{
            name: {"value": e.value, "error": e.error, "interval": list(e.interval())}
            for name, e in figures.values.items()
        },
        "lacking": dict(figures.lacking),
    }


def _row_values(row: Row) -> dict[str, Any]:
    settings = row.run.settings
    return {
        "name": row.run.name,
        "bundle": settings.bundle,
        "options": settings.options,
        "seed": settings.seed,
        "backend": settings.backend,
        "versions": settings.versions,
        "created": row.run.created,
        "machine": row.run.about.get("machine"),
        "threads": row.run.about.get("threads"),
        "seconds_per_image": row.seconds,
        "other_processes_cores": row.others,
        "beside": row.beside,
        "pairs": None if row.pairs is None else _pairs_values(row.pairs),
        "spaces": {
            title: {
                "figures": figures_values(space.figures),
                "differences": {
                    name: {
                        "verdict": v.word, "difference": v.difference, "interval": [v.low, v.high],
                        "smallest_seen": v.smallest,
                    }
                    for name, v in space.verdicts.items()
                },
                "two_sample_p_value": space.p_value,
            }
            for title, space in row.spaces.items()
        },
    }  # fmt: skip


def _pairs_values(pairs: Pairs) -> dict[str, Any]:
    differing = pairs.psnr[np.isfinite(pairs.psnr)]
    return {
        "same_to_the_bit": pairs.same,
        # JSON has no infinity.
        "psnr_of_those_that_differ": float(np.median(differing)) if len(differing) else None,
        "ssim": float(np.median(pairs.ssim)),
        "feature_distance": float(np.median(pairs.features)),
    }


def tables(comparison: Comparison) -> Iterator[Table]:
    """The tables of a terminal: one for each feature space, and one of speed and pairs."""
    n, first = comparison.count, comparison.rows[0].run.name
    for title in comparison.rows[0].spaces:
        names = [m for m in METRICS if m in comparison.rows[0].spaces[title].figures.values]
        table = Table(title=f"{title}, {n} images each", caption=_lacking(comparison, title))
        table.add_column("run", no_wrap=True)
        for name in names:
            table.add_column(METRICS[name].title, justify="right", no_wrap=True)
        for column in (f"{LEAD} against {first}", "verdict"):
            table.add_column(column, no_wrap=True)
        table.add_column("p, one law", justify="right", no_wrap=True)
        for row in comparison.rows:
            space = row.spaces[title]
            table.add_row(
                row.run.name, *(shown_value(space.figures, name) for name in names),
                *lead_texts(row, title), p_text(space.p_value),
            )  # fmt: skip
        if title in comparison.floor:
            floor = comparison.floor[title]
            table.add_row(FLOOR, *(shown_value(floor, name) for name in names), "", "", "")
        yield table
    table = Table(title=f"speed, and pairs of one seed with {first}")
    for column in ("run", "s / image", "batch", "others' cores", "same to the bit", "PSNR", "SSIM"):
        table.add_column(column, justify="left" if column == "run" else "right", no_wrap=True)
    for row in comparison.rows:
        others = "" if row.others is None else f"{row.others:.2f}"
        settings = row.run.settings
        table.add_row(
            row.run.name, f"{row.seconds:.3f}", str(settings.batch), others, *pair_texts(row.pairs)
        )
    yield table


def shown_value(figures: Figures, name: str) -> str:
    """A value with half the width of its interval; empty where it is lacking."""
    if name not in figures.values:
        return ""
    estimate, metric = figures.values[name], METRICS[name]
    low, high = estimate.interval()
    half = metric.shown((high - low) / 2).removesuffix(" %")
    return f"{metric.shown(estimate.value).removesuffix(' %')} ± {half}{_unit(name)}"


def lead_name(row: Row, title: str) -> str:
    """The metric that leads: the kernel distance, or class accuracy without real images."""
    values = row.spaces[title].figures.values
    return LEAD if LEAD in values else next(iter(values), LEAD)


def lead_texts(row: Row, title: str) -> tuple[str, str]:
    """The difference of the leading metric with its interval, and the verdict."""
    name = lead_name(row, title)
    if name not in row.spaces[title].verdicts:
        return "", ""
    found, metric = row.spaces[title].verdicts[name], METRICS[name]
    low, high = (metric.shown(v, signed=True).removesuffix(" %") for v in (found.low, found.high))
    difference = metric.shown(found.difference, signed=True)
    return f"{difference} [{low}, {high}]", found.text(metric)


def p_text(p_value: float | None) -> str:
    """A p-value as text."""
    return "" if p_value is None else f"{p_value:.4f}"


def pair_texts(pairs: Pairs | None) -> tuple[str, str, str]:
    """Share of equal pairs, PSNR of the others and SSIM, medians, as text."""
    if pairs is None:
        return "", "", ""
    values = _pairs_values(pairs)
    ratio = values["psnr_of_those_that_differ"]
    psnr = "" if ratio is None or math.isinf(ratio) else f"{ratio:.1f} dB"
    return f"{pairs.same:.1%}", psnr, f"{values['ssim']:.4f}"


def _unit(name: str) -> str:
    return " %" if METRICS[name].percent else ""


def _lacking(comparison: Comparison, title: str) -> str:
    lacking = comparison.rows[0].spaces[title].figures.lacking
    said: dict[str, list[str]] = {}
    for name, reason in lacking.items():
        said.setdefault(reason, []).append(METRICS[name].title)
    lines = [f"{', '.join(names)}: {reason}" for reason, names in said.items()]
    return "\n".join(["± is half of a 95 % interval", *lines])
