"""A folder of results, made when everything that can be refused has been."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..runtime.command.files import check_outputs
from ..runtime.errors import OptionError


def result_files(
    folder: Path, names: Sequence[str], inside: Mapping[str, Path] | None = None
) -> list[Path]:
    """Make the folder of `--out` and return the files that will be written there.

    Args:
        folder: made if it is not there, with its parents.
        names: of the files.
        inside: folders and files that are read, by what to call them.

    Raises:
        OptionError: the folder lies in one that is read, or a file is one that is read.
        OSError: the folder cannot be made, or a file cannot be written.
    """
    place = Path(os.path.realpath(folder))
    for name, source in (inside or {}).items():
        root = Path(os.path.realpath(source))
        if root.is_dir() and (place == root or root in place.parents):
            raise OptionError(f"--out {folder} belongs to {name} {source}: give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in names]
    check_outputs({f"the result {path.name} at": path for path in files}, inside)
    return files
