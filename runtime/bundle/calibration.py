"""Read the fitted drafts of a bundle's heads."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import numpy as np

from ..config import MARConfig
from ..head import AffineDraft
from ..head.draft import HORIZON

# Of an array in its archive, before its numbers.
_MOST_HEADER = 4096


def read_head_draft(path: Path, role: str, config: MARConfig, head_steps: int) -> AffineDraft:
    """Read the draft of one head; no array is read before its size is known to be right.

    Args:
        path: the NumPy archive.
        role: `target` or `draft`.
        config: of that model.
        head_steps: S that it was fitted at.

    Raises:
        ValueError: an array is missing, or is not finite float32 numbers of the right shape.
        OSError: it cannot be read.
        zipfile.BadZipFile: it is no archive.
    """
    channels = config.token_dim
    shapes = {
        "weight": (head_steps, 4 * channels, channels),
        "bias": (head_steps, channels),
        "share": (head_steps, channels),
        "start": (channels + 1, channels),
        "survival": (head_steps, HORIZON),
    }
    assert set(shapes) == {field.name for field in dataclasses.fields(AffineDraft)}
    names = {name: f"{role}.{name}" for name in shapes}
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    for name, stored in names.items():
        most = 4 * int(np.prod(shapes[name])) + _MOST_HEADER
        if not 0 < sizes.get(f"{stored}.npy", 0) <= most:
            raise ValueError(f"it lacks {stored} of shape {list(shapes[name])}")
    arrays: dict[str, np.ndarray] = {}
    with np.load(path) as archive:
        for name, stored in names.items():
            try:
                array = archive[stored]
            except ValueError as error:  # no plain numbers, or not as many as it says
                raise ValueError(f"{stored}: {error}") from error
            if array.shape != shapes[name] or array.dtype != np.float32:
                raise ValueError(
                    f"{stored} is {array.dtype} {list(array.shape)}, wanted float32 "
                    f"{list(shapes[name])}"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"{stored} holds values that are not finite")
            arrays[name] = array
    return AffineDraft(**arrays)
