"""Chains of the head: the randomness that goes in, the tokens and densities that come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...plugins.reference import Density
from ..arrays import Float32, Int64
from ..head import HeadNoise


@dataclass(frozen=True, eq=False)
class Chains:
    """Sampled tokens and the chains that led to them; S is the largest number of head steps.

    Attributes:
        tokens: `[N, C]`.
        density: what the density ratio needs.
        trajectory: states, `[N, S + 1, C]`; see `HeadReport.trajectory`.
        noise: normals with which the sequential chain makes the trajectory, `[N, S, C]`.
    """

    tokens: Float32
    density: Density
    trajectory: Float32
    noise: Float32

    def __getitem__(self, rows: Int64) -> Chains:
        """Return some of the tokens."""
        return Chains(
            self.tokens[rows], self.density[rows], self.trajectory[rows], self.noise[rows]
        )

    @classmethod
    def scattered(cls, parts: Sequence[tuple[Int64, Chains]]) -> Chains:
        """Join chains, given the rows that each part fills; they may differ in S."""
        if len(parts) == 1:
            return parts[0][1]
        count = sum(len(rows) for rows, _ in parts)
        steps = max(chains.noise.shape[1] for _, chains in parts)
        channels = parts[0][1].tokens.shape[1]
        out = cls(
            np.empty((count, channels), dtype=np.float32),
            Density.empty(count, channels),
            np.zeros((count, steps + 1, channels), dtype=np.float32),
            np.zeros((count, steps, channels), dtype=np.float32),
        )
        for rows, chains in parts:
            out.tokens[rows] = chains.tokens
            out.density[rows] = chains.density
            out.trajectory[rows, : chains.trajectory.shape[1]] = chains.trajectory
            out.noise[rows, : chains.noise.shape[1]] = chains.noise
        return out


@dataclass(frozen=True, eq=False)
class ChainInputs:
    """Randomness of N chains.

    Attributes:
        noise: `(initial [N, C], per_step [N, S, C])`.
        streams: makes the generator of each chain for what the samplers draw besides.
        start: trajectory to start the parallel sampler from, `[N, S + 1, C]`, or None.
        together: how many of them belong to one image. Samplers are chosen by this number and not
            by N, so that an image does not depend on its batch.
    """

    noise: HeadNoise
    streams: Callable[[], list[np.random.Generator]]
    start: Float32 | None = None
    together: int = 1

    def __getitem__(self, rows: slice) -> ChainInputs:
        """Return some of the chains."""
        start = None if self.start is None else self.start[rows]
        return ChainInputs(
            (self.noise[0][rows], self.noise[1][rows]), lambda: self.streams()[rows], start,
            self.together,
        )  # fmt: skip
