"""What a package requires and lacks, all the way down."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from .packages import installed_version

_REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)\s*(?:\[[^]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?")


@dataclass(frozen=True)
class Lacking:
    """A requirement that is not installed: who has it, its name, and which versions would do."""

    by: str
    name: str
    versions: str

    @property
    def pinned(self) -> str:
        """What to give to pip."""
        return f"{self.name}{self.versions}" if self.versions.startswith("==") else self.name


def lacking(package: str, error: BaseException) -> list[Lacking]:
    """What a package requires and lacks, if that is why it failed; what was looked for first."""
    if not isinstance(error, ImportError | OSError):
        return []
    looked_for = (getattr(error, "name", None) or "").replace(".", "-").replace("_", "-").lower()
    found = _requirements_that_lack(package, set())
    return sorted(found, key=lambda lack: lack.name != looked_for)


def _requirements_that_lack(package: str, seen: set[str]) -> Iterator[Lacking]:
    try:
        wanted = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return
    seen.add(package)
    for line in wanted:
        match = _REQUIREMENT.fullmatch(line.strip())
        if match is None or not _applies(match[3] or ""):
            continue
        name = match[1].replace("_", "-").lower()
        if not installed_version(name):
            yield Lacking(f"{package} {installed_version(package)}", name, match[2].strip())
        elif name not in seen:
            yield from _requirements_that_lack(name, seen)


def _applies(marker: str) -> bool:
    """Whether a requirement holds here; False where its marker is more than equalities."""
    here = {
        "sys_platform": sys.platform,
        "platform_system": platform.system(),
        "platform_machine": platform.machine(),
        "os_name": os.name,
    }
    parts = [part.strip(" ()") for part in marker.split(" and ")] if marker.strip() else []
    for part in parts:
        match = re.fullmatch(r"(\w+) *== *['\"]([^'\"]*)['\"]", part)
        if match is None or here.get(match[1]) != match[2]:
            return False
    return True
