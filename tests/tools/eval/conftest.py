from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from csd.tools.eval.commands.run import main

Make = Callable[..., Path]


def make_run(bundle: Path, path: Path, name: str, *argv: object, images: int) -> None:
    """Make a run of the small pair in a database."""
    given = [bundle, f"--name={name}", f"--images={images}", "--batch=5", "--num-iter=2",
             "--head-steps=4", "--threads=1", "--quiet", f"--db={path}", *argv]  # fmt: skip
    assert main([str(part) for part in given]) == 0


@pytest.fixture
def evaluated(tiny_bundle: Path, tmp_path: Path) -> Make:
    """Make a run of the small pair in a database of this test, and return the latter's path."""

    def make(name: str, *argv: object, images: int = 12, db: str = "e.db") -> Path:
        make_run(tiny_bundle, tmp_path / db, name, *argv, images=images)
        return tmp_path / db

    return make
