"""The entry point of `csd-demo`: within the frame before anything heavy is imported."""
# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

from ...runtime.entry import enter


def main() -> int:
    """Run `csd-demo`; returns the exit code."""
    return enter("csd-demo", _main)


def _main() -> int:
    from . import cli

    return cli.main()
