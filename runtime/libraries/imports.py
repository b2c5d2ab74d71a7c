"""Import a library, or say why it cannot be and what mends it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
from typing import Any

from ..command.memory_errors import is_memory_error, out_of_memory
from ..command.text import listed
from ..errors import CsdError
from .causes import explain_import, is_hidden
from .packages import installed_packages, library_of


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
            found = import_whole(module)
    except Exception as error:  # what a broken package may raise
        if is_memory_error(error):
            raise out_of_memory(f"{module} cannot be loaded", error) from error
        reason, remedy = explain_import(error, module, printed.getvalue())
        start = f"{purpose} needs {module}: " if purpose else ""
        end = f", or {otherwise}" if otherwise else ""
        raise kind(f"{start}{reason}: {remedy}{end}") from error
    sys.stderr.write(printed.getvalue())
    return found


def import_whole(module: str) -> Any:
    """Import a module, its packages first: one that is there already says nothing of them."""
    found: Any = None
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        found = importlib.import_module(".".join(parts[:count]))
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
    absent = [name for name in modules if is_absent(name)]
    if absent:
        packages = " ".join(library_of(name).packages[0] for name in absent)
        ways = f"pip install {packages}" + (f", or {otherwise}" if otherwise else "")
        be = "is" if len(absent) == 1 else "are"
        raise kind(f"{purpose} needs {listed(absent)}, which {be} not installed: {ways}")
    for module in modules:
        import_library(module, purpose, otherwise, kind)


def is_absent(module: str) -> bool:
    """Whether a module is not installed, or hidden; one that is there may be broken."""
    if is_hidden(module):
        return True
    if installed_packages(module):
        return False
    try:
        return importlib.util.find_spec(module) is None
    except (ImportError, ValueError):  # its parent is absent, or is no package
        return True
