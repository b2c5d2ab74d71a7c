"""PyTorch networks to ONNX files, and the check that both compute the same."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import onnxscript
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...runtime.backends import Graph
from ...runtime.difference import Difference
from ...runtime.errors import ExportError
from ...runtime.graph_tensors import TYPED
from ...runtime.manifest import ParityResult
from .graphs import ExportGraph
from .precision import EXTERNAL_DATA_BYTES
from .strip import strip_notes

# The first with Gelu as one operator; TensorRT reads it from 10.0 on.
OPSET = 20
# Largest difference to PyTorch in float32, as a share of the largest output (at least 1): what a
# graph's own rounding leaves, times a few (docs/rtx.md has what was seen).
TOLERANCES = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 4e-2}

_TORCH_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def export_onnx(graph: ExportGraph, path: Path) -> list[Path]:
    """Write a graph as ONNX and return its files, the `.onnx` first.

    Raises:
        ExportError: PyTorch cannot export it.
    """
    # Nothing is known of an image at first; of everything else there is one at least.
    dims = {name: torch.export.Dim(name, min=0 if name == "V" else 1) for name in graph.dimensions}
    shapes = tuple(
        {axis: dims[d] for axis, d in enumerate(shape) if isinstance(d, str)}
        for shape in graph.inputs.values()
    )
    args = graph.feeds(graph.trials[0], torch.Generator().manual_seed(0))
    with _quiet() as chatter, torch.no_grad():
        try:
            program = torch.onnx.export(
                graph.module.eval(), args, dynamo=True, opset_version=OPSET, verbose=False,
                input_names=list(graph.inputs), output_names=list(graph.outputs),
                dynamic_shapes=shapes,
                custom_translation_table={
                    torch.ops.aten.scaled_dot_product_attention.default: _attention
                },
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            lines = [line for line in (str(error) + chatter.getvalue()).splitlines() if line]
            raise ExportError(
                f"PyTorch cannot export {graph.name}: {lines[0] if lines else error}; install "
                "the versions in constraints.txt"
            ) from error
        assert program is not None
        size = sum(p.numel() * p.element_size() for p in graph.module.parameters())
        external = size > EXTERNAL_DATA_BYTES
        program.save(path, external_data=external)
    strip_notes(path)
    return [path, path.with_name(path.name + ".data")] if external else [path]


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention in five operators; PyTorch's own translation takes twice as many, for any rank."""
    if dropout_p or is_causal or enable_gqa:
        raise ValueError("only plain attention is translated")
    op: Any = onnxscript.opset20
    size = query.shape[-1]
    scores = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))
    scores = op.Mul(scores, op.CastLike(size**-0.5 if scale is None else scale, scores))
    if attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def check_parity(
    graph: ExportGraph, loaded: Graph, precision: str = "fp32", *, emulated: bool = False
) -> ParityResult:
    """Compare a loaded graph with PyTorch in float32 at several sizes of its dynamic dimensions.

    Args:
        graph: what was exported.
        loaded: what came of it.
        precision: `fp32`, or that of the variant; its own typed inputs are not part of its error.
        emulated: the variant keeps its tensors in float32 (`variants.typed_model`).
    """
    worst = Difference()
    for index, sizes in enumerate(graph.trials):
        args = graph.feeds(sizes, torch.Generator().manual_seed(index))
        feeds, args = _typed_feeds(graph, args, precision, emulated)
        with torch.inference_mode():
            expected = graph.module(*args)
        if isinstance(expected, Tensor):
            expected = (expected,)
        outputs = loaded.run(feeds)
        for name, tensor in zip(graph.outputs, expected, strict=True):
            worst = worst.or_worse(Difference.of(outputs[name], tensor.numpy()))
    tolerance = TOLERANCES[precision]
    return ParityResult(
        parity_name(graph.name, precision, emulated), len(graph.trials), worst.absolute,
        worst.relative, tolerance, worst.share <= tolerance,
    )  # fmt: skip


def parity_name(graph: str, precision: str, emulated: bool) -> str:
    """Name of a graph in the parity report, as `target.head_step [fp16]`."""
    if precision == "fp32":
        return graph
    return f"{graph} [{precision}{', emulated' if emulated else ''}]"


def _typed_feeds(
    graph: ExportGraph, args: tuple[Tensor, ...], precision: str, emulated: bool
) -> tuple[dict[str, NDArray[Any]], tuple[Tensor, ...]]:
    """Return a graph's feeds, and the same values for PyTorch."""
    feeds: dict[str, NDArray[Any]] = {}
    values: list[Tensor] = []
    for name, arg in zip(graph.inputs, args, strict=True):
        typed = precision != "fp32" and name in TYPED
        held = arg.to(_TORCH_TYPES[precision]) if typed else arg
        values.append(held.to(arg.dtype))
        feeds[name] = (values[-1] if emulated else held).numpy()
    return feeds, tuple(values)


@contextlib.contextmanager
def _quiet() -> Generator[io.StringIO]:
    """Hold back what PyTorch's exporter prints and logs."""
    chatter, level = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(chatter):
            warnings.simplefilter("ignore")
            yield chatter
    finally:
        logging.disable(level)
