"""Exported bundles, made once for all processes of a run and kept from one run to the next.

An export takes longer than the tests that need its bundle. What it writes depends on the sources,
the weights and the versions of some packages: a bundle is kept under the hash of all of these, so
that any change exports again. Tests get a copy of their own.

    CSD_TEST_CACHE=off        exports always
    CSD_TEST_CACHE=FOLDER     keeps bundles there in place of the user's cache
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from csd.runtime.version import version as csd_version

ROOT = Path(__file__).resolve().parent.parent
# What an export runs. A bundle says which csd wrote it, so the version is part of it too.
FOLDERS = ("export", "models", "runtime", "plugins")
SUFFIXES = {".py", ".h", ".cuh", ".cu", ".cpp", ".safetensors", ".json", ".onnx"}
# What the exports of the tests are made with, beside the file of the function that makes one.
HELPERS = "helpers.py"
DATA = (
    "config.json", "target.pth", "draft.pth", "vae.ckpt",
    *(f"{family}/{name}" for family in ("emigm", "mar_one_token")
      for name in ("config.json", "weights.pth")),
)  # fmt: skip
PACKAGES = (
    "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "safetensors", "tensorrt_rtx", "torch",
)  # fmt: skip
# Bundles of the latest states of the sources are kept, and of all that were used within the hour,
# perhaps by a run beside this one.
MOST_STATES, IN_USE_SECONDS = 6, 3600

Make = Callable[[Path], None]


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Make) -> Path:
    """Return a folder that `make` fills, once for all processes that the tests run in."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / f"once-{name}", root / f"once-{name}.done"
    with (root / f"once-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def exported_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Make) -> Path:
    """As `made_once`, with what an earlier run made from the same sources.

    `make` writes nothing that names the folder but text files ending in `.printed`.
    """
    cache = _cache()
    if cache is None:
        return made_once(tmp_path_factory, name, make)
    maker = hashlib.sha256(Path(make.__code__.co_filename).read_bytes()).hexdigest()[:8]
    kept = cache / sources_hash() / f"{name}-{maker}"

    def kept_or_made(folder: Path) -> None:
        if not kept.is_dir():
            make(folder)
            _keep(folder, kept)
            return
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        for printed in folder.glob("*.printed"):
            text = printed.read_text(encoding="utf-8")
            printed.write_text(text.replace("{folder}", str(folder)), encoding="utf-8")
        os.utime(kept.parent)

    return made_once(tmp_path_factory, name, kept_or_made)


def kept_folder(name: str) -> Path | None:
    """A folder for what is made of these sources, which a later run finds again, or None."""
    cache = _cache()
    return None if cache is None else cache / sources_hash() / name


@functools.cache
def sources_hash() -> str:
    """Hash of all that an exported bundle is made of."""
    digest = hashlib.sha256()
    for path in _sources():
        digest.update(f"{path.relative_to(ROOT)}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for package in PACKAGES:
        try:
            digest.update(f"{package} {version(package)}\n".encode())
        except PackageNotFoundError:
            digest.update(f"{package} is missing\n".encode())
    digest.update(f"csd {csd_version()}, Python {sys.version}\n".encode())
    return digest.hexdigest()[:20]


def _sources() -> Iterator[Path]:
    for folder in FOLDERS:
        files = (path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES)
        yield from sorted(files)
    tests = ROOT / "tests"
    yield tests / HELPERS
    yield from (tests / "data" / name for name in DATA)


def _cache() -> Path | None:
    """Where bundles are kept, or None."""
    given = os.environ.get("CSD_TEST_CACHE", "")
    if given == "off":
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = Path(given) if given else home / "csd-tests"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return cache


def _keep(folder: Path, kept: Path) -> None:
    """Keep a copy, which appears as a whole; runs beside this one may do the same."""
    kept.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent.parent, prefix=".new-") as made:
        copy = shutil.copytree(folder, Path(made) / "copy")
        for printed in copy.glob("*.printed"):
            text = printed.read_text(encoding="utf-8")
            printed.write_text(text.replace(str(folder), "{folder}"), encoding="utf-8")
        try:
            copy.rename(kept)
        except OSError:
            assert kept.is_dir()  # another run was first
    used = {
        path: path.stat().st_mtime
        for path in kept.parent.parent.iterdir()
        if not path.name.startswith(".")
    }
    for old in sorted(used, key=used.__getitem__)[:-MOST_STATES]:
        if used[old] < time.time() - IN_USE_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
