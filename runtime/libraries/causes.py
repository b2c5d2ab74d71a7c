"""Why a library cannot be imported, and what mends it: absent, in part, or broken, and by what.

What Python says of a package that is not whole does not name the cause. It is found from what is
installed: the metadata of packages say which others each needs, and the traceback which of them
failed.

| cause | told from |
| --- | --- |
| absent | no package that brings it is installed |
| a file that may not be read | `PermissionError`, or the loader's own words |
| lacks another package | what the package requires, all the way down |
| built for another NumPy | what NumPy prints and raises |
| lacks a shared library, or was built for another system | the loader's own words |
| in part | the package is there, a module of it is not |
| older than csd was run with | csd's own requirements |

Imports nothing that takes time.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..command.permissions import readable
from ..command.text import first_line
from .packages import (
    LIBRARIES,
    install,
    installed_packages,
    installed_version,
    library_name,
    library_of,
    outdated,
    reinstall,
)
from .requirements import lacking

_SHARED = re.compile(r"(lib[\w.+-]+?\.so[\w.]*)(?:: cannot open shared object file|\. Is it on)")
_CUDA = re.compile(r"lib(?:cu|nv)\w+")
_OLD_SYSTEM = re.compile(r"version [`'](\w+_[\d.]+)' not found")
_DAMAGED = (
    "invalid elf header",
    "wrong elf class",
    "file too short",
    "exec format",
    "cannot read file data",
)
_NUMPY = ("numpy.core.multiarray", "_array_api", "numpy.dtype size changed", "numpy c-api")
_NUMPY_VERSION = re.compile(r"compiled against (?:abi|api) version|using numpy \d", re.I)


def explain_import(error: BaseException, module: str, printed: str = "") -> tuple[str, str]:
    """Tell why a module could not be imported.

    Args:
        error: what its import raised.
        module: that was imported.
        printed: what the import wrote to stderr.

    Returns:
        The reason, and the command that mends it.
    """
    library = library_of(module)
    name = library.title or library_name(module)
    there = installed_packages(module)
    package = next(iter(there), library.packages[0])
    said = first_line(error)
    lost = isinstance(error, ModuleNotFoundError)
    if lost and (is_hidden(module) or (not there and _within(module, error.name or module))):
        return f"{name} is not installed ({said})", install(module)
    if (refused := _unreadable(error, package)) is not None:
        return f"{package} may not be read (Permission denied: {refused})", readable(refused)
    text = f"{said}\n{printed}".lower()
    if any(words in text for words in _NUMPY) or _NUMPY_VERSION.search(text):
        failed = _culprit(error) or package
        return (
            f"{failed} {installed_version(failed)} was built for another NumPy than "
            f"{installed_version('numpy')}, which is installed",
            f"pip install --upgrade {failed}, or pip install 'numpy<2'",
        )
    if lacks := lacking(package, error):
        first, option = lacks[0], f"{library.option} " if library.option else ""
        return (
            f"{name} cannot be loaded ({said}): {first.by} is installed without {first.name}, "
            "which it needs",
            f"pip install {option}{' '.join(lack.pinned for lack in lacks)}",
        )
    loader = _explain_loader(said, name, module, package)
    if loader is not None:
        return loader
    if (old := outdated(package)) is not None:
        return f"{name} lacks what csd asks for ({said})", old
    if lost and there and not _within(name, (error.name or name).partition(".")[0]):
        other = (error.name or "").partition(".")[0].replace("_", "-")
        return f"{name} lacks a module ({said})", f"pip install {other}, or {reinstall(module)}"
    in_part = lost or isinstance(error, AttributeError) or "cannot import name" in said
    if in_part or len(there) > 1:
        return f"{name} is installed in part ({said})", reinstall(module)
    return f"{name} cannot be loaded ({said})", reinstall(module)


def explain_part(module: str) -> tuple[str, str]:
    """As `explain_import`, of a module that was imported and lacks what it should have."""
    name = library_name(module)
    spec = importlib.util.find_spec(name)
    if not installed_packages(name) and spec is not None:
        places = [spec.origin] if spec.origin else [*(spec.submodule_search_locations or ())]
        return (
            f"{places[0] if places else 'a module'} is not {name} and hides it",
            "rename it, or start from another folder",
        )
    return f"{name} is installed in part", reinstall(module)


def explain_missing(error: ImportError) -> tuple[str, str] | None:
    """As `explain_import`, of an import that nobody foresaw; None where it is not of a library."""
    named = error.name or ""
    if named.partition(".")[0] == __name__.partition(".")[0]:
        return None
    known = [name for name in (*_culprits(error), named) if library_name(name) in LIBRARIES]
    return explain_import(error, known[-1]) if known else None


def is_hidden(module: str) -> bool:
    """Whether somebody put None in the place of a module or its parent, Python's way to hide it."""
    parts = module.split(".")
    names = {".".join(parts[: count + 1]) for count in range(len(parts))}
    hidden: dict[str, Any] = {**sys.modules}
    return any(hidden.get(name, sys) is None for name in names)


def _explain_loader(said: str, name: str, module: str, package: str) -> tuple[str, str] | None:
    """About shared libraries, in the words of the system's loader."""
    reason = f"{name} cannot be loaded ({said})"
    if (shared := _SHARED.search(said)) is not None:
        if _CUDA.match(shared[1]):
            cpu = f"run on the CPU: {reinstall(name, name)}"
            how = cpu if name == "onnxruntime" else reinstall(module)
            return reason, f"install the CUDA and cuDNN that it was built for, or {how}"
        missing = f"if it still lacks {shared[1]}, install the package of your system that has it"
        return reason, f"{reinstall(module)}; {missing}"
    if (old := _OLD_SYSTEM.search(said)) is not None:
        older = f"{package}<{installed_version(package) or 1}"
        return reason, (
            f"this system has no {old[1]}: pip install '{older}', which was built for older ones, "
            "or update the system"
        )
    if any(words in said.lower() for words in _DAMAGED):
        return reason, _without_cache(reinstall(module))
    return None


def _without_cache(command: str) -> str:
    head, _, tail = command.rpartition("pip install ")
    return f"{head}pip install --no-cache-dir {tail}"


def _unreadable(error: BaseException, package: str) -> str | None:
    """The file or folder of a package that may not be read, or None where that is not the cause."""
    if isinstance(error, PermissionError) and error.filename:
        return str(error.filename)
    found = re.match(r"(/.+?): cannot open shared object file: Permission denied", str(error))
    if found is not None:
        return found[1]
    path = getattr(error, "path", None)
    if isinstance(path, str) and "Permission denied" in str(error):
        return path
    if isinstance(
        error, ModuleNotFoundError
    ):  # Python takes a folder that it may not list as empty
        with contextlib.suppress(importlib.metadata.PackageNotFoundError, OSError):
            distribution = importlib.metadata.distribution(package)
            tops = {file.parts[0] for file in distribution.files or () if len(file.parts) > 1}
            for top in sorted(tops - {".."}):
                folder = Path(str(distribution.locate_file(top)))
                if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
                    return str(folder)
    return None


def _culprits(error: BaseException) -> Iterator[str]:
    """Top-level names of the installed modules in an error's traceback, outermost first."""
    trace = error.__traceback__
    while trace is not None:
        parts = Path(trace.tb_frame.f_code.co_filename).parts
        for folder in ("site-packages", "dist-packages"):
            if folder in parts[:-1]:
                yield parts[parts.index(folder) + 1].partition(".")[0]
        trace = trace.tb_next


def _culprit(error: BaseException) -> str | None:
    """The distribution of the module that failed, NumPy's own aside."""
    names = [name for name in _culprits(error) if name != "numpy"]
    if not names:
        return None
    return next(iter(importlib.metadata.packages_distributions().get(names[-1], ())), None)


def _within(module: str, name: str) -> bool:
    """Whether a module that was not found is the library itself, or what it lies in."""
    return module == name or module.startswith(f"{name}.")
