"""Files that this user may not read, and what lets them be read."""

from __future__ import annotations

import os
from pathlib import Path


def read_refused(path: str | Path) -> bool:
    """Whether a file or folder is there, or behind a folder that may not be entered, and closed."""
    return _closed_folder(path) is not None or (os.path.exists(path) and not _may(path, os.R_OK))


def readable(path: str | Path) -> str:
    """The remedy for what may not be read; it names the folder that is in the way, if one is."""
    folder = _closed_folder(path)
    if folder is not None:
        return f"chmod a+x {folder}, or run as its owner"
    mode = "-R a+rX" if os.path.isdir(path) else "a+r"
    return f"chmod {mode} {path}, or run as its owner"


def _closed_folder(path: str | Path) -> Path | None:
    """The first folder on the way to a path, links followed, that may not be entered."""
    folders = (*reversed(Path(os.path.abspath(path)).parents),
               *reversed(Path(os.path.realpath(path)).parents))  # fmt: skip
    return next((f for f in folders if f.is_dir() and not _may(f, os.X_OK)), None)


def _may(path: str | Path, access: int) -> bool:
    return os.access(path, access, effective_ids=os.access in os.supports_effective_ids)
