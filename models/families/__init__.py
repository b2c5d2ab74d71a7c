"""Families of models of MAR's skeleton, a file each; a configuration names its own (`family`).

`import csd.models.families` brings no PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...runtime.command.text import shown
from ...runtime.config import MARConfig, read_values
from ...runtime.errors import ConfigError, WeightsError
from . import emigm, mar
from .family import Family, State

FAMILIES = {family.name: family for family in (mar.FAMILY, emigm.FAMILY)}


def presets() -> dict[str, MARConfig]:
    """Configurations of all families by name."""
    return {name: c for family in FAMILIES.values() for name, c in family.presets.items()}


def family_of(name: object) -> Family:
    """Return a family by name.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise ConfigError(f"family is {shown(name)}: give one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def load_config(name_or_path: str | Path) -> MARConfig:
    """Return the preset of that name, or read a JSON file of constructor arguments.

    Its `family` says whose constructor's, and whose defaults fill in what it leaves out.

    Raises:
        ConfigError: no such preset, file or family, not JSON, or not a valid configuration.
    """
    known = presets()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    return config_of(read_values(name_or_path, known))


def config_of(values: Mapping[str, Any]) -> MARConfig:
    """Return the configuration of constructor arguments. See `load_config`.

    Raises:
        ConfigError: no such family, or not a valid configuration.
    """
    family = family_of(values.get("family", "mar"))
    implied: dict[str, Any] = {}
    for name, choices in family.choices.items():
        if name in values:
            value = values[name]
            if not isinstance(value, str | bool) or value not in choices:
                raise ConfigError(
                    f"{name} is {shown(value)}: a model of the family {family.name} has "
                    f"{', '.join(map(str, choices))}"
                )
            implied |= choices[value]
    apart = {*family.unused, *family.choices}
    ours = {name: value for name, value in values.items() if name not in apart}
    return MARConfig.from_dict({**family.defaults, **implied, **ours})


def own_names(state: State, config: MARConfig, path: str | Path) -> State:
    """Return released tensors by the names of `csd.models.mar.MAR`.

    Raises:
        ConfigError: the configuration is of no family.
        WeightsError: the tensors are another family's.
    """
    family = family_of(config.family)
    for other in FAMILIES.values():
        if other is not family and other.recognised(state):
            raise WeightsError(
                f"{path} is a model of the family {other.name}, the configuration is of "
                f'{family.name}: give one of {", ".join(other.presets)}, or "family": '
                f'"{other.name}" in the configuration'
            )
    return family.own_names(state)
