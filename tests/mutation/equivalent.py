"""Mutants that change nothing that anybody gets: file -> mutant -> reason."""

from __future__ import annotations

_SORT = "FixedNoise.__init__: np.sort(self._orders, axis=1) -> np.sort(self._orders)"
_FRESH = "a new Philox has these values already, and the next stream overwrites the others"
EQUIVALENT: dict[str, dict[str, str]] = {
    "runtime/noise.py": {
        "_PassingGenerator.__init__: 0 -> 1": _FRESH,
        "_PassingGenerator.__init__: 'buffer_pos' -> 'buffer_pos?'": _FRESH,
        "_PassingGenerator.__init__: 'has_uint32' -> 'has_uint32?'": _FRESH,
        "_PassingGenerator.__init__: 4 -> 5": "4 and more say that the buffer is used up",
        _SORT: "orders have two axes there: the last one is axis 1",
    }
}

# Mutants that no test finds although they change something: file -> mutant -> reason.
KNOWN: dict[str, dict[str, str]] = {}
