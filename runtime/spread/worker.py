"""What runs in a worker's process: a session of the same bundle, which does piece after piece."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backends import BackendOptions
from ..bundle.bundle import Bundle
from ..command.frame import os_error_text
from ..errors import CsdError
from ..session import Session


@dataclass(frozen=True)
class Order:
    """What every worker opens.

    Attributes:
        bundle: its folder, by a path that is the same on each node.
        manifest_sha256: of its manifest, which holds the hashes of all its files.
        verify_files: see `Bundle.open`.
        options: how graphs are run; the backend by name, so that all take the same.
        versions: those that a worker must have (`Session.versions`): others make other images.
    """

    bundle: Path
    manifest_sha256: str
    verify_files: str
    options: BackendOptions
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Refusal:
    """An error that a user can mend, as a value: errors of many kinds cannot be pickled.

    Attributes:
        message: one line.
    """

    message: str


class Worker:
    """A session in a process of its own.

    Args:
        order: what it opens.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._session: Session | None = None

    def open(self) -> Refusal | None:
        """Open the bundle and the session; returns why this node cannot take part, or None."""
        try:
            self._session = _opened(self._order)
        except CsdError as error:
            return Refusal(f"node {platform.node()}: {error}")
        except OSError as error:
            return Refusal(f"node {platform.node()}: {os_error_text(error)}")
        return None

    def run(self, work: Callable[..., Any], *piece: Any) -> Any:
        """Return what `work` makes of a piece, or a `Refusal`."""
        try:
            return work(self._session, *piece)
        except CsdError as error:
            return Refusal(str(error))


def _opened(order: Order) -> Session:
    bundle = Bundle.open(order.bundle, verify_files=order.verify_files)
    if bundle.identity()["manifest_sha256"] != order.manifest_sha256:
        raise CsdError(
            f"another bundle lies at {order.bundle} than where the command runs: copy that one "
            "there, to the same path"
        )
    session = Session(bundle, order.options)
    for name, version in order.versions.items():
        found = session.versions().get(name, "no version")
        if found != version:
            session.close()
            raise CsdError(
                f"{name} is {found}, and {version} where the command runs, so images could "
                f"differ: have the same {name} there, or take that node out of the cluster"
            )
    return session
