"""One row of the table: an export in a process of its own, then an image in another."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ....runtime.backends.onnx_runtime import PRECISIONS as ON_CPU
from ....runtime.bundle.bundle import Bundle
from ....runtime.bundle.manifest import Manifest, ParityResult
from ....runtime.command.cache import VARIABLE as CACHE_FOLDER
from ....runtime.command.files import partial_directory, write_json
from ....runtime.config import MARConfig
from ....runtime.errors import CsdError
from .process import Ended, run_watched
from .rows import Model, Row, config_hash

_EXPORT = ("-c", "from csd.export.entry import main; raise SystemExit(main())")
_WEIGHTS = ("-m", f"{__package__}.weights")
_IMAGE = ("-m", f"{__package__}.image")
# What keeps an export of the largest shape short: images in one call, and none of the calibration
# that random weights say nothing about.
_LIMITS = ("--max-batch", "1", "--calibration-tokens", "0")


def count_parameters(configs: Mapping[str, MARConfig], folder: Path) -> list[Model]:
    """Return models with their numbers of parameters.

    Raises:
        CsdError: PyTorch is missing, or a model cannot be made.
    """
    files = {name: folder / f"{name}.json" for name in configs}
    for name, path in files.items():
        write_json(path, configs[name].to_dict())
    ended = _worked([*_WEIGHTS, "count", *map(str, files.values())], {})
    counts: dict[str, int] = json.loads(ended.output)
    return [Model(name, configs[name], counts[str(path)]) for name, path in files.items()]


class Bench:
    """The files of one model, while its rows are measured.

    Args:
        model: whose.
        folder: empty, for everything.
        threads: of PyTorch and of the runtime.
    """

    def __init__(self, model: Model, folder: Path, threads: int) -> None:
        self._model, self._folder, self._threads = model, folder, threads
        # What is remembered of files that go is kept nowhere.
        self._environment = {
            "OMP_NUM_THREADS": str(threads),
            CACHE_FOLDER: str(folder / "cache"),
        }
        self._config = folder / f"{model.name}.json"
        self._drawn = folder / f"{model.name}.safetensors"

    def draw(self) -> None:
        """Draw the weights.

        Raises:
            CsdError: it failed.
        """
        write_json(self._config, self._model.config.to_dict())
        self._run_weights("draw", "--out", self._drawn)

    @contextmanager
    def form(self, form: str) -> Generator[Path]:
        """The weights in a form of file, which goes afterwards.

        Raises:
            CsdError: it could not be written.
        """
        if form == "safetensors":
            yield self._drawn
            return
        with partial_directory(self._folder / form) as folder:
            name = self._model.name if form == "shards" else f"{self._model.name}.pth"
            self._run_weights(form, "--drawn", self._drawn, "--out", folder / name)
            yield folder / name

    def measure(self, row: Row, weights: Path) -> dict[str, Any]:
        """Export and make an image, and return the figures as JSON values; failures are in them.

        Args:
            row: which.
            weights: of its form.
        """
        with partial_directory(self._folder / "bundle") as folder:
            bundle, on_cpu = folder / "bundle", row.precision in ON_CPU
            argv = [
                *_EXPORT, "--target", str(weights), "--target-config", str(self._config), *_LIMITS,
                "--precision", row.precision, "--out", str(bundle), *(["--slim"] * on_cpu),
            ]  # fmt: skip
            export = run_watched(argv, self._environment)
            values: dict[str, Any] = {
                "model": row.model.name,
                "form": row.form,
                "precision": row.precision,
                "config": config_hash(row.model.config),
                "parameters": row.model.parameters,
                "file_bytes": _size(weights),
                "export": _figures(export),
                "bundle": None,
                "image": None,
            }
            failures = {"export": export.failure}
            if (bundle / "manifest.json").is_file():
                values["bundle"] = _describe(Bundle.open(bundle), row.precision)
                if on_cpu:
                    image = run_watched(
                        [*_IMAGE, str(bundle), "--threads", str(self._threads)], self._environment
                    )
                    told = json.loads(image.output) if image.exit_code == 0 else {}
                    values["image"] = {**_figures(image), **told}
                    failures["image"] = image.failure
        return {**values, "failures": {name: why for name, why in failures.items() if why}}

    def _run_weights(self, task: str, *argv: object) -> None:
        _worked([*_WEIGHTS, task, str(self._config), *map(str, argv)], self._environment)


def _worked(argv: list[str], environment: Mapping[str, str]) -> Ended:
    ended = run_watched(argv, environment)
    if ended.failure is not None:
        raise CsdError(ended.failure.partition(": error: ")[2] or ended.failure)
    return ended


def _figures(ended: Ended) -> dict[str, Any]:
    return {
        "seconds": ended.seconds,
        "peak_bytes": ended.peak,
        "peak_anonymous_bytes": ended.peak_anonymous,
        "exit_code": ended.exit_code,
    }


def _describe(bundle: Bundle, precision: str) -> dict[str, Any]:
    """Bytes of a bundle, and the worst of its parity in a precision."""
    manifest = bundle.manifest
    graphs = manifest.tables[precision].values()
    names = {name for graph in graphs for name in graph.files}
    return {
        "bytes": _size(bundle.path),
        "graph_bytes": sum((bundle.path / name).stat().st_size for name in names),
        "parity": _worst(manifest, precision),
    }


def _worst(manifest: Manifest, precision: str) -> dict[str, Any]:
    """The graph whose largest difference to PyTorch comes nearest to what is allowed.

    The difference is a share of the largest output, or of 1 where that is smaller; None where
    something was not finite.
    """
    rows = [row for row in manifest.parity if row.precision == precision]
    worst = max(rows, key=lambda row: _share(row) / row.tolerance)
    return {
        "graph": worst.graph,
        "difference": _share(worst) if math.isfinite(_share(worst)) else None,
        "tolerance": worst.tolerance,
        "passed": all(row.passed for row in rows),
    }


def _share(row: ParityResult) -> float:
    return min(row.max_abs, row.max_rel)


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(each.stat().st_size for each in (path, *path.rglob("*")) if each.is_file())
