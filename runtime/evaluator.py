"""The head of N tokens as `evaluate(x, step, token)`, guidance applied.

| class | reads its rows from | for |
| --- | --- | --- |
| `HeadEvaluator` | the arrays of each call | any graph |
| `BoundEvaluator` | arrays that the graphs stay bound to | graphs of the host (`BindableGraph`) |

Between two calls of a small head, handing over arrays takes as long as the arithmetic of the
sampler. Bound graphs read what the host library has just written and write where it reads.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends import BindableGraph, Graph
from .errors import NumericsError
from .head.sampler import HeadRows, RowsEvaluate

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

# Bound calls kept at once, one for each shape; making one takes 50 microseconds.
MOST_CALLS = 1024


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
    """

    role: str
    modulation: Graph
    step: Graph


class HeadEvaluator:
    """`evaluate(x [R, C], step [R], token [R]) -> (eps [R, C], v [R, C])`.

    Args:
        graphs: of the head.
        conditions: of N tokens; their adaLN values are computed once, when first needed.
        timesteps: training timestep of each head step, `[S]`.
        where: what is being sampled, for error messages.
    """

    def __init__(
        self, graphs: HeadGraphs, conditions: Conditions, timesteps: Int64, where: str
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


class _Arena(threading.local):
    """Arrays that graphs are bound to, and the bound calls; every thread has its own."""

    def __init__(self) -> None:
        self._flat: dict[str, NDArray[Any]] = {}
        self.calls: dict[tuple[int, ...], Callable[[], None]] = {}
        self.owner: object = None

    def array(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        """A dense array at an address that changes only when a larger one is asked for."""
        size = math.prod(shape)
        if name not in self._flat or len(self._flat[name]) < size:
            self.calls.clear()
            self._flat.pop(name, None)  # first, so that both are never there at once
            self._flat[name] = np.empty(size, dtype)
        return self._flat[name][:size].reshape(shape)

    def keep(self, key: tuple[int, ...], call: Callable[[], None]) -> None:
        """Keep a bound call."""
        if len(self.calls) >= MOST_CALLS:
            self.calls.clear()
        self.calls[key] = call


class BoundHead:
    """`head_modulation` and `head_step` bound to arrays that serve one AR step after another.

    Args:
        modulation: the graph `head_modulation`.
        step: the graph `head_step`.
        channels: C.
        width: M.
    """

    def __init__(
        self, modulation: BindableGraph, step: BindableGraph, channels: int, width: int
    ) -> None:
        self.channels = channels
        self._modulation, self._step, self._width = modulation, step, width
        self._arena = _Arena()

    def modulate(self, z: Float32, timesteps: Int64) -> None:
        """Compute the adaLN values of `z [T, D]`, which hold until others take their place."""
        arena, shape = self._arena, (len(timesteps), len(z))
        bound_z = arena.array("z", z.shape)
        bound_timesteps = arena.array("timestep", timesteps.shape, np.int64)
        mods = self._modulations(*shape)
        bound_z[:], bound_timesteps[:] = z, timesteps
        call = arena.calls.get(shape)
        if call is None:
            inputs = {"z": bound_z, "timestep": bound_timesteps}
            call = self._modulation.bind(inputs, {"mods": mods}, math.prod(shape))
            arena.keep(shape, call)
        call()

    def load(self, mods: Float32) -> None:
        """Take adaLN values that were computed elsewhere, `[S, T, M]`."""
        self._modulations(*mods.shape[:2])[:] = mods

    def rows(self, owner: object, capacity: int) -> HeadRows:
        """Arrays of `capacity` rows, which are the owner's until another one asks for rows."""
        self._arena.owner = owner
        return self._rows(capacity)

    def _rows(self, capacity: int) -> HeadRows:
        arena, shape = self._arena, (capacity, self.channels)
        return HeadRows(
            arena.array("x", shape), arena.array("step", shape[:1], np.int64),
            arena.array("token", shape[:1], np.int64), arena.array("eps", shape),
            arena.array("v", shape),
        )  # fmt: skip

    def evaluate(self, owner: object, count: int, steps: int, columns: int) -> None:
        """Evaluate the first `count` rows, given adaLN values of S head steps and T columns.

        Raises:
            RuntimeError: the arrays are another owner's by now.
        """
        if self._arena.owner is not owner:
            raise RuntimeError("rows were taken by another evaluator: call rows again")
        key = steps, columns, count
        call = self._arena.calls.get(key)
        if call is None:
            x, step, token, eps, v = self._rows(count)
            mods = self._modulations(steps, columns)
            inputs = {"x": x, "step": step, "token": token, "mods": mods}
            call = self._step.bind(inputs, {"eps": eps, "v": v}, count)
            self._arena.keep(key, call)
        call()

    def _modulations(self, steps: int, columns: int) -> Float32:
        return self._arena.array("mods", (steps, columns, self._width))


class BoundEvaluator(HeadEvaluator, RowsEvaluate):
    """An evaluator whose rows may also lie where its graphs are bound (`RowsEvaluate`).

    Args:
        head: the bound graphs; evaluators of one thread take turns with its arrays.
        graphs: see `HeadEvaluator`, as for all that follow.
        conditions: of N tokens.
        timesteps: `[S]`.
        where: what is being sampled.
    """

    def __init__(
        self,
        head: BoundHead,
        graphs: HeadGraphs,
        conditions: Conditions,
        timesteps: Int64,
        where: str,
    ) -> None:
        super().__init__(graphs, conditions, timesteps, where)
        self._head = head
        self._rows = HeadRows.empty(0, head.channels)

    def rows(self, capacity: int) -> HeadRows:
        """See `RowsEvaluate.rows`."""
        if self._mods is None:
            self._head.modulate(self._conditions.columns, self._timesteps)
        else:
            self._head.load(self._mods)
        self._rows = self._head.rows(self, capacity * (2 if self._guided else 1))
        return self._rows

    def evaluate_rows(self, count: int) -> None:
        """See `RowsEvaluate.evaluate_rows`."""
        steps, tokens = len(self._timesteps), len(self._conditions)
        if not self._guided:
            self._head.evaluate(self, count, steps, tokens)
            return
        x, step, token, eps, _ = self._rows
        other = slice(count, 2 * count)
        x[other], step[other] = x[:count], step[:count]
        np.add(token[:count], tokens, out=token[other])
        self._head.evaluate(self, 2 * count, steps, 2 * tokens)
        mixed, free = eps[:count], eps[other]
        np.subtract(mixed, free, out=mixed)
        np.multiply(mixed, self._scales[token[:count]], out=mixed)
        np.add(mixed, free, out=mixed)

    def check_rows(self, count: int) -> None:
        """See `RowsEvaluate.check_rows`."""
        self._check(self._rows.eps[:count], self._rows.v[:count], self._rows.step[:count])
