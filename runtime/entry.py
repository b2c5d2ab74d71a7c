"""The entry point of `csd-generate`: within the frame before anything heavy is imported."""

from __future__ import annotations

import signal
from collections.abc import Callable

from .frame import run_framed


def main() -> int:
    """Run `csd-generate`; returns the exit code."""
    return enter("csd-generate", _main)


def enter(prog: str, body: Callable[[], int]) -> int:
    """Run the command of this process: `body` imports it and calls its `main`."""
    code = run_framed(prog, body)
    # All is done. A Ctrl-C while Python tidies up ends it, without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


def _main() -> int:
    from . import cli

    return cli.main()
