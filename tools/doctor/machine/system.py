"""The system's own files: /proc, /sys, /etc, below a root that tests replace.

All of them may be absent or closed: every reader answers None, or nothing, then.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Of one file: /proc/cpuinfo of a server has a megabyte.
_MOST_BYTES = 8 << 20


@dataclass(frozen=True)
class System:
    """Files of a system.

    Attributes:
        root: in place of `/`.
    """

    root: Path = Path("/")

    @property
    def own(self) -> bool:
        """Whether it is the system that this process runs on."""
        return self.root == Path("/")

    def path(self, name: str) -> Path:
        """Where a file is, given as `/proc/meminfo`."""
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str | None:
        """The content of a file without what surrounds it, or None."""
        try:
            with self.path(name).open("rb") as stream:
                content = stream.read(_MOST_BYTES)
        except (OSError, ValueError):
            return None
        return content.decode("utf-8", "replace").strip("\0 \n\t")

    def number(self, name: str) -> int | None:
        """The whole number that a file holds, or None."""
        text = self.text(name) or ""
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None

    def fields(self, name: str, separator: str = ":") -> dict[str, str]:
        """The lines of a file as `name: value`; of a name that stands twice the first."""
        found: dict[str, str] = {}
        for line in (self.text(name) or "").splitlines():
            key, between, value = line.partition(separator)
            if between:
                found.setdefault(key.strip(), value.strip())
        return found

    def names(self, folder: str) -> list[str]:
        """Names in a folder, in order; none where it cannot be listed."""
        try:
            return sorted(path.name for path in self.path(folder).iterdir())
        except OSError:
            return []
