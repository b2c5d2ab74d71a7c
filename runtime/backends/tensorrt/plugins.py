"""The library of csd's TensorRT plugins: where it is, and what to do without it."""

from __future__ import annotations

import os
from pathlib import Path

from ....plugins import operators
from ...bundle.folder import PLUGIN_LIBRARY
from ...bundle.verification import seal_command
from ...errors import BackendError
from ..base import Check
from .binding import Binding

VARIABLE = "CSD_PLUGIN_LIBRARY"
NAMESPACE, VERSION = operators.DOMAIN, str(operators.VERSION)


def find_library(folder: Path, check: Check) -> Path | None:
    """Return the library that `CSD_PLUGIN_LIBRARY` names, or the one in a bundle.

    Args:
        folder: of the bundle.
        check: called with the name of the bundle's library before it is taken.

    Raises:
        BackendError: the variable names a file that is not there.
        BundleError: the bundle's library is not what its manifest names.
    """
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_file():
            raise BackendError(f"{VARIABLE} names {named}, which is not there: correct or unset it")
        return Path(named)
    if not (folder / PLUGIN_LIBRARY).is_file():
        return None
    check.code(PLUGIN_LIBRARY)
    return folder / PLUGIN_LIBRARY


def register(binding: Binding, library: Path) -> None:
    """Register the plugin creators of a library, unless they are.

    Raises:
        BackendError: it cannot be loaded.
    """
    if not binding.has_plugin(next(iter(operators.OPERATORS)), VERSION, NAMESPACE):
        binding.load_plugins(library)


def missing(graph: str, folder: Path, architecture: str) -> BackendError:
    """The error of an engine whose plugin is not registered."""
    number = architecture.removeprefix("sm_")
    return BackendError(
        f"the engine of {graph} needs the plugin {operators.OPERATOR_OF[graph]} of the namespace "
        f"{NAMESPACE}, which is not registered: cmake -S plugins/tensorrt -B build "
        f"-DCMAKE_CUDA_ARCHITECTURES={number} && cmake --build build, then put {PLUGIN_LIBRARY} "
        f"into {folder} and {seal_command(folder)}, or name it in {VARIABLE}"
    )
