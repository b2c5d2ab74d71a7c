"""Where what may be made again is kept: `$CSD_CACHE_DIR`, `$XDG_CACHE_HOME/csd` or `~/.cache/csd`.

All of it may be deleted at any time.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "CSD_CACHE_DIR"


def cache_folder() -> Path | None:
    """Return the user's folder, which need not be there; None for a user without a home."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "csd"
    try:
        return Path.home() / ".cache" / "csd"
    except RuntimeError:
        return None
