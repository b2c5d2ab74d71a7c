"""What PyTorch computes with a network, and whether a graph computes the same.

The first is noted while the model is in memory, the second is asked when it no longer is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...runtime.backends import Graph
from ...runtime.bundle.graph_tensors import TYPED
from ...runtime.bundle.manifest import ParityResult
from ...runtime.difference import Difference
from .graphs import ExportGraph

# Largest difference to PyTorch in float32, as a share of the largest output (at least 1): what a
# graph's own rounding leaves, times a few (docs/rtx.md has what was seen).
TOLERANCES = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 4e-2, "int8": 5e-2}

_TORCH_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Trial:
    """A call of a network: `feeds` by name, and the `outputs` that PyTorch made of them."""

    feeds: Arrays
    outputs: Arrays


@dataclass(frozen=True, eq=False)
class Reference:
    """What a graph in a precision is held against.

    Attributes:
        graph: its name.
        precision: `fp32`, or that of a variant. The values of its typed inputs are rounded to it,
            so that they are no part of its error, and are float32 here.
        trials: calls at several sizes of the dynamic dimensions, computed in float32.
    """

    graph: str
    precision: str
    trials: tuple[Trial, ...]


def reference(graph: ExportGraph, precision: str = "fp32") -> Reference:
    """Run a network in PyTorch, in float32."""
    trials: list[Trial] = []
    for index, sizes in enumerate(graph.trials):
        args = graph.feeds(sizes, torch.Generator().manual_seed(index))
        if precision in _TORCH_TYPES:
            args = tuple(
                arg.to(_TORCH_TYPES[precision]).to(arg.dtype) if name in TYPED else arg
                for name, arg in zip(graph.inputs, args, strict=True)
            )
        with torch.inference_mode():
            made = graph.module(*args)
        outputs = (made,) if isinstance(made, Tensor) else made
        trials.append(Trial(_arrays(graph.inputs, args), _arrays(graph.outputs, outputs)))
    return Reference(graph.name, precision, tuple(trials))


def references(graph: ExportGraph, precisions: tuple[str, ...]) -> dict[str, Reference]:
    """Return the references of a graph in float32 and in other precisions, by precision.

    PyTorch runs again only for those whose inputs differ.
    """
    full = reference(graph)
    typed = any(name in TYPED for name in graph.inputs)
    return {"fp32": full} | {
        name: reference(graph, name) if typed else Reference(graph.name, name, full.trials)
        for name in precisions
    }


def _arrays(names: Any, values: tuple[Tensor, ...]) -> Arrays:
    return {name: value.numpy() for name, value in zip(names, values, strict=True)}


def check_parity(
    wanted: Reference,
    loaded: Graph,
    *,
    emulated: bool = False,
    advanced: Callable[[], None] = lambda: None,
) -> ParityResult:
    """Compare a loaded graph with PyTorch.

    Args:
        wanted: what PyTorch made.
        loaded: what came of the network.
        emulated: the variant keeps its tensors in float32 (`precision.retype`).
        advanced: called after each trial.
    """
    precision, worst = wanted.precision, Difference()
    for trial in wanted.trials:
        feeds = trial.feeds
        if precision == "fp16" and not emulated:
            feeds = {k: v.astype(np.float16) if k in TYPED else v for k, v in feeds.items()}
        outputs = loaded.run(feeds)
        for name, expected in trial.outputs.items():
            worst = worst.or_worse(Difference.of(outputs[name], expected))
        advanced()
    tolerance = TOLERANCES[precision]
    return ParityResult(
        parity_name(wanted.graph, precision, emulated), len(wanted.trials), worst.absolute,
        worst.relative, tolerance, worst.share <= tolerance,
    )  # fmt: skip


def parity_name(graph: str, precision: str, emulated: bool) -> str:
    """Name of a graph in the parity report, as `target.head_step [fp16]`."""
    if precision == "fp32":
        return graph
    return f"{graph} [{precision}{', emulated' if emulated else ''}]"
