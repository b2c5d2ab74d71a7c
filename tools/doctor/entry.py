"""The entry point of `csd-doctor`: within the frame before anything heavy is imported."""

from __future__ import annotations

from ...runtime.entry import enter


def main() -> int:
    """Run `csd-doctor`; returns the exit code."""
    return enter("csd-doctor", _main)


def _main() -> int:
    from . import cli

    return cli.main()
