"""The entry point of `csd`: within the frame before anything heavy is imported."""
# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

from ...runtime.entry import enter


def main() -> int:
    """Run `csd`; returns the exit code."""
    return enter("csd", _main)


def _main() -> int:
    from . import cli

    return cli.main()
