"""PyTorch's exporter, asked once for each network.

It takes seconds for a network of any size, and the tests export the same few again and again. What
it makes of a network is kept beside the bundles (`kept.py`), under the hash of the sources, the
network, its weights and all arguments. Whatever csd does with it runs each time; an export in a
process of its own asks the exporter itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir
import pytest
import torch

from .kept import kept_folder

PLAIN = (bool, int, float, str, bytes, type(None), tuple, torch.dtype)


@contextlib.contextmanager
def asked_once() -> Iterator[None]:
    """Ask PyTorch's exporter once for each network, in this run and those after it."""
    folder = kept_folder("graphs")
    with pytest.MonkeyPatch.context() as patch:
        if folder is not None:
            patch.setattr(torch.onnx, "export", remembered(torch.onnx.export, folder))
        yield


def remembered(export: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Return `export`, of the product's arguments, which remembers what it made of them."""

    def remembering(module: torch.nn.Module, args: tuple[Any, ...], **options: Any) -> Any:
        kept = folder / f"{_hash(module, args, options)}.onnx"
        if not kept.is_file():
            program = export(module, args, **options)
            _keep(onnx_ir.serde.serialize_model(program.model), kept)
            return program
        # Tensors whose bytes are on disk, as those of the exporter are in memory: read when used.
        return SimpleNamespace(model=onnx_ir.serde.deserialize_model(onnx.load(kept)))

    return remembering


def _keep(model: onnx.ModelProto, kept: Path) -> None:
    folder = kept.parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".new-", delete=False) as stream:
        stream.write(model.SerializeToString(deterministic=True))
    os.replace(stream.name, kept)


def _hash(module: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for part in _described(module, args, options):
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def _described(
    module: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]
) -> Iterator[str | bytes]:
    """Everything that what the exporter writes depends on, besides the sources."""
    yield str(module)
    for name, part in module.named_modules():
        yield f"{name} {type(part).__module__}.{type(part).__qualname__}\n"
        for key, value in sorted(vars(part).items()):
            if isinstance(value, PLAIN) or dataclasses.is_dataclass(value):
                yield f"{key}={value!r}\n"
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in [*state.items(), *((f"argument {i}", a) for i, a in enumerate(args))]:
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}\n"
        yield tensor.detach().cpu().contiguous().numpy().tobytes()
    shown = {key: value for key, value in options.items() if key != "custom_translation_table"}
    yield repr(sorted(shown.items()))
