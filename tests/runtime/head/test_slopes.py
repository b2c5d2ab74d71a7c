"""Slopes in compiled code; what they are good for is tested with the parallel sampler."""

from __future__ import annotations

import re

import numpy as np

from csd.plugins import build
from csd.runtime.head import slopes


def test_compiled_code_takes_the_same_moves_for_rounding():
    text = (build.SOURCES / "head.cpp").read_text(encoding="utf-8")
    (number,) = re.findall(r"CSD_SLOPE_ROUNDING = ([0-9.e-]+)f;", text)
    assert np.float32(number) == slopes.ROUNDING
