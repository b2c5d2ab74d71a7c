"""`csd-demo`: a page that decodes before one's eyes."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Sequence

from ...runtime.cli import (
    add_bundle_argument,
    add_machine_arguments,
    open_bundle,
    open_session,
)
from ...runtime.command.line.effects import refuse_without_effect
from ...runtime.command.parser import Parser, run_command
from ...runtime.effects import MACHINE
from ...runtime.errors import OptionError
from ...runtime.images import load_pillow
from ..option_values import whole_number_reader
from .layout import build
from .server import gradio_loaded, listen, serve, url_of

HOST, PORT = "127.0.0.1", 7860


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="csd-demo",
        description="Serve a page to play with: choose a class and a setting, and see the image "
        "come token by token, with what the target accepted and resampled, beside the target's "
        "own image of the same seed. It listens on this machine alone unless a host is named; "
        "Ctrl-C ends it.",
        example="csd-demo bundle --port 7861",
        lower="--threads",
    )
    add_bundle_argument(parser)
    page = parser.group("page")
    page.add_argument(
        "--host", default=HOST, help="address to listen on; 0.0.0.0 is all of this machine's"
    )
    page.add_argument(
        "--port", type=whole_number_reader(0, 65535), default=PORT, help="0 = one that is free"
    )
    add_machine_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `csd-demo`; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Serve the page until it is interrupted."""
    refuse_without_effect(args.given, MACHINE, [args.backend])
    with listen(args.host, args.port) as listener:
        bundle = open_bundle(args)
        if not bundle.manifest.makes_images:
            raise OptionError(
                f"bundle {args.bundle} has no decoder and makes latents only: export it with "
                "--decoder"
            )
        load_pillow()
        with gradio_loaded() as gradio, open_session(bundle, args) as session:

            def ready() -> None:
                alone = ipaddress.ip_address(listener.getsockname()[0]).is_loopback
                reach = "" if alone else ", whoever can reach it may use it"
                print(f"{url_of(listener)} (Ctrl-C ends it{reach})", flush=True)

            serve(gradio, build(gradio, session), listener, ready)
    return 0
