from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

import pytest

from ..exporter import asked_once
from ..helpers import DATA
from ..kept import exported_once


@pytest.fixture(scope="session", autouse=True)
def exporter_asked_once():
    with asked_once():
        yield


@pytest.fixture(scope="session")
def gpu_export(tmp_path_factory, config_files) -> tuple[Path, str]:
    """The tiny target with all that is there for GPUs but engines, and what its export printed."""
    from csd.export.cli import main

    def make(folder: Path) -> None:
        argv: list[object] = ["--decoder", DATA / "vae.ckpt", "--out", folder / "bundle"]
        argv += ["--target", DATA / "target.pth", "--target-config", config_files["target"]]
        argv += ["--precision", "fp16,bf16", "--head-chain", "--plugins"]
        argv += ["--calibration-tokens", 0]
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            assert main([str(part) for part in argv]) == 0
        (folder / "export.printed").write_text(shown.getvalue(), encoding="utf-8")

    folder = exported_once(tmp_path_factory, "gpu", make)
    return folder / "bundle", (folder / "export.printed").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def gpu_bundle(gpu_export) -> Path:
    return gpu_export[0]


@pytest.fixture
def gpu_copy(gpu_bundle, tmp_path) -> Path:
    return shutil.copytree(gpu_bundle, tmp_path / "copy")
