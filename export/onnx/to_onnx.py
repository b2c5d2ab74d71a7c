"""PyTorch networks to ONNX files."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import onnx_ir
import onnxscript
import torch

from ...runtime.command.text import first_line
from ...runtime.errors import ExportError
from ...runtime.libraries.packages import outdated
from .graphs import ExportGraph
from .strip import strip_notes
from .weights import LEAST_BYTES, SharedWeights, WeightsFile

# The first with Gelu as one operator; TensorRT reads it from 10.0 on.
OPSET = 20
_EXPORTERS = ("torch", "onnx", "onnxscript")


def export_onnx(graph: ExportGraph, path: Path, shared: SharedWeights | None = None) -> list[Path]:
    """Write a graph as ONNX and return its files, the `.onnx` first.

    Args:
        graph: what to export.
        path: where to write.
        shared: see `WeightsFile`.

    Raises:
        ExportError: PyTorch cannot export it.
        OSError: the disk is full.
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
            raise _refused(graph, error, chatter.getvalue()) from error
        except (ImportError, AttributeError, TypeError) as error:  # of versions that do not fit
            if outdated(*_EXPORTERS) is None:
                raise
            raise _refused(graph, error, chatter.getvalue()) from error
    assert program is not None
    return _save(program.model, path, shared)


def _refused(graph: ExportGraph, error: Exception, printed: str) -> ExportError:
    """About an export that failed: packages that are too old are the usual cause."""
    said = first_line(error) if str(error) else first_line(ValueError(printed))
    remedy = outdated(*_EXPORTERS) or (
        "install torch, onnx and onnxscript of the versions in constraints.txt"
    )
    return ExportError(f"PyTorch cannot export {graph.name} ({said}): {remedy}")


def _save(model: onnx_ir.Model, path: Path, shared: SharedWeights | None) -> list[Path]:
    """Write a model without notes, its weights tensor by tensor; they are not copied before."""
    with WeightsFile(path, shared) as file:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                continue
            if tensor.nbytes < LEAST_BYTES:
                # A copy: the exporter keeps its values, and each may be of one file that is mapped.
                value.const_value = onnx_ir.Tensor(tensor.numpy().copy(), name=name)
                continue
            place = file.add([tensor.numpy()])
            value.const_value = onnx_ir.ExternalTensor(
                place.file.name, place.start, place.length, tensor.dtype,
                shape=onnx_ir.Shape(tensor.shape.numpy()), name=name,
            )  # fmt: skip
    proto = onnx_ir.serde.serialize_model(model)
    strip_notes(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return [path, *file.files]


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
