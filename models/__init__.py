"""PyTorch definitions, checkpoints, training and the shipped zoo.

`import csd.models` brings no PyTorch: where the zoo's files lie can be asked without it. Nor does
it bring anything else that takes time, so that training is within its frame first.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..runtime.config import MARConfig
    from .checkpoint import load_mar
    from .mar import MAR

__all__ = ["MAR", "MARConfig", "load_mar"]


def __getattr__(name: str) -> Any:
    if name == "MAR":
        from .mar import MAR

        return MAR
    if name == "MARConfig":
        from ..runtime.config import MARConfig

        return MARConfig
    if name == "load_mar":
        from .checkpoint import load_mar

        return load_mar
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
