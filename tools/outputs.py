"""A folder of results, made when everything that can be refused has been."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..runtime.command.files import check_outputs, check_outside


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
    check_outside("--out", folder, inside or {})
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in names]
    check_outputs({f"the result {path.name} at": path for path in files}, inside)
    return files
