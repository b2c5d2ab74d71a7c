"""Checkpoints of a training run: written whole or not at all, and of this run or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...runtime.command.files import write_atomically
from ...runtime.command.text import plain
from ...runtime.errors import CsdError


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write `content`, whole or not at all.

    Raises:
        OSError: as for `write_atomically`.
    """
    with write_atomically(path) as stream:
        torch.save(dict(content), stream)


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        CsdError: the file is damaged.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        reason = plain(str(error), 160) or type(error).__name__
        raise CsdError(
            f"cannot read the checkpoint {path} ({reason}): delete it to start over"
        ) from error


def refuse_other_run(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise unless the run of a checkpoint had the values that this one has.

    Raises:
        CsdError: names the first value that differs.
    """
    changed = [key for key in wanted if found.get(key) != wanted[key]]
    if changed:
        raise CsdError(
            f"{path} was trained with {changed[0]} = {found.get(changed[0])}, not "
            f"{wanted[changed[0]]}: give the same value, or another --out"
        )
