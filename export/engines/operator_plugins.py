"""Engines of the operators with csd's TensorRT plugins in place of their functions.

Where the library of the plugins is found (`CSD_PLUGIN_LIBRARY`, or the bundle), engines
of the graphs `ops.*` are built with it, and need it when they run. Without it, and with TensorRT
for RTX, whose documents do not support plugins, they are built from the functions.

| TensorRT | what makes its parser take the plugin (plugins/README.md has the sources) |
| --- | --- |
| up to 10.6 | the function is taken out of the model; this needs the onnx package |
| from 10.7 on | the plugin is registered, and the nodes name its namespace |
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...plugins.onnx_functions import remove_functions
from ...plugins.operators import OPERATOR_OF
from ...runtime.backends.tensorrt.binding import Binding
from ...runtime.backends.tensorrt.plugins import VARIABLE, find_library, register
from ...runtime.bundle.verification import FileCheck
from ...runtime.errors import BackendError, BundleError, ExportError
from ...runtime.libraries.imports import import_library

_PREFERS_PLUGINS = 10, 7


def plugins_for(check: FileCheck, backend: str, graph: str) -> Path | None:
    """Return the library of plugins that an engine is built with, or None.

    Args:
        check: of the bundle's files.
        backend: of the engine.
        graph: its name.

    Raises:
        ExportError: `CSD_PLUGIN_LIBRARY` names a file that is not there, or the bundle's library is
            not what its manifest names.
    """
    if backend != "tensorrt" or graph not in OPERATOR_OF:
        return None
    try:
        return find_library(check.folder.path, check)
    except (BackendError, BundleError) as error:
        raise ExportError(str(error)) from error


def parse_with_plugins(parser: Any, path: Path, library: Path, version: str) -> bool:
    """Let TensorRT read the model of an operator so that it takes the plugin.

    Args:
        parser: TensorRT's, of a network that is empty.
        path: the ONNX file, which holds all of the model.
        library: of the plugins.
        version: of TensorRT.

    Returns:
        Whether it was read, as `parse` of the parser.

    Raises:
        ExportError: the plugins cannot be loaded, or onnx is missing.
    """
    try:
        register(Binding("tensorrt"), library)
    except BackendError as error:
        raise ExportError(f"{error}, or unset {VARIABLE} and move {library} away") from error
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= _PREFERS_PLUGINS:
        return parser.parse_from_file(str(path))
    purpose = f"TensorRT {version}, to take the plugins of {library},"
    otherwise = f"unset {VARIABLE} and move it away"
    onnx = import_library("onnx", purpose, otherwise, ExportError)
    return parser.parse(remove_functions(onnx.load(path)).SerializeToString())
