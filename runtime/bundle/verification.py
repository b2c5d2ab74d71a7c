"""Whether files of a bundle are those that its manifest names, asked before they are loaded.

A hash takes as long as reading the file. What was found is remembered in the user's cache
(`command/cache.py`), by device, inode, size and times of the file: whoever changes its content
changes these. A file that was written a moment ago is not remembered, as another write might
leave all of them as they are.
"""

from __future__ import annotations

import contextlib
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
from ..errors import BundleError
from .folder import BundleFolder
from .manifest import file_sha256

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
        policy: one of `POLICIES`; with `never` only their presence is checked.
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
        for name in names:
            if name not in self._done:
                self._check(name)
                self._done.add(name)

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
            raise BundleError(f"bundle {self.folder.path} lacks {name}: {self._remedy(name)}")
        return path

    def _check(self, name: str) -> None:
        path, wanted = self._path(name), self.hashes.get(name)
        try:
            path.open("rb").close()  # libraries that read it later say less of what is wrong
            if self.policy == "never" or wanted is None:
                return
            before = path.stat()
            known = remembered(before) if self.policy == "once" else None
            found = known or file_sha256(path)
        except OSError as error:
            raise BundleError(f"bundle {self.folder.path}: {os_error_text(error)}") from error
        if found != wanted:
            raise BundleError(
                f"bundle {self.folder.path}: {name} was altered (its SHA-256 is not the "
                f"manifest's): {self._remedy(name)}"
            )
        if known is None and self.policy == "once":
            remember(path, before, found)

    def _remedy(self, name: str) -> str:
        return self.remedies.get(name, _AGAIN)


def remembered(status: os.stat_result) -> str | None:
    """Return the SHA-256 that a file in this state was seen to have, or None."""
    found = _entries().get(_key(status))
    return found if isinstance(found, str) else None


def remember(path: Path, status: os.stat_result, sha256: str) -> None:
    """Note the SHA-256 of a file; nothing where the cache cannot be written.

    Args:
        path: the file.
        status: its state before it was read; it is not noted where that has changed.
        sha256: what it has.
    """
    file = _file()
    settled = time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS
    if file is None or not settled or _key(path.stat()) != _key(status):
        return
    entries = _entries()
    entries.pop(_key(status), None)
    entries[_key(status)] = sha256
    kept = dict(list(entries.items())[-_MOST_ENTRIES:])
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


def _entries() -> dict[str, object]:
    """Read what is remembered; nothing where that cannot be read."""
    file = _file()
    try:
        values: Any = json.loads(file.read_bytes()) if file is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return cast("dict[str, object]", values) if isinstance(values, dict) else {}
