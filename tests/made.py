"""The bundles that tests share, each made by one function (`kept.exported_once` keeps them)."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from .helpers import DATA, tiny_config


def tiny(folder: Path) -> None:
    """Export the fixtures' models to `folder/bundle`; what that printed is `export.printed`."""
    printed = _export(*_fixtures(folder), "--out", folder / "bundle")
    (folder / "export.printed").write_text(printed, encoding="utf-8")


def local(folder: Path) -> None:
    """Export the fixtures' models with the graphs of local AR steps, in all precisions."""
    argv: list[object] = ["--local-steps", "--precision", "fp16,int8", "--calibration-tokens", 0]
    _export(*argv, *_fixtures(folder), "--out", folder / "bundle")


def zoo(folder: Path) -> None:
    """Export the shipped pair to `folder/bundle`."""
    _export("--zoo", "fashion-mnist", "--out", folder / "bundle")


def emigm(folder: Path) -> None:
    """Export the recorded model of the family eMIGM to `folder/bundle`, for half precision too."""
    _alone(folder, "emigm", "--precision", "fp16")


def one_token(folder: Path) -> None:
    """Export the recorded model of one-token images, as target and draft."""
    weights = DATA / "mar_one_token"
    draft = [
        "--calibration-tokens",
        128,
        "--draft",
        weights / "weights.pth",
        "--draft-config",
        weights / "config.json",
    ]
    _alone(folder, "mar_one_token", *draft)


def _fixtures(folder: Path) -> list[object]:
    """Options that name the fixtures' models."""
    argv: list[object] = ["--decoder", DATA / "vae.ckpt"]
    for role in ("target", "draft"):
        argv += [f"--{role}", DATA / f"{role}.pth"]
        argv += [f"--{role}-config", write_config(folder, role)]
    return argv


def _alone(folder: Path, family: str, *argv: object) -> None:
    target = ["--target", DATA / family / "weights.pth"]
    config = ["--target-config", DATA / family / "config.json"]
    _export(*target, *config, *argv, "--out", folder / "bundle")


def _export(*argv: object) -> str:
    """Export, and return what was printed."""
    from csd.export.cli import main

    from .exporter import asked_once

    with asked_once(), contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([str(part) for part in argv]) == 0
    return printed.getvalue()


def write_config(folder: Path, role: str) -> Path:
    """Write the configuration of one of the fixtures' models and return its path."""
    path = folder / f"{role}.json"
    path.write_text(json.dumps(tiny_config(role).to_dict()), encoding="utf-8")
    return path
