"""The one place that imports ONNX Runtime: silent, and with a reason where it cannot be.

From 1.29 on ONNX Runtime keeps a device id and a queue of events in the user's home and sends them,
from its import on, unless the environment says otherwise before. It is told to be silent here;
whoever wants the events sets `ORT_DISABLE_TELEMETRY=0` (docs/privacy.md).
"""

from __future__ import annotations

import os
import sys
from typing import Any

from ..command.frame import raise_if_stopped
from ..errors import BackendError
from ..libraries.causes import explain_part
from ..libraries.imports import import_library
from ..libraries.packages import installed_packages, reinstall
from ..libraries.telemetry import TELEMETRY, is_off, switch_off


def load_onnxruntime() -> Any:
    """Import ONNX Runtime without its telemetry and return the module.

    Raises:
        BackendError: it is absent, incomplete, built for another NumPy, lacks a library or has too
            little memory: one line with the reason and the command that mends it.
    """
    switch_off(os.environ)
    loaded = sys.modules.get("onnxruntime")
    if loaded is not None and hasattr(loaded, "InferenceSession"):
        _silence(loaded)
        return loaded
    library = import_library("onnxruntime", kind=BackendError)
    if not hasattr(library, "InferenceSession"):
        raise BackendError(": ".join(explain_part("onnxruntime")))
    raise_if_stopped()
    _silence(library)
    return library


def load_quantizer() -> Any:
    """Import ONNX Runtime's quantizer and return the module. Raises as `load_onnxruntime`."""
    load_onnxruntime()
    return import_library("onnxruntime.quantization", kind=BackendError)


def _silence(library: Any) -> None:
    """Stop the events of a library that somebody else has loaded before."""
    if is_off(os.environ[TELEMETRY]):
        library.disable_telemetry_events()


def check_cuda_provider(provider: str) -> None:
    """Check that the ONNX Runtime that is installed was built for CUDA.

    Args:
        provider: name of its CUDA provider.

    Raises:
        BackendError: it was not, or none is installed.
    """
    if provider in load_onnxruntime().get_available_providers():
        return
    both = len(installed_packages("onnxruntime")) > 1
    what = (
        "onnxruntime and onnxruntime-gpu are both installed, in one folder, and what is loaded has "
        "no CUDA"
        if both
        else "the onnxruntime that is installed has no CUDA"
    )
    raise BackendError(
        f"{what}: {reinstall('onnxruntime', 'onnxruntime-gpu')}, or use --backend onnxruntime"
    )
