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

from ...plugins.onnx_functions import OPERATORS, Tensor, operator_model
from ...runtime.backends.engines import OPERATOR_PREFIX
from ...runtime.config import MARConfig
from ...runtime.manifest import GraphSpec, TensorSpec, file_sha256
from ...runtime.options import GenerateOptions
from ..profiles import Limits, Profile, default_profile

GRAPHS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{OPERATOR_PREFIX}accept": (
        "CsdAccept",
        {"kind": 0, "inner_temperature": GenerateOptions().inner_temperature},
    ),
    f"{OPERATOR_PREFIX}resample": ("CsdResample", {"kind": 0}),
    f"{OPERATOR_PREFIX}verify_window": ("CsdVerifyWindow", {}),
    f"{OPERATOR_PREFIX}transition": ("CsdTransition", {"temperature": 1.0}),
}

_DTYPES = {"T": "float32", "float": "float32", "int32": "int32", "bool": "bool"}


def operator_profiles(config: MARConfig, limits: Limits) -> dict[str, Profile]:
    """Return the default ranges of the dimensions of each operator's graph.

    Args:
        config: the target's.
        limits: what the bundle is exported for.
    """
    profiles: dict[str, Profile] = {}
    for name, (kind, _) in GRAPHS.items():
        used = {d for tensor in OPERATORS[kind].inputs for d in tensor.shape}
        ranges = default_profile(name, config, limits)
        profiles[name] = {d: ranges[d] for d in ranges if d in used}
    return profiles


def write_operators(
    folder: Path, config: MARConfig, profiles: Mapping[str, Profile]
) -> dict[str, GraphSpec]:
    """Write the graphs of all operators and return their entries in the manifest.

    Args:
        folder: where to write.
        config: the target's.
        profiles: ranges of the dimensions of each graph.
    """
    return {name: _write(name, folder, config, profiles[name]) for name in GRAPHS}


def _write(name: str, folder: Path, config: MARConfig, profile: Profile) -> GraphSpec:
    kind, attributes = GRAPHS[name]
    model = operator_model(kind, **attributes)
    sizes = {"C": config.token_dim}
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    path = folder / f"{name.replace('.', '_')}.onnx"
    onnx.save_model(model, path)
    operator = OPERATORS[kind]
    inputs, outputs = _specs(operator.inputs, sizes), _specs(operator.outputs, sizes)
    return GraphSpec({path.name: file_sha256(path)}, inputs, outputs, profile)


def _specs(tensors: Sequence[Tensor], sizes: dict[str, int]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(t.name, _DTYPES[t.dtype], tuple(sizes.get(str(d), d) for d in t.shape))
        for t in tensors
    )
