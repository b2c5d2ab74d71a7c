"""What a bundle offers for a command line: folders, classes, presets and graphs to complete.

The manifest is read as it is: it is checked when the bundle is opened.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from ..command.line.completion import listed
from .manifest import MANIFEST_FILE


def bundles(prefix: str, _: argparse.Namespace) -> list[str]:
    """Complete the folder of a bundle, and folders on the way to one."""
    stem = prefix[: prefix.rfind("/") + 1]
    try:
        names = sorted(entry.name for entry in os.scandir(stem or ".") if entry.is_dir())
    except OSError:
        return []
    shown = [name for name in names if prefix[len(stem) :].startswith(".") or name[0] != "."]
    return [
        stem + name + ("" if Path(stem, name, MANIFEST_FILE).is_file() else "/") for name in shown
    ]


def class_names(prefix: str, args: argparse.Namespace) -> Iterable[str]:
    """Complete classes by name, with commas between, and `all`."""
    names = _manifest(args).get("class_names")
    known = [str(name) for name in cast("list[object]", names)] if isinstance(names, list) else []
    return listed(prefix, [*known, *([] if "," in prefix else ["all"])])


def presets(_: str, args: argparse.Namespace) -> Iterable[str]:
    """Complete the name of a preset."""
    return _keys(_manifest(args).get("presets"))


def graphs(_: str, args: argparse.Namespace) -> Iterable[str]:
    """Complete the name of a graph."""
    return _keys(_manifest(args).get("graphs"))


def _keys(value: object) -> list[str]:
    return [*cast("dict[str, object]", value)] if isinstance(value, dict) else []


def _manifest(args: argparse.Namespace) -> dict[str, Any]:
    folder = getattr(args, "bundle", None) or getattr(args, "rebuild", None)
    try:
        values: Any = json.loads(Path(folder or ".", MANIFEST_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", values) if isinstance(values, dict) else {}
