"""Sampled tokens with the chains of head steps that led to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...plugins.reference import Density
from ..arrays import Float32, Int64
from ..head import HeadReport


@dataclass(frozen=True, eq=False)
class Chains:
    """Sampled tokens and the chains that led to them; S is the largest number of head steps.

    Attributes:
        tokens: `[N, C]`.
        density: what the density ratio needs.
        trajectory: states, `[S + 1, N, C]`; see `HeadReport.trajectory`.
        noise: normals with which the sequential chain makes the trajectory, `[N, S, C]`.
    """

    tokens: Float32
    density: Density
    trajectory: Float32
    noise: Float32

    def __getitem__(self, rows: Int64) -> Chains:
        """Return some of the tokens."""
        return Chains(
            self.tokens[rows], self.density[rows], self.trajectory[:, rows], self.noise[rows]
        )

    @classmethod
    def of(cls, report: HeadReport) -> Chains:
        """Return what a head sampler reports."""
        density = Density(report.mean, report.std, report.sum_log_std)
        return cls(report.mean, density, report.trajectory, report.noise[1])

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
            np.zeros((steps + 1, count, channels), dtype=np.float32),
            np.zeros((count, steps, channels), dtype=np.float32),
        )
        for rows, chains in parts:
            out.tokens[rows] = chains.tokens
            out.density[rows] = chains.density
            out.trajectory[: len(chains.trajectory), rows] = chains.trajectory
            out.noise[rows, : chains.noise.shape[1]] = chains.noise
        return out
