"""Which packages bring a library, which versions are there, and how they are installed.

Imports nothing that takes time.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass

DISTRIBUTION = "csd-edge"
# Where NVIDIA keeps what its packages on the public index need.
_INDEX = "--extra-index-url=https://pypi.nvidia.com"


@dataclass(frozen=True)
class Library:
    """A library that csd imports.

    Attributes:
        packages: distributions that bring it, the usual one first. They share one folder: of two
            that are installed neither is whole.
        install: how it is installed, unless by pip under its first name.
        option: of pip, where packages that it needs are not on the public index.
        title: its name, unless that of the module.
    """

    packages: tuple[str, ...]
    install: str = ""
    option: str = ""
    title: str = ""


LIBRARIES = {
    "onnxruntime": Library(
        ("onnxruntime", "onnxruntime-gpu"),
        "pip install onnxruntime (or onnxruntime-gpu, for --backend onnxruntime_cuda)",
    ),
    "tensorrt": Library(
        ("tensorrt",),
        "on Jetson it comes with JetPack (python3 -m venv --system-site-packages sees it), "
        "elsewhere pip install tensorrt cuda-bindings cuda-core",
        _INDEX,
    ),
    "tensorrt_rtx": Library(
        ("tensorrt-rtx",),
        f"pip install {_INDEX} tensorrt-rtx cuda-bindings cuda-core",
        _INDEX,
    ),
    "cuda.bindings": Library(
        ("cuda-bindings",),
        "pip install cuda-bindings, of the major version of this machine's CUDA",
    ),
    "cuda.core": Library(("cuda-core",)),
    "PIL": Library(("pillow",), title="Pillow"),
    "mlflow": Library(("mlflow-skinny",), title="MLflow"),
    **{name: Library((name,)) for name in (
        "torch", "onnx", "onnxscript", "safetensors", "matplotlib", "numpy", "rich", "scipy",
        "cryptography", "gradio", "ray",
    )},
}  # fmt: skip


def library_of(module: str) -> Library:
    """The library that a module is of; one that csd does not know has its name."""
    name = library_name(module)
    return LIBRARIES.get(name, Library((name.replace("_", "-"),)))


def library_name(module: str) -> str:
    """The name of a module's library: `cuda` is a folder of several."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "cuda" else parts[0]


def installed_version(package: str) -> str:
    """The version of a distribution, empty where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def installed_packages(module: str) -> dict[str, str]:
    """Versions of the distributions that bring a library, of those that are installed."""
    found = {name: installed_version(name) for name in library_of(module).packages}
    return {name: version for name, version in found.items() if version}


def install(module: str) -> str:
    """How a library is installed."""
    library = library_of(module)
    return library.install or f"pip install {library.packages[0]}"


def reinstall(module: str, package: str = "") -> str:
    """The commands after which a library is there, whole.

    Args:
        module: of the library.
        package: which of those that bring it; the one that is installed, of two the last.
    """
    library = library_of(module)
    package = package or [library.packages[0], *installed_packages(module)][-1]
    if len(library.packages) > 1:
        return f"pip uninstall -y {' '.join(library.packages)}, then pip install {package}"
    option = f"{library.option} " if library.option else ""
    return f"pip install --force-reinstall {option}{package}"


def upgrade(module: str) -> str:
    """The command that brings a library that is there up to date."""
    return (
        f"pip install --upgrade {[library_of(module).packages[0], *installed_packages(module)][-1]}"
    )


def outdated(*packages: str) -> str | None:
    """What mends that a package is older than csd was run with; None where none is."""
    for name, version in _bounds():
        found = installed_version(name) if name in packages else ""
        if found and _numbers(found) < _numbers(version):
            return f"{name} {found} is too old, pip install --upgrade '{name}>={version}'"
    return None


def _bounds() -> Iterator[tuple[str, str]]:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for line in importlib.metadata.requires(DISTRIBUTION) or ():
            match = re.match(r"([\w-]+)\s*>=\s*([\d.]+)", line)
            if match:
                yield match[1], match[2]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
