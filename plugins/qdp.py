"""The operators as TensorRT's quickly deployable plugins, compiled ahead of time.

    python -m csd.plugins.build --out kernels --arch 87 --ptx

    from csd.plugins import qdp
    qdp.register(Path("kernels"))
    # from here on the ONNX parser and tensorrt.plugin.op.csd build engines with the operators

TensorRT 10.9 and later put the PTX into the engine, which then needs neither this package nor a
library to run. The kernels, and the order of their arguments, are those of `kernels/kernels.cuh`:
inputs, numbers of 32 bits, outputs. Only building needs Python.
"""

from __future__ import annotations

import inspect
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .launch import THREADS, WARP
from .operators import DOMAIN, OPERATORS, Operator, Tensor

MINIMUM = (10, 9)
ELEMENTS = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}

_REMEDY = "use the C++ plugins of plugins/tensorrt"
_AUTOTUNE_TYPES = {"T": "FP32|FP16|BF16", "float": "FP32", "int32": "INT32", "bool": "BOOL"}


class QdpError(RuntimeError):
    """The plugins cannot be registered here; one line with the remedy."""


@dataclass(frozen=True)
class Kernel:
    """How an operator's kernel is launched.

    Attributes:
        stem: its name in the PTX, without the element type.
        numbers: what is passed between inputs and outputs: dimensions by letter, and attributes.
        spread: the dimension that groups of lanes stride over.
        group: lanes that share one entry of it: "block", "warp", or "channels" for as many as
            hold the channels.
    """

    stem: str
    numbers: tuple[str, ...]
    spread: str
    group: str


KERNELS = {
    "CsdAccept": Kernel("csd_accept", ("B", "K", "C", "kind", "inner_temperature"), "B", "block"),
    "CsdResample": Kernel("csd_resample", ("R", "N", "C", "kind"), "N", "channels"),
    "CsdVerifyWindow": Kernel("csd_verify_window", ("N", "K", "C", "R"), "N", "warp"),
    "CsdTransition": Kernel("csd_transition", ("R", "C", "S", "temperature"), "R", "channels"),
}


def register(kernels: Path) -> tuple[str, ...]:
    """Register the operators with TensorRT, once in a process.

    `CsdTransition` takes all of its inputs here: without guidance give eps again as `eps_uncond`
    and ones as `scale`, which changes nothing.

    Args:
        kernels: the folder that `python -m csd.plugins.build --ptx` wrote, or a PTX file.

    Returns:
        The identifiers, `csd::CsdAccept` and so on.

    Raises:
        QdpError: TensorRT is missing or too old, or there is no PTX.
    """
    tensorrt, plugin = _bindings()
    ptx = find_ptx(kernels).read_bytes()
    return tuple(_register(tensorrt, plugin, operator, ptx) for operator in OPERATORS.values())


def find_ptx(kernels: Path) -> Path:
    """Return the PTX file of a folder, or the file itself.

    Raises:
        QdpError: there is none, or more than one.
    """
    if kernels.is_file():
        return kernels
    found = sorted(kernels.glob("*.ptx"))
    if not found:
        raise QdpError(
            f"no PTX in {kernels}: run python -m csd.plugins.build --out {kernels} --ptx"
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise QdpError(f"{kernels} holds {names}: name one of them, the lowest runs on all devices")
    return found[0]


def _bindings() -> tuple[Any, Any]:
    try:
        import tensorrt  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise QdpError(f"tensorrt cannot be imported ({error}): pip install tensorrt") from error
    bindings: Any = tensorrt
    version = str(bindings.__version__)
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < MINIMUM:
        raise QdpError(f"TensorRT {version} has no ahead-of-time Python plugins (10.9): {_REMEDY}")
    try:
        import tensorrt.plugin as plugin  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise QdpError(f"TensorRT {version} lacks tensorrt.plugin ({error}): {_REMEDY}") from error
    return bindings, plugin


def _register(tensorrt: Any, plugin: Any, operator: Operator, ptx: bytes) -> str:
    identifier = f"{DOMAIN}::{operator.name}"

    def describe(*inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        del attributes  # shapes do not depend on them
        sizes = _sizes(operator, inputs)
        types = {
            "T": inputs[0].dtype,
            "float": tensorrt.DataType.FLOAT,
            "int32": tensorrt.DataType.INT32,
            "bool": tensorrt.DataType.BOOL,
        }
        return tuple(
            plugin.from_shape_expr(tuple(sizes[letter] for letter in t.shape), types[t.dtype])
            for t in operator.outputs
        )

    def combinations(*arguments: Any) -> list[Any]:
        del arguments  # every type that the kernels have, whatever the shapes
        tensors = (*operator.inputs, *operator.outputs)
        return [plugin.AutoTuneCombination(", ".join(_AUTOTUNE_TYPES[t.dtype] for t in tensors))]

    def compiled(*arguments: Any) -> tuple[str, bytes, Any, Any]:
        count = len(operator.inputs)
        # The outputs and the tactic follow the attributes, which come in their order.
        values = dict(zip(operator.attributes, arguments[count:-2], strict=True))
        return _launch(plugin, operator, arguments[:count], values, ptx)

    descriptor = plugin.TensorDesc
    inputs = {t.name: descriptor for t in operator.inputs}
    attributes = {name: type(value) for name, value in operator.attributes.items()}
    outputs = {"outputs": tuple[(descriptor,) * len(operator.outputs)]}
    result = tuple[str, bytes, plugin.KernelLaunchParams, plugin.SymExprs]
    for decorate, function, parameters, returned in (
        (plugin.register, describe, {**inputs, **attributes}, outputs["outputs"]),
        (plugin.autotune, combinations, {**inputs, **outputs}, list[plugin.AutoTuneCombination]),
        (plugin.aot_impl, compiled, {**inputs, **attributes, **outputs, "tactic": int}, result),
    ):
        decorate(identifier)(_with_signature(function, parameters, returned))
    return identifier


def _with_signature(
    function: Callable[..., Any], parameters: Mapping[str, Any], returned: Any
) -> Callable[..., Any]:
    """Give a function the signature that TensorRT reads names and types from.

    Its parameters must not clash: an input and an attribute of one operator differ in name.
    """
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature(
        [inspect.Parameter(name, kind, annotation=a) for name, a in parameters.items()],
        return_annotation=returned,
    )
    function.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    return function


def _sizes(operator: Operator, inputs: Sequence[Any]) -> dict[str | int, Any]:
    """Symbolic sizes by dimension."""
    sizes: dict[str | int, Any] = {}
    tensors: tuple[Tensor, ...] = operator.inputs
    for tensor, given in zip(tensors, inputs, strict=True):
        for dimension, letter in enumerate(tensor.shape):
            sizes.setdefault(letter, given.shape_expr[dimension])
    return sizes


def _launch(
    plugin: Any,
    operator: Operator,
    inputs: Sequence[Any],
    attributes: Mapping[str, Any],
    ptx: bytes,
) -> tuple[str, bytes, Any, Any]:
    """Return the kernel's name, its PTX, how it is launched, and the numbers that it takes."""
    kernel, sizes = KERNELS[operator.name], _sizes(operator, inputs)
    element = ELEMENTS[inputs[0].dtype.name]
    per_block = THREADS // _lanes(kernel.group, sizes["C"])
    launch = plugin.KernelLaunchParams()
    # At least one block: the kernels stride over what there is, also over nothing.
    launch.grid_x = plugin.max(plugin.cdiv(sizes[kernel.spread], per_block), 1)
    launch.block_x = THREADS
    numbers = plugin.SymIntExprs(len(kernel.numbers))
    for k, name in enumerate(kernel.numbers):
        number = sizes[name] if name in sizes else _bits(attributes[name])
        numbers[k] = plugin.SymInt32(number)
    return f"{kernel.stem}_{element}", ptx, launch, numbers


def _lanes(group: str, channels: Any) -> int:
    """Lanes to an entry; a warp where the channels are not known while building."""
    if group == "block":
        return THREADS
    if group == "warp" or not channels.is_constant:
        return WARP
    return min(WARP, 1 << (channels.constant_value() - 1).bit_length())


def _bits(value: float) -> int:
    """A number as the 32 bits that a kernel receives; TensorRT passes integers only."""
    return struct.unpack("<i", struct.pack("<f", value))[0] if isinstance(value, float) else value
