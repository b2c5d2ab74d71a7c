"""The one place that imports ONNX Runtime: silent, and with a reason where it cannot be.

From 1.29 on ONNX Runtime keeps a device id and a queue of events in the user's home and sends them,
from its import on, unless the environment says otherwise before. It is told to be silent here;
whoever wants the events sets `ORT_DISABLE_TELEMETRY=0` (docs/privacy.md).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import re
import sys
from typing import Any

import numpy as np

from ..command.frame import raise_if_stopped
from ..command.memory import first_line, is_memory_error, out_of_memory
from ..errors import BackendError

TELEMETRY = "ORT_DISABLE_TELEMETRY"
_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
_CUDA_LIBRARY = re.compile(r"lib(cu|nv)\w+\.so")


def load_onnxruntime() -> Any:
    """Import ONNX Runtime without its telemetry and return the module.

    Raises:
        BackendError: it is absent, incomplete, built for another NumPy, lacks a library or has too
            little memory: one line with the reason and the command that mends it.
    """
    if not os.environ.get(TELEMETRY):
        os.environ[TELEMETRY] = "1"  # read when the library is loaded
    loaded = sys.modules.get("onnxruntime")
    if loaded is not None and hasattr(loaded, "InferenceSession"):
        _silence(loaded)
        return loaded
    printed = io.StringIO()
    try:
        # NumPy prints pages about modules that were built for another one.
        with contextlib.redirect_stderr(printed):
            import onnxruntime
    except Exception as error:  # what a broken package may raise
        if is_memory_error(error):
            raise out_of_memory("onnxruntime cannot be loaded", error) from error
        raise BackendError(_why_not(error, printed.getvalue())) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise BackendError(_in_part())
    sys.stderr.write(printed.getvalue())
    raise_if_stopped()
    _silence(onnxruntime)
    return onnxruntime


def _silence(library: Any) -> None:
    """Stop the events of a library that somebody else has loaded before."""
    if os.environ[TELEMETRY].lower() in ("1", "true"):
        library.disable_telemetry_events()


def installed_packages() -> dict[str, str]:
    """Versions of the packages that bring ONNX Runtime, of those that are installed."""
    found: dict[str, str] = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def reinstall(package: str) -> str:
    """The commands after which one package is there, whole."""
    return f"pip uninstall -y {' '.join(_PACKAGES)}, then pip install {package}"


def _why_not(error: Exception, printed: str) -> str:
    """The reason for an import that failed, and the command that mends it."""
    packages = installed_packages()
    package = next(iter(packages), _PACKAGES[0])
    reason = first_line(error)
    absent = isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime"
    if absent and not packages:
        return (
            "onnxruntime is not installed: pip install onnxruntime (or onnxruntime-gpu, for "
            "--backend onnxruntime_cuda)"
        )
    if absent:
        return _in_part()
    if "numpy" in reason.lower() or "_ARRAY_API" in printed:
        version = packages.get(package, "")
        return (
            f"{package} {version} was built for another NumPy than {np.__version__}, which is "
            f"installed: pip install --upgrade {package}, or pip install 'numpy<2'"
        )
    missing = _CUDA_LIBRARY.search(reason)
    if missing is not None:
        return (
            f"onnxruntime cannot be loaded ({reason}): install the CUDA and cuDNN that it was "
            f"built for, or run on the CPU: {reinstall('onnxruntime')}"
        )
    lacks_a_part = isinstance(error, AttributeError | ModuleNotFoundError)
    if lacks_a_part or "cannot import name" in reason or len(packages) == len(_PACKAGES):
        return _in_part(reason)
    return f"onnxruntime cannot be loaded ({reason}): {reinstall(package)}"


def _in_part(reason: str = "") -> str:
    """About a package whose files are not all there: two that share a folder were installed."""
    packages = installed_packages()
    wanted = _PACKAGES[-1] if _PACKAGES[-1] in packages else _PACKAGES[0]
    spec = importlib.util.find_spec("onnxruntime")
    if not packages and spec is not None:
        places = [spec.origin] if spec.origin else [*(spec.submodule_search_locations or ())]
        return (
            f"{places[0] if places else 'a module'} is not ONNX Runtime and hides it: rename it, "
            "or start from another folder"
        )
    said = f" ({reason})" if reason else ""
    return f"onnxruntime is installed in part{said}: {reinstall(wanted)}"


def check_cuda_provider(provider: str) -> None:
    """Check that the ONNX Runtime that is installed was built for CUDA.

    Args:
        provider: name of its CUDA provider.

    Raises:
        BackendError: it was not, or none is installed.
    """
    if provider in load_onnxruntime().get_available_providers():
        return
    both = len(installed_packages()) == len(_PACKAGES)
    what = (
        "onnxruntime and onnxruntime-gpu are both installed, in one folder, and what is loaded has "
        "no CUDA"
        if both
        else "the onnxruntime that is installed has no CUDA"
    )
    raise BackendError(f"{what}: {reinstall('onnxruntime-gpu')}, or use --backend onnxruntime")
