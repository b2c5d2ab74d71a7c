"""A MAR model from a file of weights."""

from __future__ import annotations

from pathlib import Path

import torch

from ...runtime.config import MARConfig
from ..families import own_names
from ..mar import MAR
from .fit import build, check_names
from .reading import Weights, read_weights
from .shape import LANDMARK, Shape, check_config


def find_mar(
    path: str | Path, wanted: str | None = None, config: MARConfig | None = None
) -> Weights:
    """Find a MAR model's weights without reading them.

    Args:
        path, wanted: as for `read_weights`.
        config: the architecture, where it is known: it tells the names of averages that are a list
            in a file without the model's own weights.

    Raises:
        WeightsError, BackendError, OSError: as for `read_weights`.
    """

    def order() -> list[str]:
        if config is None:
            return []
        with torch.device("meta"):
            return [name for name, _ in MAR(config).named_parameters()]

    return read_weights(path, wanted, landmark=LANDMARK, order=order)


def check_mar(weights: Weights, config: MARConfig) -> None:
    """Check weights that were found, without taking memory for them.

    Raises:
        WeightsError: a tensor does not fit the configuration, or is not finite, or the weights are
            another family's.
        ConfigError: the configuration is of no family.
    """
    check_config(Shape.of(weights.tensors, weights.path), config, weights.path)
    weights.check_plain()
    with torch.device("meta"):
        model = MAR(config)
    state = own_names(weights.tensors, config, weights.path)
    check_names(model.state_dict(), state, weights.path)
    weights.check_finite()


def build_mar(weights: Weights, config: MARConfig) -> MAR:
    """Make the model of weights that `check_mar` has taken (evaluation mode, float32, CPU).

    Tensors that are float32 in the file stay mapped.

    Raises:
        BackendError, OSError: as for `read_weights`.
    """
    return build(lambda: MAR(config), own_names(weights.float32(), config, weights.path))


def load_mar(path: str | Path, config: MARConfig, weights: str | None = None) -> MAR:
    """Load a MAR model for inference (evaluation mode, float32, CPU).

    Args:
        path: a file, an index of shards or a folder, with official keys (`read_weights`).
        config: the architecture.
        weights: `ema`, `model`, a key of the file, or None for averages where there are any.

    Raises:
        WeightsError: the file cannot be read, a tensor does not fit the configuration, or one
            holds values that are not finite.
    """
    found = find_mar(path, weights, config)
    check_mar(found, config)
    return build_mar(found, config)
