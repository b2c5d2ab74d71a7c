"""Weights into a module: every name and shape must fit, and every value be finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...runtime.errors import WeightsError

Module = TypeVar("Module", bound=nn.Module)


_REMEDY = "give the configuration that the model was trained with"


def load_into(module: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy `state` into `module`; every name and shape must fit.

    Raises:
        WeightsError: names the first tensor that is missing, unexpected, of another shape, or not
            finite.
    """
    check_names(module.state_dict(), state, path)
    check_finite(state, path)
    module.load_state_dict(dict(state))


def build(
    make: Callable[[], Module],
    state: Mapping[str, Tensor],
) -> Module:
    """Return the module that `make` makes, with `state` as its own tensors, for inference.

    No memory is taken for tensors that are replaced, nor for a copy of those of `state`.

    Args:
        make: returns the module.
        state: every tensor of it by name, of its shape (`check_names`).
    """
    with torch.device("meta"):
        module = make()
    module.load_state_dict(dict(state), assign=True)
    return module.eval()


def check_names(
    wanted: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    path: str | Path,
    remedy: str = _REMEDY,
) -> None:
    """Check that tensors have the names and shapes that are wanted.

    Raises:
        WeightsError: names the first that is missing, unexpected or of another shape.
    """
    for name, tensor in wanted.items():
        if name not in state:
            raise WeightsError(f"{path} lacks {name} {list(tensor.shape)}: {remedy}")
        if state[name].shape != tensor.shape:
            raise WeightsError(
                f"{path}: {name} is {list(state[name].shape)}, wanted {list(tensor.shape)}: "
                f"{remedy}"
            )
    extra = sorted(set(state) - set(wanted))
    if extra:
        raise WeightsError(f"{path} has {extra[0]}, which the model does not: {remedy}")


def check_finite(state: Mapping[str, Tensor], where: str | Path) -> None:
    """Check that all values are finite.

    Raises:
        WeightsError: names the first tensor that has others.
    """
    for name, tensor in state.items():
        # A sum is finite only if its terms are, and takes no memory; one that overflows tells
        # nothing.
        if not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise WeightsError(
                f"{where}: {name} holds values that are not finite: give weights that were saved "
                "before their training diverged"
            )
