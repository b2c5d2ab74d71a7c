"""Kernels that TensorRT-RTX compiles at the first run, kept in a file for later processes.

The file lies in the user's cache (`command/cache.py`). There is one for each library version,
device and CUDA version of the driver. It begins with the SHA-256 of the rest, so that a damaged one
never gets to the library; the library itself checks that the rest is for this machine. What cannot
be read is ignored and replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from ...command.cache import cache_folder
from ...command.files import write_atomically
from ...device import DeviceInfo

_DIGEST_BYTES = hashlib.sha256().digest_size


def cache_file(version: str, device: DeviceInfo) -> Path | None:
    """Return where kernels are kept; None for a user without a home.

    Args:
        version: of the library.
        device: what the kernels are for.
    """
    # Devices of one architecture differ in what suits them, and names are no file names.
    own = hashlib.sha256(f"{device.name} {device.platform}".encode()).hexdigest()[:8]
    key = ("tensorrt_rtx", version, device.architecture, f"cuda{device.driver}", own)
    folder = cache_folder()
    return None if folder is None else folder / f"{'-'.join(key)}.kernels"


class KernelFile:
    """The file of a device's kernels.

    Args:
        path: where it lies, or will.

    Attributes:
        reused: whether the library took its content.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stored = b""  # its digest
        self.reused = False

    def fill(self, cache: Any) -> None:
        """Give an empty cache of the library what the file holds, if it takes that."""
        content = _read(self._path)
        if content is None:
            return
        with contextlib.suppress(RuntimeError):
            self.reused = bool(cache.deserialize(content))
        self._stored = _digest(content) if self.reused else b""

    def save(self, cache: Any) -> None:
        """Write what a cache holds, unless the file does, or there is no place for it."""
        try:
            serialized = cache.serialize()
        except RuntimeError:
            return  # a session ends well without it
        content = b"" if serialized is None else bytes(memoryview(serialized))
        if not content or (digest := _digest(content)) == self._stored:
            return
        # A machine without a writable home is none the worse for compiling again.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(self._path) as stream:
                stream.write(digest + content)


def _read(path: Path) -> bytes | None:
    """Return what a file holds after its digest, or None where that cannot be trusted."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    digest, content = whole[:_DIGEST_BYTES], whole[_DIGEST_BYTES:]
    return content if digest == _digest(content) else None


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
