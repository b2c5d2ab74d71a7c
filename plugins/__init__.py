"""The operators of continuous speculative decoding."""

from . import reference

__all__ = ["reference"]
