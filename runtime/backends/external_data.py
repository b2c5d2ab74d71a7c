"""Weights beside an ONNX file, for ONNX Runtime.

Some of its versions (1.24) follow links before they look whether weights lie beside their graph,
and refuse those of a bundle in a model hub's cache, where every file is a link to elsewhere.
There, and only there, weights are mapped and handed over: every version takes them in place of
what the file names. `Bundle.open` has checked before that the bundle names these files.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.onnx_file import ELEMENTS, read_onnx
from ..errors import BackendError


def linked_weights(ort: Any, path: Path) -> dict[str, Any]:
    """Return the values of weights that lie behind links, by name; none where there are no links.

    Args:
        ort: the onnxruntime module.
        path: the ONNX file.

    Returns:
        `OrtValue`s, which keep mapped files open. Pass them to `add_external_initializers`, and
        keep them as long as the session.

    Raises:
        BackendError: a weight has a type that ONNX Runtime takes from files only.
        OSError, ValueError: a file cannot be read, or is no ONNX file.
    """
    if not (path.is_symlink() or any(p.is_symlink() for p in path.parent.glob(f"{path.name}.*"))):
        return {}
    values: dict[str, Any] = {}
    for tensor in read_onnx(path).external:
        dtype = ELEMENTS.get(tensor.element, "")
        if dtype in ("", "bfloat16"):
            raise BackendError(
                f"{path.name} has weights of type {dtype or tensor.element} behind links: cp -rL "
                f"{path.parent} COPY and open the copy"
            )
        count = math.prod(tensor.shape)
        if count == 0 or tensor.length not in (None, count * np.dtype(dtype).itemsize):
            raise ValueError(f"{tensor.name} has another size than its shape")
        file = os.path.realpath(path.parent / tensor.location)
        array = np.memmap(file, np.dtype(dtype), "r", tensor.offset, tensor.shape)
        values[tensor.name] = ort.OrtValue.ortvalue_from_numpy(array)
    return values
