"""What serves the page: a socket of ours, uvicorn in a thread, and nothing from elsewhere."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from ...runtime.errors import CsdError, OptionError
from ...runtime.libraries.imports import import_library
from .stage import STYLE

PURPOSE = "csd-demo"
# Read by Gradio when it is imported: what it sends, and where it keeps files.
ANALYTICS, FOLDER = "GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"
# The browser loads what this address serves, and asks no other: whatever a version of Gradio, or a
# page that is put into ours, may name.
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; form-action 'self'; "
    "frame-ancestors 'self'"
)
_POLICY_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
)
# A page that is open keeps a connection, which nothing ends by itself.
_SECONDS_TO_END = 1

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
               Awaitable[None]]  # fmt: skip


@contextmanager
def gradio_loaded() -> Generator[Any]:
    """Import Gradio, with its analytics off; what it writes is removed at the end of the block.

    Raises:
        CsdError: it cannot be imported, with what mends it.
    """
    with TemporaryDirectory(prefix=f"{PURPOSE}-") as folder:
        os.environ[ANALYTICS], os.environ[FOLDER] = "False", folder
        yield import_library("gradio", PURPOSE)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; before any work, so that a port that is taken costs none.

    Args:
        host: name or address of this machine.
        port: 0 takes one that is free.

    Raises:
        OptionError: the port is in use or may not be had, or the host is none of this machine.
    """
    try:
        family, kind, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise OptionError(f"host {host!r} is not known here: give --host 127.0.0.1") from error
    listener = socket.socket(family, kind)
    try:
        # A port that another program has just left may be had; one that is in use may not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise OptionError(
                f"port {port} of {host} is in use: give another one with --port, or --port 0 for "
                "one that is free"
            ) from error
        if error.errno == errno.EACCES:
            raise OptionError(f"port {port} may not be had: give --port 1024 or above") from error
        raise OptionError(
            f"host {host!r} cannot be listened on ({error.strerror}): give --host 127.0.0.1"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """The address of the page on this machine."""
    host, port = listener.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/"


def serve(gradio: Any, page: Any, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve a page until this thread is interrupted; no connection is left then.

    Args:
        gradio: the library.
        page: what `layout.build` returned.
        listener: what `listen` returned.
        ready: called when the page can be had.

    Raises:
        CsdError: the server has ended by itself.
    """
    fastapi, uvicorn = (import_library(name, PURPOSE) for name in ("fastapi", "uvicorn"))
    # FastAPI's own pages about an interface load scripts from elsewhere.
    closed = {"docs_url": None, "redoc_url": None}
    # What is not said here Gradio takes from the environment.
    app = gradio.mount_gradio_app(
        fastapi.FastAPI(**closed, openapi_url=None), page, path="/", app_kwargs=closed,
        theme=_theme(gradio), css=STYLE, footer_links=["api"], run_history=False, ssr_mode=False,
        enable_monitoring=False, pwa=False, mcp_server=False,
    )  # fmt: skip
    config = uvicorn.Config(
        guarded(app), log_level="error", ws="none", timeout_graceful_shutdown=_SECONDS_TO_END
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name=PURPOSE)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            thread.join(0.05)
        if server.started:
            ready()
        thread.join()
    finally:
        # Connections that the end cuts off are no errors of theirs.
        logging.getLogger("uvicorn.error").disabled = True
        server.should_exit = True
        thread.join()
    raise CsdError("the server has ended: see the lines above")


def guarded(app: App) -> App:
    """An ASGI application whose pages may load what its own address serves, and nothing else."""

    async def answer(scope: Message, receive: Any, send: Any) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_POLICY_HEADERS]
            await send(message)

        await app(scope, receive, sent)

    return answer


def _theme(gradio: Any) -> Any:
    """A theme with the system's fonts: the others ask Google for theirs."""
    return gradio.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
