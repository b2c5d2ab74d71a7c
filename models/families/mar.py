"""MAR: Li et al., "Autoregressive Image Generation without Vector Quantization", arXiv 2406.11838.

Everything else is told by how it differs from this one: the defaults of `MARConfig` are MAR's and
the names of `csd.models.mar.MAR` those of its checkpoints.
"""

from __future__ import annotations

from ...runtime.config import PRESETS
from .family import Family

FAMILY = Family("mar", PRESETS)
