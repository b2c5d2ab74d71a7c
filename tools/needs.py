"""Packages that a tool needs beyond the runtime's: missed before work, in one line."""

from __future__ import annotations

import importlib

from ..runtime.errors import CsdError


def need(purpose: str, *modules: str, otherwise: str = "") -> None:
    """Import packages that a purpose needs.

    Args:
        purpose: what needs them, to begin the message.
        modules: their names, which are also those that pip knows them by.
        otherwise: another way out, to end the message.

    Raises:
        CsdError: one of them is not installed, or lacks a package of its own.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            missing = error.name or module
            remedy = f"pip install {missing.partition('.')[0]}"
            ways = f"{remedy}, or {otherwise}" if otherwise else remedy
            raise CsdError(f"{purpose} needs {missing}: {ways}") from error
