from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# PyTorch reads this when it is imported. Models as small as these only lose by threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from csd.runtime import Bundle
from csd.runtime.session import Session

from . import made
from .helpers import DATA, edit_manifest, tiny_config
from .kept import exported_once
from .plugins import headers

BundleMaker = Callable[..., Path]

# A shell that starts the tests in the background has signals ignored that tests send; whoever
# inherits them would not be stopped either.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what a run that passed may have left out."""
    terminalreporter.write_line(headers.summary())


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor write what the user's cache holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CSD_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("COLUMNS", raising=False)  # what runs tests side by side may set it
        yield


@pytest.fixture(scope="session", autouse=True)
def operators_parsed_once() -> Iterator[None]:
    """PyTorch parses the source of all its operators for every graph, half of a tiny one's time."""
    from torch.onnx._internal.exporter import _registration as exporter

    apis = exporter.onnxscript_apis
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apis, "get_torchlib_ops", functools.cache(apis.get_torchlib_ops))
        yield


@pytest.fixture(scope="session")
def recorded() -> dict[str, np.ndarray]:
    with np.load(DATA / "reference.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def tiny_models() -> dict[str, Any]:
    from csd.models import load_mar

    return {r: load_mar(DATA / f"{r}.pth", tiny_config(r)) for r in ("target", "draft")}


@pytest.fixture(scope="session")
def config_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("configs")
    return {role: made.write_config(folder, role) for role in ("target", "draft")}


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The bundle of the fixtures' models, and what its export printed."""
    folder = exported_once(tmp_path_factory, "tiny", made.tiny)
    return folder / "bundle", (folder / "export.printed").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_export: tuple[Path, str]) -> Path:
    return tiny_export[0]


@pytest.fixture(scope="session")
def tiny_session(tiny_bundle: Path) -> Iterator[Session]:
    with Bundle.open(tiny_bundle).session() as session:
        yield session


@pytest.fixture(scope="session")
def local_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the fixtures' models with the graphs of local AR steps."""
    return exported_once(tmp_path_factory, "local", made.local) / "bundle"


@pytest.fixture(scope="session")
def local_session(local_bundle: Path) -> Iterator[Session]:
    with Bundle.open(local_bundle).session() as session:
        yield session


@pytest.fixture
def make_bundle(tiny_bundle: Path, tmp_path: Path) -> BundleMaker:
    """Copy the tiny bundle, with a change of its manifest."""

    def make(change: Callable[[dict[str, Any]], object] | None = None, name: str = "copy") -> Path:
        out = tmp_path / name
        shutil.copytree(tiny_bundle, out)
        if change is not None:
            edit_manifest(out, change)
        return out

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small file system cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="session")
def emigm_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the recorded eMIGM model, whose head has a solver."""
    return exported_once(tmp_path_factory, "emigm", made.emigm) / "bundle"


@pytest.fixture(scope="session")
def emigm_session(emigm_bundle: Path) -> Iterator[Session]:
    with Bundle.open(emigm_bundle).session() as session:
        yield session


@pytest.fixture(scope="session")
def zoo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the shipped pair."""
    return exported_once(tmp_path_factory, "zoo", made.zoo) / "bundle"
