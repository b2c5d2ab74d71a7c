"""The head's graphs bound to arrays that the host library writes and reads.

Between two calls of a small head, handing over arrays takes as long as the arithmetic of the
sampler. Bound graphs read what the host library has just written and write where it reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32, Int64
from ..backends import BindableGraph
from ..head.request import HeadRows, RowsEvaluate
from .evaluator import Conditions, HeadEvaluator, HeadGraphs

# Bound calls kept at once, one for each shape; making one takes 50 microseconds.
MOST_CALLS = 1024


class _Arena:
    """Arrays that graphs are bound to, and the bound calls.

    Threads take turns: a session computes in one at a time (`streaming/turns.py`), so that memory
    does not grow with their number.
    """

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
        self._dtype = step.dtype("mods")  # half of a variant's, where that is what runs
        self._arena = _Arena()

    def modulate(self, z: Float32, timesteps: Int64 | Float32) -> None:
        """Compute the adaLN values of `z [T, D]`, which hold until others take their place."""
        arena, shape = self._arena, (len(timesteps), len(z))
        bound_z = arena.array("z", z.shape)
        bound_timesteps = arena.array("timestep", timesteps.shape, timesteps.dtype)
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
        return self._arena.array("mods", (steps, columns, self._width), self._dtype)


class BoundEvaluator(HeadEvaluator, RowsEvaluate):
    """An evaluator whose rows may also lie where its graphs are bound (`RowsEvaluate`).

    Args:
        head: the bound graphs; evaluators take turns with its arrays.
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
        timesteps: Int64 | Float32,
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

    @property
    def evaluated(self) -> HeadRows:
        """The rows that `evaluate_rows` reads and writes."""
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
