"""The version of csd, which the distribution takes from here."""

VERSION = "0.1.0"


def version() -> str:
    """Return the version of csd."""
    return VERSION
