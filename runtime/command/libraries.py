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
import importlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CsdError
from .memory_errors import is_memory_error, out_of_memory
from .permissions import readable
from .text import first_line

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
    )},
}  # fmt: skip
_REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)\s*(?:\[[^]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?")
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


def import_library(
    module: str, purpose: str = "", otherwise: str = "", kind: type[CsdError] = CsdError
) -> Any:
    """Import a module of a library; what it prints where that fails is not shown.

    Args:
        module: its name, as `cuda.bindings.runtime`.
        purpose: what needs it, to begin the message.
        otherwise: another way out, to end the message.
        kind: of the error.

    Raises:
        CsdError: of the kind that was asked for, one line: the reason and what mends it. Too little
            memory is a `BackendError`.
    """
    printed, found = io.StringIO(), None
    try:
        with contextlib.redirect_stderr(printed):
            # Packages first: a module that is there already says nothing of them.
            parts = module.split(".")
            for count in range(1, len(parts) + 1):
                found = importlib.import_module(".".join(parts[:count]))
    except Exception as error:  # what a broken package may raise
        if is_memory_error(error):
            raise out_of_memory(f"{module} cannot be loaded", error) from error
        reason, remedy = explain_import(error, module, printed.getvalue())
        start = f"{purpose} needs {module}: " if purpose else ""
        end = f", or {otherwise}" if otherwise else ""
        raise kind(f"{start}{reason}: {remedy}{end}") from error
    sys.stderr.write(printed.getvalue())
    return found


def need(purpose: str, *modules: str, otherwise: str = "", kind: type[CsdError] = CsdError) -> None:
    """Import libraries that a purpose needs, before any work.

    Args:
        purpose: what needs them, to begin the message.
        modules: their names.
        otherwise: another way out, to end the message.
        kind: of the error.

    Raises:
        CsdError: as for `import_library`; of those that are absent all are named at once.
    """
    absent = [name for name in modules if _is_absent(name)]
    if absent:
        packages = " ".join(_library(name).packages[0] for name in absent)
        ways = f"pip install {packages}" + (f", or {otherwise}" if otherwise else "")
        be = "is" if len(absent) == 1 else "are"
        raise kind(f"{purpose} needs {' and '.join(absent)}, which {be} not installed: {ways}")
    for module in modules:
        import_library(module, purpose, otherwise, kind)


def explain_import(error: BaseException, module: str, printed: str = "") -> tuple[str, str]:
    """Tell why a module could not be imported.

    Args:
        error: what its import raised.
        module: that was imported.
        printed: what the import wrote to stderr.

    Returns:
        The reason, and the command that mends it.
    """
    library = _library(module)
    name = library.title or _name_of(module)
    there = installed_packages(module)
    package = next(iter(there), library.packages[0])
    said = first_line(error)
    lost = isinstance(error, ModuleNotFoundError)
    if lost and (_is_hidden(module) or (not there and _within(module, error.name or module))):
        return f"{name} is not installed ({said})", install(module)
    if (refused := _unreadable(error, package)) is not None:
        return f"{package} may not be read (Permission denied: {refused})", readable(refused)
    text = f"{said}\n{printed}".lower()
    if any(words in text for words in _NUMPY) or _NUMPY_VERSION.search(text):
        failed = _culprit(error) or package
        return (
            f"{failed} {_version(failed)} was built for another NumPy than {_version('numpy')}, "
            "which is installed",
            f"pip install --upgrade {failed}, or pip install 'numpy<2'",
        )
    if lacking := _lacking(package, error):
        first, option = lacking[0], f"{library.option} " if library.option else ""
        return (
            f"{name} cannot be loaded ({said}): {first.by} is installed without {first.name}, "
            "which it needs",
            f"pip install {option}{' '.join(lack.pinned for lack in lacking)}",
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
    name = _name_of(module)
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
    known = [name for name in (*_culprits(error), named) if _name_of(name) in LIBRARIES]
    return explain_import(error, known[-1]) if known else None


def installed_packages(module: str) -> dict[str, str]:
    """Versions of the distributions that bring a library, of those that are installed."""
    found = {name: _version(name) for name in _library(module).packages}
    return {name: version for name, version in found.items() if version}


def install(module: str) -> str:
    """How a library is installed."""
    library = _library(module)
    return library.install or f"pip install {library.packages[0]}"


def reinstall(module: str, package: str = "") -> str:
    """The commands after which a library is there, whole.

    Args:
        module: of the library.
        package: which of those that bring it; the one that is installed, of two the last.
    """
    library = _library(module)
    package = package or [library.packages[0], *installed_packages(module)][-1]
    if len(library.packages) > 1:
        return f"pip uninstall -y {' '.join(library.packages)}, then pip install {package}"
    option = f"{library.option} " if library.option else ""
    return f"pip install --force-reinstall {option}{package}"


def upgrade(module: str) -> str:
    """The command that brings a library that is there up to date."""
    return (
        f"pip install --upgrade {[_library(module).packages[0], *installed_packages(module)][-1]}"
    )


def outdated(*packages: str) -> str | None:
    """What mends that a package is older than csd was run with; None where none is."""
    for name, version in _bounds():
        found = _version(name) if name in packages else ""
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


def _is_absent(module: str) -> bool:
    if _is_hidden(module):
        return True
    try:
        return not installed_packages(module) and importlib.util.find_spec(module) is None
    except ImportError:  # its parent is absent
        return not installed_packages(module)


def _is_hidden(module: str) -> bool:
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
        return reason, (
            f"this system has no {old[1]}: pip install '{package}<{_version(package) or 1}', which "
            "was built for older ones, or update the system"
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


@dataclass(frozen=True)
class _Lacking:
    """A requirement that is not installed: who has it, its name, and which versions would do."""

    by: str
    name: str
    versions: str

    @property
    def pinned(self) -> str:
        """What to give to pip."""
        return f"{self.name}{self.versions}" if self.versions.startswith("==") else self.name


def _lacking(package: str, error: BaseException) -> list[_Lacking]:
    """What a package requires and lacks, if that is why it failed; what was looked for first."""
    if not isinstance(error, ImportError | OSError):
        return []
    looked_for = (getattr(error, "name", None) or "").replace(".", "-").replace("_", "-").lower()
    found = _requirements_that_lack(package, set())
    return sorted(found, key=lambda lack: lack.name != looked_for)


def _requirements_that_lack(package: str, seen: set[str]) -> Iterator[_Lacking]:
    try:
        wanted = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return
    seen.add(package)
    for line in wanted:
        match = _REQUIREMENT.fullmatch(line.strip())
        if match is None or not _applies(match[3] or ""):
            continue
        name = match[1].replace("_", "-").lower()
        if not _version(name):
            yield _Lacking(f"{package} {_version(package)}", name, match[2].strip())
        elif name not in seen:
            yield from _requirements_that_lack(name, seen)


def _applies(marker: str) -> bool:
    """Whether a requirement holds here; False where its marker is more than equalities."""
    here = {
        "sys_platform": sys.platform,
        "platform_system": platform.system(),
        "platform_machine": platform.machine(),
        "os_name": os.name,
    }
    parts = [part.strip(" ()") for part in marker.split(" and ")] if marker.strip() else []
    for part in parts:
        match = re.fullmatch(r"(\w+) *== *['\"]([^'\"]*)['\"]", part)
        if match is None or here.get(match[1]) != match[2]:
            return False
    return True


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


def _library(module: str) -> Library:
    name = _name_of(module)
    return LIBRARIES.get(name, Library((name.replace("_", "-"),)))


def _name_of(module: str) -> str:
    """The library's name: `cuda` is a folder of several."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "cuda" else parts[0]


def _within(module: str, name: str) -> bool:
    """Whether a module that was not found is the library itself, or what it lies in."""
    return module == name or module.startswith(f"{name}.")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
