"""Imports packages, in a process of its own (`child.py`), and prints what came of each."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Sequence
from typing import Any

from ....runtime.libraries.causes import explain_import, explain_part
from ....runtime.libraries.imports import import_whole
from ....runtime.libraries.packages import installed_packages
from ..check import split_message

# What a module has that is whole; a folder of its name has nothing.
_PARTS = {
    "numpy": "ndarray", "onnxruntime": "InferenceSession", "PIL": "__version__",
    "torch": "Tensor", "onnx": "ModelProto", "matplotlib": "__version__",
}  # fmt: skip


def main(modules: Sequence[str]) -> None:
    """Print a line of JSON before each import, and one after it (`probe`)."""
    out = sys.stdout
    for module in modules:
        print(json.dumps({"begun": module}), file=out, flush=True)
        with contextlib.redirect_stdout(io.StringIO()):
            found = probe(module)
        print(json.dumps(found), file=out, flush=True)


def probe(module: str) -> dict[str, Any]:
    """Import a module.

    Returns:
        `module`, `version` (empty where it does not tell), `reason` and `remedy` (empty where it is
        whole), `facts`: what else is to be known of it.
    """
    printed = io.StringIO()
    reason, remedy, facts = "", "", ""
    found: Any = None
    try:
        with contextlib.redirect_stderr(printed):
            found = import_whole(module)
            if (part := _PARTS.get(module)) is not None and not hasattr(found, part):
                reason, remedy = explain_part(module)
            elif module in ("tensorrt", "tensorrt_rtx"):
                reason, remedy = _too_old(module)
            elif module == "onnxruntime":
                providers = [str(name) for name in found.get_available_providers()]
                short = (name.removesuffix("ExecutionProvider") for name in providers)
                facts = f"runs on {', '.join(short)}"
    except Exception as error:  # what a broken package may raise
        reason, remedy = explain_import(error, module, printed.getvalue())
    version = str(getattr(found, "__version__", "") or "")
    if not version:
        version = next(iter(installed_packages(module).values()), "")
    return {
        "module": module,
        "version": version,
        "reason": reason,
        "remedy": remedy,
        "facts": facts,
    }


def _too_old(module: str) -> tuple[str, str]:
    """Whether the runtime takes the vendor's library: the reason and what mends it, or empty."""
    from ....runtime.backends.tensorrt.binding import import_binding
    from ....runtime.errors import BackendError

    try:
        import_binding(module)
    except BackendError as error:
        return split_message(str(error))
    return "", ""
