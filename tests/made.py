"""The bundles that tests share, each made by one function (`kept.exported_once` keeps them)."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from .helpers import DATA, tiny_config


def tiny(folder: Path) -> None:
    """Export the fixtures' models to `folder/bundle`; what that printed is `export.printed`."""
    from csd.export.cli import main

    argv: list[object] = ["--decoder", DATA / "vae.ckpt", "--out", folder / "bundle"]
    for role in ("target", "draft"):
        argv += [f"--{role}", DATA / f"{role}.pth"]
        argv += [f"--{role}-config", write_config(folder, role)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([str(part) for part in argv]) == 0
    (folder / "export.printed").write_text(printed.getvalue(), encoding="utf-8")


def zoo(folder: Path) -> None:
    """Export the shipped pair to `folder/bundle`."""
    from csd.export.cli import main

    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["--zoo", "fashion-mnist", "--out", str(folder / "bundle")]) == 0


def write_config(folder: Path, role: str) -> Path:
    """Write the configuration of one of the fixtures' models and return its path."""
    path = folder / f"{role}.json"
    path.write_text(json.dumps(tiny_config(role).to_dict()), encoding="utf-8")
    return path
