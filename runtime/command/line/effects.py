"""Options that have an effect under others only: given without those, they are refused.

A table says of each option when it has an effect, and why it has none else. What counts is that the
user gave the option on the command line, whatever its value: defaults and presets give nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from ...errors import OptionError

T = TypeVar("T")


@dataclass(frozen=True)
class Effect(Generic[T]):
    """When some options have an effect.

    Attributes:
        options: their names in the parsed arguments.
        when: whether they have one in a situation.
        reason: why they have none else.
        instead: what to give.
    """

    options: tuple[str, ...]
    when: Callable[[T], bool]
    reason: str
    instead: str


def refuse_without_effect(
    given: Mapping[str, str], effects: Iterable[Effect[T]], situations: Iterable[T]
) -> None:
    """Refuse what was given and changes nothing.

    Args:
        given: options of the command line by their names in the parsed arguments.
        effects: when options have an effect.
        situations: all that the command will do; an effect in one of them is enough.

    Raises:
        OptionError: an option has no effect: why, and what to give instead.
    """
    every = list(situations)
    for effect in effects:
        named = [given[name] for name in effect.options if name in given]
        if named and not any(effect.when(situation) for situation in every):
            raise OptionError(
                f"{named[0]} has no effect, as {effect.reason}: {effect.instead}, or leave out "
                f"{named[0]}"
            )
