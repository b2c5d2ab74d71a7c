"""Plots as SVG that stands in a page: no library, no font, nothing from outside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 48


@dataclass(frozen=True)
class Point:
    """A run in a plot of speed and distance.

    Attributes:
        name: of the run.
        seconds: an image, above 0.
        value: of the metric.
        low, high: its interval.
        beside: whether it is drawn hollow.
    """

    name: str
    seconds: float
    value: float
    low: float
    high: float
    beside: bool


def front(points: Sequence[Point], lower: bool) -> list[Point]:
    """The points that no other is both faster than and better, by seconds."""
    best: list[Point] = []
    sign = 1 if lower else -1
    for point in sorted(points, key=lambda p: (p.seconds, sign * p.value)):
        if not best or sign * point.value < sign * best[-1].value:
            best.append(point)
    return best


def pareto(points: Sequence[Point], *, title: str, lower: bool, floor: float | None) -> str:
    """Seconds an image against a metric, with intervals and the front of the best.

    Args:
        points: the runs.
        title: of the metric.
        lower: whether less of it is better.
        floor: value of real images, or None.
    """
    xs = [math.log10(p.seconds) for p in points]
    ys = [v for p in points for v in (p.low, p.high)] + ([] if floor is None else [floor])
    x_low, x_high = _padded(min(xs), max(xs), 0.05)
    y_low, y_high = _padded(min(ys), max(ys), 0.0)

    def x(value: float) -> float:
        return LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} against '
        'seconds an image">',
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" '
        f'height="{HEIGHT - TOP - BOTTOM}" class="frame"/>',
    ]
    for tick in _ticks(y_low, y_high):
        at = y(tick)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>'
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" class="end">{tick:g}</text>'
        )
    for seconds in _seconds(10**x_low, 10**x_high):
        at = x(math.log10(seconds))
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" '
                     f'class="grid"/><text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" '
                     f'class="middle">{seconds:g}</text>')  # fmt: skip
    if floor is not None:
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(floor):.1f}" '
                     f'y2="{y(floor):.1f}" class="floor"/><text x="{WIDTH - RIGHT - 4}" '
                     f'y="{y(floor) - 4:.1f}" class="end">real images</text>')  # fmt: skip
    line = " ".join(f"{x(math.log10(p.seconds)):.1f},{y(p.value):.1f}"
                    for p in front(points, lower))  # fmt: skip
    parts.append(f'<polyline points="{line}" class="front"/>')
    for point, place in zip(points, xs, strict=True):
        at = x(place)
        parts.append(
            f'<g><title>{escape(point.name)}: {point.seconds:.4g} s, {point.value:.4g}</title>'
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y(point.low):.1f}" y2="{y(point.high):.1f}" '
            f'class="bar"/><circle cx="{at:.1f}" cy="{y(point.value):.1f}" r="5" '
            f'class="{"beside" if point.beside else "run"}"/><text x="{_label(at):.1f}" '
            f'y="{y(point.value) - 8:.1f}" class="{"end" if at > WIDTH * 0.7 else "start"}">'
            f'{escape(point.name)}</text></g>'
        )  # fmt: skip
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 10}" class="middle">seconds an image</text>'
        f'<text x="14" y="{HEIGHT / 2}" class="middle" '
        f'transform="rotate(-90 14 {HEIGHT / 2})">{escape(title)}</text></svg>'
    )
    return "".join(parts)


def _label(at: float) -> float:
    return at - 8 if at > WIDTH * 0.7 else at + 8


def _padded(low: float, high: float, least: float) -> tuple[float, float]:
    room = max((high - low) * 0.1, least) or max(abs(high) * 0.1, 1e-6)
    return low - room, high + room


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers in a range."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(s for s in (1, 2, 5, 10) if (high - low) / (s * step) <= count + 1)
    first = math.ceil(low / step)
    return [round(k * step, 12) for k in range(first, math.floor(high / step) + 1)]


def _seconds(low: float, high: float) -> list[float]:
    """Round seconds in a range, for a logarithmic axis."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [s * 10.0**e for e in exponents for s in (1, 2, 5)]
    return [float(f"{value:.6g}") for value in found if low <= value <= high]
