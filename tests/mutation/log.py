"""What was found out so far, one JSON object a line: a run that was ended goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Log:
    """Facts by kind and name; a later one takes the place of an earlier one.

    Args:
        path: file of lines; made where it is missing.
        resume: whether to read what it holds, or to begin anew.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self._path, self._facts = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if not resume or not path.exists():
            path.write_text("", encoding="utf-8")
        self.read()

    def read(self) -> None:
        """Read what other processes have added."""
        for line in self._path.read_text(encoding="utf-8").splitlines():
            fact = json.loads(line)
            self._facts[fact["kind"], fact["name"]] = fact["values"]

    def add(self, kind: str, name: str, values: Mapping[str, Any]) -> None:
        """Write a fact."""
        self._facts[kind, name] = json.loads(json.dumps(values))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "name": name, "values": values}) + "\n")

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Values of a fact, or nothing."""
        return self._facts.get((kind, name), {})


def digest(*texts: str) -> str:
    """Short hash of some texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
