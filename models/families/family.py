"""What one family of models has otherwise than MAR, whose skeleton all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...runtime.config import MARConfig

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]


def _same(state: State) -> State:
    return state


def _never(state: State) -> bool:
    del state
    return False


@dataclass(frozen=True)
class Family:
    """A family of models; its file says what is published and where it differs.

    Attributes:
        name: value of `family` in a configuration.
        presets: published configurations by name.
        defaults: fields of a configuration whose value, where it is not given, is not MAR's.
        unused: arguments of the released constructor or scripts that decide nothing here, besides
            MAR's.
        choices: arguments of the same that are no fields of a configuration: by name and value, the
            fields that they stand for, where those are not given. Other values are refused.
        own_names: tensors by released name -> tensors by the names of `csd.models.mar.MAR`.
        recognised: whether tensors by released name are this family's and no other's.
    """

    name: str
    presets: Mapping[str, MARConfig]
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    unused: frozenset[str] = frozenset()
    choices: Mapping[str, Mapping[Any, Mapping[str, Any]]] = field(
        default_factory=dict[str, Mapping[Any, Mapping[str, Any]]]
    )
    own_names: Callable[[State], State] = _same
    recognised: Callable[[State], bool] = _never
