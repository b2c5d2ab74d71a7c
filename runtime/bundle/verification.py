"""Whether files of a bundle are those that its manifest names, asked before they are loaded.

A hash takes as long as reading the file. What was found is remembered in the user's cache
(`command/cache.py`), by device, inode, size and times of the file: whoever changes its content
changes these. A file that was written a moment ago is not remembered, as another write might
leave all of them as they are.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..command.cache import cache_folder
from ..command.files import write_atomically
from ..command.frame import os_error_text
from ..command.line.logs import logger
from ..command.text import plain
from ..errors import BundleError
from .folder import BundleFolder
from .manifest import file_sha256

_LOG = logger(__name__)
# `once` hashes what the cache does not remember.
POLICIES = ("always", "once", "never")
# Files that are remembered; the oldest entries go.
_MOST_ENTRIES = 4096
_SETTLED_SECONDS = 2.0
_NAME = "verified.json"
_AGAIN = "export it again with csd-export"


@dataclass(frozen=True)
class FileCheck:
    """Checks files of one bundle before they are loaded; each once in its life.

    Attributes:
        folder: of the bundle.
        hashes: SHA-256 of each file by name.
        remedies: the command that makes a file again, where that is not the export.
        policy: one of `POLICIES`; with `never` only the presence of data is checked.
    """

    folder: BundleFolder
    hashes: Mapping[str, str]
    remedies: Mapping[str, str] = field(default_factory=dict[str, str])
    policy: str = "once"
    _done: set[str] = field(default_factory=set[str], repr=False, compare=False)

    def __call__(self, names: Iterable[str]) -> None:
        """Check files.

        Raises:
            BundleError: one is missing, or was altered.
        """
        self._compare(names, self.policy)

    def code(self, name: str) -> None:
        """Check a file that is run, as an engine or a library: its hash is compared in any case.

        Raises:
            BundleError: the manifest does not name it, it is missing, or was altered.
        """
        if name not in self.hashes:
            raise BundleError(
                f"bundle {self.folder.path}: {name} is code that its manifest does not name: "
                f"{seal_command(self.folder.path)}, if you built it"
            )
        self._compare([name], "once" if self.policy == "never" else self.policy)

    def _compare(self, names: Iterable[str], policy: str) -> None:
        fresh: dict[str, str] = {}
        try:
            for name in names:
                if name not in self._done:
                    fresh |= self._check(name, policy)
                    self._done.add(name)
        finally:
            if fresh:
                remember(fresh)

    def require(self, names: Iterable[str]) -> None:
        """Check that files are there.

        Raises:
            BundleError: one is missing.
        """
        for name in names:
            self._path(name)

    def _path(self, name: str) -> Path:
        path = self.folder.file(name)
        if path is None:
            raise BundleError(
                f"bundle {self.folder.path} lacks {plain(name, 160)}: {self._remedy(name)}"
            )
        return path

    def _check(self, name: str, policy: str) -> dict[str, str]:
        """Check a file; returns what is to be remembered of it, by its key."""
        path, wanted = self._path(name), self.hashes.get(name)
        try:
            path.open("rb").close()  # libraries that read it later say less of what is wrong
            if policy == "never" or wanted is None:
                _LOG.debug("%s is not checked", name)
                return {}
            before = path.stat()
            known = self._known.get(_key(before)) if policy == "once" else None
            began = time.perf_counter()
            found = known or file_sha256(path)
            _LOG.debug(
                "%s %s", name, "was checked before" if known else
                f"hashed in {time.perf_counter() - began:.3f} s",
            )  # fmt: skip
            settled = time.time() - max(before.st_mtime, before.st_ctime) > _SETTLED_SECONDS
            lasting = settled and _key(path.stat()) == _key(before)
        except OSError as error:
            raise BundleError(f"bundle {self.folder.path}: {os_error_text(error)}") from error
        if found != wanted:
            raise BundleError(
                f"bundle {self.folder.path}: {name} was altered (its SHA-256 is not the "
                f"manifest's): {self._remedy(name)}"
            )
        return {_key(before): found} if lasting and known is None and policy == "once" else {}

    @functools.cached_property
    def _known(self) -> dict[str, str]:
        """What was remembered when the first file was checked."""
        return _entries()

    def _remedy(self, name: str) -> str:
        return self.remedies.get(name, _AGAIN)


def seal_command(bundle: Path) -> str:
    """The command that takes code into a bundle's manifest."""
    return f"csd-export --seal {bundle}"


def remember(hashes: Mapping[str, str]) -> None:
    """Note SHA-256 of files by their keys; nothing where the cache cannot be written."""
    file = _file()
    if file is None:
        return
    others = {key: value for key, value in _entries().items() if key not in hashes}
    kept = dict(list({**others, **hashes}.items())[-_MOST_ENTRIES:])
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(file) as stream:
            stream.write(json.dumps(kept, indent=0).encode())


def _key(status: os.stat_result) -> str:
    parts = (
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
    )  # fmt: skip
    return ":".join(map(str, parts))


def _file() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / _NAME


def _entries() -> dict[str, str]:
    """Read what is remembered: SHA-256 by key. Nothing where that cannot be read."""
    file = _file()
    try:
        values: Any = json.loads(file.read_bytes()) if file is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    found = cast("dict[str, object]", values) if isinstance(values, dict) else {}
    return {key: value for key, value in found.items() if isinstance(value, str)}
