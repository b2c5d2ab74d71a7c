"""Weights beside an ONNX graph: written and converted piece by piece, never all of them in memory.

The weights of `x.onnx` lie in `x.onnx.data`, each tensor at a multiple of `ALIGNMENT`, so that a
runtime uses them where the file is mapped. What is small stays in the graph: shapes and axes, which
readers of graphs look at before they read weights. Graphs of one network share theirs
(`SharedWeights`): what one of them has written already, the others point to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, external_data_helper, numpy_helper

SUFFIX = ".data"
# Tensors of fewer bytes stay in the graph.
LEAST_BYTES = 1024
ALIGNMENT = 64
# Numbers that are converted at once.
_PIECE = 1 << 22

Array = NDArray[Any]
# What a tensor's values are, flat and piece by piece.
Values = Callable[[TensorProto], Iterator[Array]]


class Place(NamedTuple):
    """Where a tensor's values lie: the file, where they begin in it, and their bytes."""

    file: Path
    start: int
    length: int


# Where values lie that graphs of one network share, by SHA-256 and length.
SharedWeights = dict[tuple[bytes, int], Place]


class WeightsFile:
    """A file of weights that is being written; it comes to be with its first tensor.

    Args:
        graph: the ONNX file that it belongs to.
        shared: values that other files hold, which are not written again; what is written here is
            added to it. None shares nothing.
    """

    def __init__(self, graph: Path, shared: SharedWeights | None = None) -> None:
        self.path = graph.with_name(graph.name + SUFFIX)
        self._shared: SharedWeights = {} if shared is None else shared
        self._stream: BinaryIO | None = None
        self._used: dict[Path, None] = {}  # in order

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()
            if self.path not in self._used:
                self.path.unlink()

    def add(self, pieces: Iterable[Array]) -> Place:
        """Append a tensor's values, given in order, unless another file has them.

        Raises:
            OSError: the disk is full.
        """
        if self._stream is None:
            self._stream = self.path.open("wb")
        stream, digest = self._stream, hashlib.sha256()
        before = stream.tell()
        stream.write(b"\0" * (-before % ALIGNMENT))
        start = stream.tell()
        for piece in pieces:
            values = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
            stream.write(values)
            digest.update(values)
        own = Place(self.path, start, stream.tell() - start)
        place = self._shared.setdefault((digest.digest(), own.length), own)
        if place.file == self.path:
            place = own  # twice in one graph, as zeros are: each stays at its own place
        else:
            stream.seek(before)
            stream.truncate()
        self._used[place.file] = None
        return place

    @property
    def files(self) -> list[Path]:
        """The files that hold the values."""
        return list(self._used)


def tensor_bytes(tensor: TensorProto) -> int:
    """Return how many bytes a tensor's values take."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return int(np.prod(tensor.dims, dtype=np.int64)) * dtype.itemsize


def is_beside(tensor: TensorProto) -> bool:
    """Whether a tensor's values lie in another file."""
    return external_data_helper.uses_external_data(tensor)


def placed(tensor: TensorProto, place: Place) -> TensorProto:
    """Return a tensor of the same name, type and shape whose values lie in a file.

    Args:
        tensor: whose values were written.
        place: what `WeightsFile.add` returned.
    """
    made = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    made.data_location = TensorProto.EXTERNAL
    entries = {"location": place.file.name, "offset": place.start, "length": place.length}
    for key, value in entries.items():
        made.external_data.add(key=key, value=str(value))
    return made


def pieces_of(tensor: TensorProto, folder: Path) -> Iterator[Array]:
    """Yield a tensor's values, flat, a few megabytes at a time.

    Args:
        tensor: of a model that was read without what lies beside it.
        folder: of the model's file.

    Raises:
        OSError: the file beside it cannot be read.
        ValueError: it is shorter than the tensor.
    """
    if not is_beside(tensor):
        yield numpy_helper.to_array(tensor).reshape(-1)
        return
    info = external_data_helper.ExternalDataInfo(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    left = int(np.prod(tensor.dims, dtype=np.int64))
    with (folder / info.location).open("rb") as stream:
        stream.seek(info.offset or 0)
        while left:
            raw = stream.read(min(left, _PIECE) * dtype.itemsize)
            if not raw:
                raise ValueError(f"{info.location} ends within {tensor.name}")
            yield np.frombuffer(raw, dtype)
            left -= len(raw) // dtype.itemsize


def save_beside(
    model: ModelProto, path: Path, values: Values, shared: SharedWeights | None = None
) -> list[Path]:
    """Write a model with its weights beside it and return its files, the `.onnx` first.

    Args:
        model: without what lies beside it; changed in place.
        path: where to write it.
        values: of each tensor, in its type.
        shared: see `WeightsFile`.

    Raises:
        OSError: a file cannot be read or written.
    """
    with WeightsFile(path, shared) as file:
        for graph in _graphs(model.graph):
            for tensor in graph.initializer:
                if is_beside(tensor) or tensor_bytes(tensor) >= LEAST_BYTES:
                    tensor.CopyFrom(placed(tensor, file.add(values(tensor))))
    path.write_bytes(model.SerializeToString(deterministic=True))
    return [path, *file.files]


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def drop_unused(graph: GraphProto) -> None:
    """Take the weights out of a graph that nothing in it uses, in place."""
    used = _names_used(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _names_used(graph: GraphProto) -> set[str]:
    used = {value.name for value in graph.output}
    for node in graph.node:
        used.update(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                used |= _names_used(attribute.g)
    return used
