"""What an ONNX file says of its tensors and of other files, without the onnx package.

A reader of the protocol buffers' wire format that descends into the few messages that matter. It
is strict: what is not well-formed, or nested too deep, is an error and not skipped, so that no
other reader finds a reference to a file that this one missed.

| message | fields that are read |
| --- | --- |
| model | 7 graph, 20 training, 25 functions |
| graph | 1 nodes, 5 initializers, 11 inputs, 12 outputs, 15 sparse initializers |
| node | 5 attributes: 5 tensor, 6 graph, 10 tensors, 11 graphs, 22 and 23 sparse tensors |
| tensor | 1 dims, 2 type, 8 name, 13 external data, 14 where the data is |
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Element types by their numbers in ONNX.
ELEMENTS = {
    1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 16: "bfloat16",
}  # fmt: skip
_EXTERNAL = 1
_MOST_DEPTH = 40
# Fields that hold messages, as `field: kind`, by the kind of message.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}

View = memoryview
Dimension = int | str | None


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose data lies in another file.

    Attributes:
        name: of the tensor.
        element: ONNX's number of its type.
        shape: its dimensions.
        location: the file, as the model names it.
        offset: where its bytes begin.
        length: their number; None where the model does not say.
    """

    name: str
    element: int
    shape: tuple[int, ...]
    location: str
    offset: int
    length: int | None


@dataclass
class OnnxFile:
    """What was read: inputs and outputs by name as `(type, shape)`, and tensors in other files."""

    inputs: dict[str, tuple[str, tuple[Dimension, ...]]] = field(
        default_factory=dict[str, tuple[str, tuple[Dimension, ...]]]
    )
    outputs: dict[str, tuple[str, tuple[Dimension, ...]]] = field(
        default_factory=dict[str, tuple[str, tuple[Dimension, ...]]]
    )
    external: list[ExternalTensor] = field(default_factory=list[ExternalTensor])


def read_onnx(path: Path) -> OnnxFile:
    """Read a file; weights in it are passed over.

    Raises:
        ValueError: it is not an ONNX file.
        OSError: it cannot be read.
    """
    found = OnnxFile()
    _walk(mapped(path), "model", found, 0)
    if not found.outputs:
        raise ValueError("it holds no graph with outputs")
    return found


def mapped(path: Path) -> View:
    """Return a file's content, which is mapped and goes with its views.

    Raises:
        ValueError: it is empty.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        if stream.seek(0, 2) == 0:
            raise ValueError("it is empty")
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def _walk(view: View, kind: str, found: OnnxFile, depth: int) -> None:
    if depth > _MOST_DEPTH:
        raise ValueError("it is nested too deep")
    if kind == "tensor":
        if (tensor := _external(view)) is not None:
            found.external.append(tensor)
        return
    for number, value in fields(view):
        if kind == "graph" and number in (11, 12) and depth == 1:
            name, rest = value_info(as_message(value))
            (found.inputs if number == 11 else found.outputs)[name] = rest
        elif number in _INSIDE[kind]:
            _walk(as_message(value), _INSIDE[kind][number], found, depth + 1)


def fields(view: View) -> Iterator[tuple[int, int | View]]:
    """Yield `(number, value)` of a message's fields; numbers of fixed size are passed over.

    Raises:
        ValueError: it is not well-formed.
    """
    at, end = 0, len(view)
    while at < end:
        key, at = _varint(view, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ValueError("it has a field without a number")
        if wire == 0:
            value, at = _varint(view, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(view, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("it is not well-formed")
        if size > end - at:
            raise ValueError("it ends in the middle of a field")
        if wire == 2:
            yield number, view[at : at + size]
        at += size


def _varint(view: View, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(view) or shift > 63:
            raise ValueError("it is not well-formed")
        byte = view[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def as_message(value: int | View) -> View:
    """A field's value as a message, text or bytes.

    Raises:
        ValueError: it is a number.
    """
    if isinstance(value, int):
        raise ValueError("it has a number where a message belongs")
    return value


def as_number(value: int | View) -> int:
    """A field's value as a number.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, int):
        raise ValueError("it has a message where a number belongs")
    return value


def as_text(value: int | View) -> str:
    """A field's value as text.

    Raises:
        ValueError: it is no text.
    """
    return bytes(as_message(value)).decode("utf-8")


@dataclass(frozen=True)
class TensorMessage:
    """A tensor as its message has it.

    Attributes:
        name: of the tensor.
        element: ONNX's number of its type.
        shape: its dimensions.
        entries: where its data lies, by `location`, `offset` and `length`; empty in the model.
        external: whether it says that its data lies elsewhere.
    """

    name: str
    element: int
    shape: tuple[int, ...]
    entries: dict[str, str]
    external: bool


def tensor_message(view: View) -> TensorMessage:
    """Read a tensor; its numbers are passed over.

    Raises:
        ValueError: it is not well-formed.
    """
    shape: list[int] = []
    entries: dict[str, str] = {}
    element, name, external = 0, "", False
    for number, value in fields(view):
        if number == 1:
            shape += [value] if isinstance(value, int) else packed(value)
        elif number == 2:
            element = as_number(value)
        elif number == 8:
            name = as_text(value)
        elif number == 13:
            entry = {key: as_text(part) for key, part in fields(as_message(value))}
            entries[entry.get(1, "")] = entry.get(2, "")
        elif number == 14:
            external = as_number(value) == _EXTERNAL
    return TensorMessage(name, element, tuple(shape), entries, external)


def _external(view: View) -> ExternalTensor | None:
    """Read a tensor; None where its data is in the model."""
    tensor = tensor_message(view)
    entries, length = tensor.entries, tensor.entries.get("length")
    if not tensor.external and not entries:
        return None
    return ExternalTensor(
        tensor.name, tensor.element, tensor.shape, entries.get("location", ""),
        int(entries.get("offset", "0")), None if length is None else int(length),
    )  # fmt: skip


def packed(view: View) -> list[int]:
    """The numbers of a field that holds several.

    Raises:
        ValueError: it is not well-formed.
    """
    values: list[int] = []
    at = 0
    while at < len(view):
        value, at = _varint(view, at)
        values.append(value)
    return values


def value_info(view: View) -> tuple[str, tuple[str, tuple[Dimension, ...]]]:
    """Read an input, an output or what lies between: its name, element type and shape.

    Raises:
        ValueError: it is not well-formed.
    """
    name, dtype = "", ""
    shape: tuple[Dimension, ...] = ()
    for number, value in fields(view):
        if number == 1:
            name = as_text(value)
        elif number == 2:  # type
            for kind, tensor in fields(as_message(value)):
                if kind == 1:  # of a tensor
                    for part, content in fields(as_message(tensor)):
                        if part == 1:
                            element = as_number(content)
                            dtype = ELEMENTS.get(element, f"type {element}")
                        elif part == 2:
                            shape = tuple(
                                _dimension(as_message(dim))
                                for key, dim in fields(as_message(content))
                                if key == 1
                            )
    return name, (dtype, shape)


def _dimension(view: View) -> Dimension:
    size: Dimension = None
    for number, value in fields(view):
        if number == 1:
            size = as_number(value)
        elif number == 2:
            size = as_text(value)
    return size
