from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csd.runtime import BackendError, Bundle, FixedNoise, MARConfig
from csd.runtime.backends import OnnxLoader, OnnxRuntimeBackend
from csd.runtime.bundle.manifest import file_sha256
from csd.runtime.device import find_device

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"

# What the fixtures were recorded with.
NUM_ITER = 8
HEAD_STEPS = 20


def tiny_config(role: str) -> MARConfig:
    values = json.loads((DATA / "config.json").read_text(encoding="utf-8"))
    return MARConfig.from_dict({**values["base"], **values[role]})


def assert_parity(actual: Any, expected: Any, what: str, tolerance: float = 1e-4) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max()))
    error = float(np.abs(actual.astype(np.float64) - expected).max()) / scale
    print(f"{what}: largest error {error:.1e} of {scale:.4g}, tolerance {tolerance:.0e}")
    assert error <= tolerance


def failure(
    main: Callable[[Sequence[str]], int],
    argv: Sequence[object],
    capsys: pytest.CaptureFixture[str],
    code: int = 2,
) -> str:
    """Run a command that must fail and return its only line on stderr, after `prog: error:`."""
    capsys.readouterr()
    try:
        status: object = main([str(part) for part in argv])
    except SystemExit as stopped:  # of the parser
        status = stopped.code
    assert status == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0].split(": error: ", 1)[1]


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "manifest.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def draft_is_target(values: dict[str, Any]) -> None:
    """A change of a manifest: both roles are the same model, and its tokens stay small."""
    values["models"]["target"]["beta_schedule"] = "linear"
    values["models"]["draft"] = values["models"]["target"]
    for name in ("backbone", "head_modulation", "head_step"):
        values["graphs"][f"draft.{name}"] = values["graphs"][f"target.{name}"]


def no_draft(values: dict[str, Any]) -> None:
    """A change of a manifest: the target only."""
    del values["models"]["draft"]
    for name in [name for name in values["graphs"] if name.startswith("draft")]:
        del values["graphs"][name]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_python(code: str, *argv: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)],
        capture_output=True, text=True, check=False, **kwargs,
    )  # fmt: skip


class ScriptedNoise(FixedNoise):
    """Fixed noise with chosen verdicts: a uniform of 0 accepts, one just below 1 rejects."""

    def __init__(
        self, *args: Any, rejected: Iterator[tuple[int, int]] | list[tuple[int, int]] | None
    ):
        super().__init__(*args)
        self._rejected = None if rejected is None else set(rejected)

    def accept(self, images: np.ndarray, positions: np.ndarray) -> np.ndarray:
        pairs = zip(images.tolist(), positions.tolist(), strict=True)
        rejected = [self._rejected is None or pair in self._rejected for pair in pairs]
        return np.where(rejected, np.nextafter(1.0, 0.0), 0.0)


def forge_hashes(bundle: Path) -> None:
    """Make the manifest agree with the files that lie there."""

    def change(values: dict[str, Any]) -> None:
        for graph in values["graphs"].values():
            graph["files"] = {name: file_sha256(bundle / name) for name in graph["files"]}
        for engine in values.get("engines", ()):
            engine["sha256"] = file_sha256(bundle / engine["file"])
        if values["calibration"]:
            file = bundle / values["calibration"]["file"]
            values["calibration"]["sha256"] = file_sha256(file)

    edit_manifest(bundle, change)


class WatchedBackend(OnnxRuntimeBackend):
    """ONNX Runtime with every call shown to `watch(graph, feeds, outputs)`."""

    def __init__(self, folder, manifest, watch, threads=1):
        super().__init__(folder, manifest, OnnxLoader(threads))
        self._watch = watch

    def open(self, graph, padding=None, *, lasting=False):
        loaded, watch = super().open(graph, padding, lasting=lasting), self._watch

        class Graph:
            def run(self, feeds, rows=0, keep=()):
                outputs = loaded.run(feeds, rows, keep)
                watch(graph.replace(".", "_"), feeds, outputs)
                return outputs

        return Graph()


def with_engines(bundle: Bundle, backend: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle, or a copy with engines for the device of this machine; skips without one."""
    from csd.export.cli import main as export

    try:
        find_device()
        if backend == "onnxruntime_cuda":
            bundle.session(backend).close()
            return bundle
    except BackendError as error:
        pytest.skip(str(error))
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    folder = shutil.copytree(bundle.path, tmp_path_factory.mktemp(backend) / "bundle")
    argv = ["--rebuild", str(folder), "--backend", backend, "--precision", "fp32"]
    assert export(argv) == 0
    return Bundle.open(folder)
