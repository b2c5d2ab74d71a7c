"""The entry point of `csd-bench`: within the frame before anything heavy is imported."""
# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

from ..runtime.entry import enter


def main() -> int:
    """Run `csd-bench`; returns the exit code."""
    return enter("csd-bench", _main)


def _main() -> int:
    from .bench import cli

    return cli.main()
