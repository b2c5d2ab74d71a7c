"""The connection to a Ray cluster, and the one import of Ray.

Ray tells nobody of its use: its statistics and its dashboard are off. What it begins on this
machine listens on all interfaces, and takes orders from this command alone: they need a token.
Signals, stdout and stderr stay those of the command.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Generator, MutableMapping
from contextlib import ExitStack, contextmanager
from typing import Any

from ..command.frame import Stopped, raise_if_stopped
from ..command.text import first_line, shown
from ..errors import CsdError, OptionError
from ..libraries.imports import import_library, need
from .arguments import LOCAL

STATISTICS = "RAY_USAGE_STATS_ENABLED"
AUTHENTICATION = "RAY_AUTH_MODE"
# Of what answers at an address and is no cluster after all; Ray's own is minutes.
_PATIENCE = {"RAY_NUM_REDIS_GET_RETRIES": "2", "RAY_py_gcs_connect_timeout_s": "10"}
_TOKEN = "RAY_AUTH_TOKEN"
# Sockets lie in Ray's folder, 70 characters below it, and the path of one has 107 at most.
_LONGEST_FOLDER = 20
_ANSWER_SECONDS = 5.0
_ENCRYPTED = "RAY_USE_TLS"
# How a client of HTTP/2 begins (RFC 9113, 3.4), with an empty frame of settings; the server's first
# frame is one too, its type the fourth byte of the header.
_SETTINGS, _FRAME_HEADER = b"\4", 9
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def need_ray(address: str) -> None:
    """Check that Ray is there, before any work.

    Args:
        address: as for `connected`.

    Raises:
        CsdError: it is not, or cannot be imported.
    """
    if "ray" not in sys.modules:  # it reads them when it is imported
        _set_up(os.environ, address)
    with _own_signals():
        need("--ray", "ray")


@contextmanager
def connected(address: str) -> Generator[Any]:
    """Be connected to a cluster; yields the module `ray`. A connection that there is is taken.

    Args:
        address: of the cluster's head as `host:port`, or `local`: one on this machine, which ends
            with the block and leaves no file.

    Raises:
        CsdError: Ray is not installed, or nothing answers there.
    """
    need_ray(address)
    ray = import_library("ray", "--ray")
    if ray.is_initialized():
        yield ray
        return
    with ExitStack() as stack:
        if address == LOCAL:
            near = None if len(tempfile.gettempdir()) <= _LONGEST_FOLDER else "/tmp"
            folder = tempfile.TemporaryDirectory(
                prefix="csd-ray-", dir=near, ignore_cleanup_errors=True
            )
            values = {"include_dashboard": False, "_temp_dir": stack.enter_context(folder)}
        else:
            _check_answers(address)
            values = {}
        stack.callback(ray.shutdown)
        with _own_signals():
            _begin(ray, address, values)
        raise_if_stopped()
        yield ray


def _begin(ray: Any, address: str, values: dict[str, Any]) -> None:
    # What Ray has to say of a worker that died it prints to stdout, which is the command's.
    printing: Any = getattr(getattr(ray, "_private", None), "worker", None)
    if hasattr(printing, "print_to_stdstream"):
        printing.print_to_stdstream = _unprinted
    try:
        ray.init(address=address, log_to_driver=False, logging_level="CRITICAL", **values)
    except SystemExit as error:  # what Ray makes of SIGTERM
        raise Stopped(signal.SIGTERM) from error
    except Exception as error:  # of many kinds, some of them Ray's own
        where = "on this machine" if address == LOCAL else f"at {shown(address)}"
        raise CsdError(
            f"--ray: there is no Ray cluster {where} ({first_line(error)}): {_REMEDY}"
        ) from error


_REMEDY = "start one (ray start --head), give its address as host:port, or give --ray local"


def _unprinted(*_: object, **__: object) -> None:
    """Print nothing."""


def _set_up(environment: MutableMapping[str, str], address: str) -> None:
    """Have Ray send no statistics and obey no stranger, unless somebody has said otherwise."""
    for name, value in {STATISTICS: "0", **_PATIENCE}.items():
        environment.setdefault(name, value)
    if address == LOCAL and AUTHENTICATION not in environment:
        environment[AUTHENTICATION], environment[_TOKEN] = "token", secrets.token_hex(32)


def _check_answers(address: str) -> None:
    """Check that somebody speaks HTTP/2 there, as Ray does over gRPC.

    Ray itself would try for minutes, and say so all the time.

    Raises:
        OptionError: the address is none.
        CsdError: nobody does.
    """
    host, _, port = address.rpartition(":")
    # A lone number would be a name of an IPv4 address, which nobody means.
    named = bool(host) and not host.isdecimal()
    if not (named and port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise OptionError(
            f"--ray is {shown(address)}: give the address of a cluster as host:port, or {LOCAL}"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS) as stream:
            if os.environ.get(_ENCRYPTED, "0") != "0":
                return
            stream.sendall(_PREFACE)
            answer = stream.recv(_FRAME_HEADER)
    except (OSError, UnicodeError) as error:
        raise CsdError(
            f"--ray: nothing answers at {shown(address)} ({first_line(error)}): {_REMEDY}"
        ) from error
    if answer[3:4] != _SETTINGS:
        raise CsdError(f"--ray: what answers at {shown(address)} is no Ray cluster: {_REMEDY}")


@contextmanager
def _own_signals() -> Generator[None]:
    """Keep what signals do: Ray takes SIGTERM, and ends the process without a word."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
