"""Read weights, whatever form of file a user has: what lies in it, which of it is meant, and
whether it fits.

    files ─► content (what a file is), pickles, safetensors
      └► sets (averages or not) ─► names (wrappers) ─► reading ─► shape, fit ─► mar_file
"""

from .fit import load_into
from .mar_file import build_mar, check_mar, find_mar, load_mar
from .reading import Weights, read_state_dict, read_weights

__all__ = [
    "Weights",
    "build_mar",
    "check_mar",
    "find_mar",
    "load_into",
    "load_mar",
    "read_state_dict",
    "read_weights",
]
