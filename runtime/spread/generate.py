"""Images of many labels, made by several sessions: the result is that of one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from ..command.frame import raise_if_stopped
from ..options import GenerateOptions
from ..result import GenerateResult
from ..session import Session
from ..stats import Progress, Stats
from .sessions import Piece, Sessions

# How many images are made, of how many.
OnImages = Callable[[int, int], None]


def pieces_of(
    labels: Sequence[int], options: GenerateOptions, seed: int, max_batch: int
) -> list[Piece]:
    """Cut a call into the parts that it is decoded in anyway: the same calls of the same networks.

    Args:
        labels: class indices of the call.
        options: with all defaults filled in.
        seed: of its noise.
        max_batch: images that the bundle takes at once.
    """
    size = min(max_batch, len(labels))
    return [
        (tuple(labels[first : first + size]), options, seed, first, size)
        for first in range(0, len(labels), size)
    ]


def generate_piece(
    session: Session, labels: tuple[int, ...], options: GenerateOptions, seed: int, first: int,
    size: int,
) -> GenerateResult:  # fmt: skip
    """Make the images of a piece; `size` is what `auto` chooses for, also in a shorter last one."""
    return session.generate(
        labels, options, seed=seed, first_image=first, at_once=size, progress=stop_here
    )


def stop_here(progress: Progress) -> None:
    """Stop between two AR steps where a signal has come."""
    del progress
    raise_if_stopped()


def generate_spread(sessions: Sessions, pieces: Sequence[Piece], shown: OnImages) -> GenerateResult:
    """Make the images of `pieces_of`.

    Args:
        sessions: that make them.
        pieces: of one call.
        shown: called when a piece is done.

    Returns:
        What `Session.generate` returns: arrays and counts are the same, seconds are those of the
        whole, and seconds by part the sum over the workers.

    Raises:
        CsdError: as for `Sessions.map`.
    """
    began, results, total = time.perf_counter(), list[GenerateResult](), 0
    every = sum(len(piece[0]) for piece in pieces)
    for result in sessions.map(generate_piece, pieces):
        results.append(result)
        total += len(result.labels)
        shown(total, every)
    joined = join_results(results)
    joined.stats.seconds = time.perf_counter() - began
    joined.stats.device_seconds = None  # of several devices at once
    return joined


def join_results(results: Sequence[GenerateResult]) -> GenerateResult:
    """Join results of one seed whose images follow each other."""
    return replace(
        results[0],
        images=np.concatenate([result.images for result in results]),
        latents=np.concatenate([result.latents for result in results]),
        tokens=np.concatenate([result.tokens for result in results]),
        labels=tuple(label for result in results for label in result.labels),
        stats=join_stats([result.stats for result in results]),
    )


def join_stats(parts: Sequence[Stats]) -> Stats:
    """Add up statistics of parts of a run; of device memory the largest counts."""
    joined = Stats(parts[0].num_iter)
    for name in (field.name for field in fields(Stats) if field.name != "num_iter"):
        setattr(joined, name, _sum([getattr(part, name) for part in parts]))
    for name in ("drafted_by_step", "accepted_by_step"):
        setattr(joined, name, np.sum([getattr(part, name) for part in parts], axis=0))
    peaks = [part.device_memory_peak for part in parts]
    joined.device_memory_peak = max((peak for peak in peaks if peak is not None), default=None)
    return joined


def _sum(values: Sequence[Any]) -> Any:
    """Sum numbers, tables of them by their keys, and None where there is one."""
    if isinstance(values[0], dict):
        keys = {key: None for value in values for key in value}
        return {key: _sum([value[key] for value in values if key in value]) for key in keys}
    if isinstance(values[0], tuple):
        return tuple(_sum(column) for column in zip(*values, strict=True))
    return None if any(value is None for value in values) else sum(values)
