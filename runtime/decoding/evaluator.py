"""The head of N tokens as `evaluate(x, step, token)`, guidance applied.

| class | reads its rows from | for |
| --- | --- | --- |
| `HeadEvaluator` | the arrays of each call | any graph |
| `BoundEvaluator` (`bound`) | arrays that graphs stay bound to | graphs of the host |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...plugins.rounds import Finished, Start
from ..arrays import Float32, Int64
from ..backends import Graph, HeadRounds
from ..errors import NumericsError
from ..head.request import DeviceEvaluate


@dataclass(frozen=True, eq=False)
class Conditions:
    """Conditions of N tokens.

    Attributes:
        z: `[N, D]`.
        unconditional: `[N, D]`, or None without guidance.
        scale: guidance scale of each token, `[N]`.
    """

    z: Float32
    unconditional: Float32 | None
    scale: Float32

    def __getitem__(self, rows: Int64 | slice) -> Conditions:
        """Return some of the tokens."""
        other = None if self.unconditional is None else self.unconditional[rows]
        return Conditions(self.z[rows], other, self.scale[rows])

    def __len__(self) -> int:
        return len(self.z)

    def conditional(self) -> Conditions:
        """The same tokens without guidance."""
        return Conditions(self.z, None, self.scale)

    @property
    def columns(self) -> Float32:
        """Conditions of the columns of `mods`: conditional ones, then unconditional ones."""
        if self.unconditional is None:
            return self.z
        return np.concatenate([self.z, self.unconditional])


@dataclass(frozen=True, eq=False)
class HeadGraphs:
    """The graphs of a model's head.

    Attributes:
        role: `target` or `draft`, for error messages.
        modulation: the graph `head_modulation`.
        step: the graph `head_step`.
        rounds: runs the speculative sampler's rounds beside `step`, or None.
    """

    role: str
    modulation: Graph
    step: Graph
    rounds: HeadRounds | None = None


class HeadEvaluator(DeviceEvaluate):
    """`evaluate(x [R, C], step [R], token [R]) -> (eps [R, C], v [R, C])`.

    Args:
        graphs: of the head.
        conditions: of N tokens; their adaLN values are computed once, when first needed.
        timesteps: training timestep of each head step, `[S]`, as the graph takes them.
        where: what is being sampled, for error messages.
    """

    def __init__(
        self, graphs: HeadGraphs, conditions: Conditions, timesteps: Int64 | Float32, where: str
    ) -> None:
        self._graphs, self._where = graphs, where
        self._conditions, self._timesteps = conditions, timesteps
        self._scales = conditions.scale[:, None]
        self._guided = conditions.unconditional is not None
        self._mods: Any = None

    @property
    def scale(self) -> Float32 | None:
        """Guidance scale of each token, `[N]`, or None without guidance."""
        return None if self._conditions.unconditional is None else self._conditions.scale

    def modulations(self) -> Any:
        """The adaLN values, `[S, N, M]` or `[S, 2 N, M]`, left where the network is."""
        if self._mods is None:
            z, timesteps = self._conditions.columns, self._timesteps
            feeds, rows = {"z": z, "timestep": timesteps}, len(z) * len(timesteps)
            self._mods = self._graphs.modulation.run(feeds, rows=rows, keep=("mods",))["mods"]
        return self._mods

    def run_rounds(self, start: Callable[[], Start | None]) -> tuple[Finished, int, int] | None:
        """See `DeviceEvaluate.run_rounds`."""
        if self._graphs.rounds is None or (given := start()) is None:
            return None
        return self._graphs.rounds.run(given, self.modulations())

    def __call__(self, x: Float32, step: Int64, token: Int64) -> tuple[Float32, Float32]:
        """Evaluate R rows.

        Raises:
            NumericsError: an output is not finite.
        """
        mods, rows = self.modulations(), len(x)
        if self._guided:
            feeds = {
                "x": np.concatenate([x, x]), "step": np.concatenate([step, step]),
                "token": np.concatenate([token, token + len(self._conditions)]), "mods": mods,
            }  # fmt: skip
            out = self._graphs.step.run(feeds, rows=2 * rows)
            both, v = out["eps"], out["v"][:rows]
            free = both[rows:]
            eps = np.asarray(free + self._scales[token] * (both[:rows] - free), dtype=np.float32)
        else:
            feeds = {"x": x, "step": step, "token": token, "mods": mods}
            out = self._graphs.step.run(feeds, rows=rows)
            eps, v = out["eps"], out["v"]
        # A sum is finite only if its terms are, and costs less than looking at each.
        if not np.isfinite(np.add.reduce(eps, axis=None) + np.add.reduce(v, axis=None)):
            self._check(eps, v, step)
        return eps, v

    def _check(self, eps: Float32, v: Float32, step: Int64) -> None:
        bad = ~(np.isfinite(eps).all(axis=1) & np.isfinite(v).all(axis=1))
        if bad.any():
            raise NumericsError(
                f"{self._graphs.role}.head_step returned values that are not finite at "
                f"{self._where}, head step {int(step[bad][0])}: check the weights, or lower "
                "temperature or cfg"
            )
