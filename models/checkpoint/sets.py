"""Which sets of weights a file holds, and which of them is taken.

A training script keeps a model's weights and their averages (EMA) side by side, under names of its
own. Averages are taken where there are any, as MAR is evaluated with them; never others without a
word: where averages are there and cannot be read, or two sets have equal claims, it is an error
that lists the file's keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from torch import Tensor

from ...runtime.command.text import shown
from ...runtime.errors import WeightsError

Kind = Literal["ema", "model"]
KINDS: tuple[Kind, ...] = ("ema", "model")

_AVERAGED = {"ema", "shadow", "averaged", "swa"}
_MODEL = {
    "model", "state_dict", "model_state_dict", "model_state", "module", "params", "net", "network",
    "weights", "model_weights", "online_model",
}  # fmt: skip
_DEPTH = 3
_MOST_KEYS = 12
# Counters that averaging keeps beside tensors.
_COUNTERS = {"n_averaged", "num_updates", "decay", "initted", "step"}


@dataclass(frozen=True)
class WeightSet:
    """One set of weights in a file.

    Attributes:
        kind: averages or not; None where the file does not say.
        place: keys that lead to it.
        prefix: how the names of its tensors begin, where several sets lie in one mapping.
        tensors: by name, or in an order that another set tells.
    """

    kind: Kind | None
    place: tuple[str, ...]
    prefix: str
    tensors: Mapping[str, Tensor] | Sequence[Tensor]

    @property
    def key(self) -> str:
        """What to ask for it by; empty where it is all that the file holds."""
        return ".".join([*self.place, *([self.prefix[:-1]] if self.prefix else [])])


def kind_of(name: str) -> Kind | None:
    """What a key says of the weights under it: None where it says nothing of weights."""
    folded = name.casefold()
    if _AVERAGED & set(re.split(r"[^a-z0-9]+", folded)):
        return "ema"
    return "model" if folded in _MODEL else None


def choose(content: object, wanted: str | None, path: Path) -> WeightSet:
    """Return the set of weights to take.

    Args:
        content: of the file.
        wanted: `ema`, `model`, a key, or None for averages where there are any.
        path: of the file, for messages.

    Raises:
        WeightsError: there is no such set, several, or averages that cannot be read.
    """
    return _Choice(content, path).of(wanted)


class _Choice:
    def __init__(self, content: object, path: Path) -> None:
        self._content, self._path = content, path
        self._spoilt: list[tuple[Kind, str]] = []  # keys of weights that hold none
        self._sets = self._find(content, (), None)

    def of(self, wanted: str | None) -> WeightSet:
        if wanted is not None:
            return self._asked(wanted)
        for kind in KINDS:
            spoilt = next((key for name, key in self._spoilt if name == kind), None)
            found = [each for each in self._sets if each.kind == kind]
            if found:
                return self._one(found, kind)
            if spoilt is not None and len(self._sets) > 0:
                raise self._error(f"{shown(spoilt)} holds no tensors that csd reads",
                                  "give --weights KEY for others")  # fmt: skip
        if len(self._sets) == 1:
            return self._sets[0]
        raise self._error("holds no tensors under a name that csd knows",
                          "give --weights KEY with the one that holds them")  # fmt: skip

    def _asked(self, wanted: str) -> WeightSet:
        for each in self._sets:
            if each.key == wanted:
                return each
        found = _at(self._content, wanted)
        if found is not None:
            kind = kind_of(wanted.rpartition(".")[2])
            return WeightSet(kind, tuple(wanted.split(".")), "", found)
        if wanted in KINDS:
            matching = [each for each in self._sets if each.kind == wanted]
            if matching:
                return self._one(matching, wanted)
            if [each.key for each in self._sets] == [""]:
                raise WeightsError(
                    f"{self._path} holds one set of weights and does not say whether they are "
                    f"averages: leave out --weights {wanted}, or give it for the other models alone"
                )
        raise self._error(f"holds no weights {shown(wanted)}", "give --weights KEY with one of "
                          f"{', '.join(e.key for e in self._sets) or 'them'}")  # fmt: skip

    def _one(self, sets: list[WeightSet], kind: Kind | str) -> WeightSet:
        first = sets[0]
        if all(each.tensors is first.tensors for each in sets):
            return first
        keys = ", ".join(each.key for each in sets)
        raise WeightsError(
            f"{self._path} holds {len(sets)} sets of weights of kind {kind}: give --weights KEY "
            f"with one of {keys}"
        )

    def _error(self, what: str, remedy: str) -> WeightsError:
        if isinstance(self._content, Mapping):
            keys = [shown(key, 40) for key in self._content]
            more = f" and {len(keys) - _MOST_KEYS} more" if len(keys) > _MOST_KEYS else ""
            held = f"its keys are {', '.join(keys[:_MOST_KEYS])}{more}" if keys else "it is empty"
        else:
            held = f"it is a {type(self._content).__name__}"
        return WeightsError(f"{self._path} {what} ({held}): {remedy}")

    def _find(self, value: object, place: tuple[str, ...], kind: Kind | None) -> list[WeightSet]:
        """The sets in a value whose key says `kind`, those under named keys first."""
        if not isinstance(value, Mapping):
            return [WeightSet(kind, place, "", list(value))] if _are_tensors(value) else []
        inner: list[WeightSet] = []
        for name, item in value.items():
            said = kind_of(name) if isinstance(name, str) and len(place) < _DEPTH else None
            if said is None or item is None or isinstance(item, Tensor | int | float | str):
                continue
            where = (*place, name)
            found = self._find(item, where, "ema" if "ema" in (kind, said) else said)
            if not found and not any(key.startswith(".".join(where)) for _, key in self._spoilt):
                self._spoilt.append((said, ".".join(where)))
            inner += found
        if inner:
            return inner
        tensors = tensors_of(value)
        return _split(tensors, place, kind) if tensors else []


def tensors_of(values: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a mapping by name, without the counters that averaging keeps beside them."""
    return {
        str(name): value
        for name, value in values.items()
        if isinstance(value, Tensor)
        and not (value.numel() == 1 and str(name).rpartition(".")[2] in _COUNTERS)
    }


def _split(
    tensors: dict[str, Tensor], place: tuple[str, ...], kind: Kind | None
) -> list[WeightSet]:
    """One set, or as many as begin with names of sets (`ema_model.`, `model.`)."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(name.partition(".")[0], {})[name] = tensor
    said: dict[str, Kind | None] = {part: kind_of(part) for part in parts}
    if len(parts) < 2 or "ema" not in said.values() or None in said.values():
        return [WeightSet(kind, place, "", tensors)]
    return [WeightSet(said[part], place, f"{part}.", held) for part, held in parts.items()]


def _are_tensors(value: object) -> TypeGuard[Sequence[Tensor]]:
    if not isinstance(value, list | tuple):
        return False
    items: Sequence[object] = value
    return len(items) > 0 and all(isinstance(item, Tensor) for item in items)


def _at(content: object, key: str) -> Mapping[str, Tensor] | list[Tensor] | None:
    """What tensors a dotted key leads to, whatever it is called."""
    value: Any = content
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    if _are_tensors(value):
        return list(value)
    return tensors_of(value) or None if isinstance(value, Mapping) else None


def walker(place: Sequence[str]) -> Callable[[object], Any]:
    """Return a function that leads from a file's content to what lies at a place."""

    def walk(content: Any) -> Any:
        for key in place:
            content = content[key]
        return content

    return walk
