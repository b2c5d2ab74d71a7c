"""PyTorch definitions, checkpoints, training and the shipped zoo."""

from ..runtime.config import MARConfig
from .checkpoint import load_mar
from .mar import MAR

__all__ = ["MAR", "MARConfig", "load_mar"]
