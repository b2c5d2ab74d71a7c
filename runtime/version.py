"""The version of csd."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _installed


def version() -> str:
    """Return the installed version, or `unknown` when run from a folder that is not installed."""
    try:
        return _installed("csd")
    except PackageNotFoundError:
        return "unknown"
