"""The entry point of `csd-generate`: within the frame before anything heavy is imported."""
# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # the module `typing` takes longer than all else here
if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> int:
    """Run `csd-generate`; returns the exit code."""
    return enter("csd-generate", _main)


def enter(prog: str, body: Callable[[], int]) -> int:
    """Run the command of this process: `body` imports it and calls its `main`."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def leave(number: int, _: object) -> None:
        os.write(2, f"{prog}: error: interrupted; nothing was left half-written\n".encode())
        os._exit(128 + number)

    if ours:
        signal.signal(signal.SIGINT, leave)
    from .command.frame import run_framed
    from .command.memory_errors import check_room_for_numpy

    def checked() -> int:
        check_room_for_numpy()
        return body()

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = run_framed(prog, checked, last=True)
    # All is done. A Ctrl-C while Python tidies up ends it, without a traceback.
    if ours and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


def enter_module(name: str) -> int:
    """Run `python -m NAME` of this process: what has a heavy head calls it before its imports.

    Args:
        name: `__spec__.name` of the module that runs; imported once more, under this name, to call
            its `main`.
    """

    def body() -> int:
        from importlib import import_module

        return import_module(name).main()

    return enter(f"python -m {name.removesuffix('.__main__')}", body)


def _main() -> int:
    from . import cli

    return cli.main()
