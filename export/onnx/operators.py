"""The operators of `csd.plugins` as graphs of a bundle, one node of the domain `csd` each.

| graph | operator |
| --- | --- |
| `ops.accept` | `CsdAccept`, acceptance `paper` at the inner temperature of the default options |
| `ops.resample` | `CsdResample`, acceptance `paper` |
| `ops.verify_window` | `CsdVerifyWindow` |
| `ops.transition` | `CsdTransition`, with guidance, temperature 1 |

Inputs and outputs are those of plugins/README.md in float32, with C of the bundle's tokens. Each
node has its function of standard operators: where TensorRT has the plugin it may run that instead.
The operators have tests against `plugins/reference.py`; there is no PyTorch to check them against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from ...plugins.onnx_functions import operator_model
from ...plugins.operators import OPERATORS, Operator, Tensor
from ...runtime.config import MARConfig
from ...runtime.manifest import GraphSpec, TensorSpec, file_sha256
from ...runtime.options import GenerateOptions
from ..profiles import Profile

# Attributes of the graphs that are not the operators' own defaults.
_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "CsdAccept": {"inner_temperature": GenerateOptions().inner_temperature}
}

_DTYPES = {"T": "float32", "float": "float32", "int32": "int32", "bool": "bool"}


def operator_dimensions() -> dict[str, set[str]]:
    """Names of the dimensions of each operator's graph; C is a number in a bundle."""
    return {
        operator.graph: {
            d for tensor in operator.inputs for d in tensor.shape if isinstance(d, str)
        }
        - {"C"}
        for operator in OPERATORS.values()
    }


def write_operators(
    folder: Path, config: MARConfig, profiles: Mapping[str, Profile]
) -> dict[str, GraphSpec]:
    """Write the graphs of all operators and return their entries in the manifest.

    Args:
        folder: where to write.
        config: the target's.
        profiles: ranges of the dimensions of each graph.
    """
    return {
        operator.graph: _write(operator, folder, config, profiles[operator.graph])
        for operator in OPERATORS.values()
    }


def _write(operator: Operator, folder: Path, config: MARConfig, profile: Profile) -> GraphSpec:
    model = operator_model(operator.name, **_ATTRIBUTES.get(operator.name, {}))
    sizes = {"C": config.token_dim}
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    path = folder / f"{operator.graph.replace('.', '_')}.onnx"
    onnx.save_model(model, path)
    inputs, outputs = _specs(operator.inputs, sizes), _specs(operator.outputs, sizes)
    return GraphSpec({path.name: file_sha256(path)}, inputs, outputs, profile)


def _specs(tensors: Sequence[Tensor], sizes: dict[str, int]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(t.name, _DTYPES[t.dtype], tuple(sizes.get(str(d), d) for d in t.shape))
        for t in tensors
    )
