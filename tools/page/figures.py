"""What a setting took and changed, beside the target with the same noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...runtime.result import GenerateResult
from ..eval.metrics.paired import psnr
from .overlay import Image


def figures(made: GenerateResult, target: GenerateResult) -> dict[str, Any]:
    """Figures of two runs of one image, as JSON values.

    Returns:
        `setting` and `target` with `seconds`, `ar_steps` and `acceptance` (None where nothing is
        drafted); `times_as_fast` is the target's seconds by the setting's; `psnr` in dB (None where
        both images are the same) and `mean_difference` of the pixels, 0 to 255.
    """
    apart = difference(made.images[0], target.images[0])
    ratio = float(psnr(made.images, target.images)[0])
    return {
        "setting": _of(made),
        "target": _of(target),
        "times_as_fast": target.stats.seconds / made.stats.seconds,
        "psnr": ratio if math.isfinite(ratio) else None,
        "mean_difference": float(apart.mean()),
    }


def difference(a: Image, b: Image) -> Image:
    """How far each value of two images `[H, W, 3]` lies apart: black where they are the same."""
    return np.abs(a.astype(np.int16) - b).astype(np.uint8)


def _of(result: GenerateResult) -> dict[str, Any]:
    stats = result.stats
    return {
        "seconds": stats.seconds,
        "ar_steps": stats.ar_steps,
        "acceptance": stats.acceptance_rate,
    }
