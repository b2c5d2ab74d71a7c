"""Where the headers of TensorRT are that the C++ plugins are compiled against."""

from __future__ import annotations

import os
import site
from pathlib import Path

VARIABLE = "TENSORRT_INCLUDE_DIR"
HEADER = "NvInferRuntime.h"


def tensorrt_headers() -> list[Path]:
    """Folders named by `TENSORRT_INCLUDE_DIR`, else those inside installed packages."""
    named = [Path(part) for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    if named:
        return named
    packages = (Path(folder) for folder in site.getsitepackages())
    places = ("*/include", "*/*/include", "nvidia/*/include")
    found = {
        path.parent for p in packages for place in places for path in p.glob(f"{place}/{HEADER}")
    }
    return sorted(found)


def summary() -> str:
    """One line on what the C++ plugins were compiled against."""
    headers = tensorrt_headers()
    if headers:
        return f"C++ plugins: compiled against {', '.join(map(str, headers))}"
    return (
        f"C++ plugins: NOT compiled, no {HEADER} was found: set {VARIABLE} to the include folder "
        "of TensorRT, or of the public repository NVIDIA/TensorRT"
    )
