"""The entry point of `csd-inspect`: within the frame before anything heavy is imported."""

from __future__ import annotations

from ...runtime.entry import enter


def main() -> int:
    """Run `csd-inspect`; returns the exit code."""
    return enter("csd-inspect", _main)


def _main() -> int:
    from . import cli

    return cli.main()
