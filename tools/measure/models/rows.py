"""Which rows the table of models has, what each needs of the machine, and when one is out of date.

A row is a model, a form of file and a precision.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....models.families import load_config
from ....runtime.bundle.manifest_checks import PRECISIONS as ALL_PRECISIONS
from ....runtime.config import MARConfig
from ...machine import describe_machine

# By form of file: what its files take beside the safetensors that the weights are drawn to, in
# units of the weights in float32. The released training keeps the model's weights, their averages
# and two moments of the optimizer.
FORMS = {"training": 4, "ema": 1, "safetensors": 0, "shards": 1}
PRECISIONS = ("fp32", *(name for name in ALL_PRECISIONS if name != "fp32"))
# What is tried with every form of file, where it is asked for.
_FORMS_OF = "mar_base"
# In units of the weights in float32: what an export promises to stay below; the graphs in float32,
# those in another precision and what is drawn, on the disk.
_MEMORY, _DISK = 1.5, 3.0
# What PyTorch, the exporter and ONNX Runtime take whatever the model is.
_LIBRARIES = 1 << 30
_SOURCES = ("export", "models", "plugins", "runtime")


@dataclass(frozen=True)
class Model:
    """A model of the table.

    Attributes:
        name: of the preset, or of the configuration's file.
        config: as it was given.
        parameters: how many it has.
    """

    name: str
    config: MARConfig
    parameters: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights in float32."""
        return 4 * self.parameters


@dataclass(frozen=True)
class Row:
    """A model, a form of file (`FORMS`) and a precision."""

    model: Model
    form: str
    precision: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What names the row."""
        return self.model.name, self.form, self.precision


def named_configs(presets: Sequence[str]) -> dict[str, MARConfig]:
    """Return configurations by name, given presets and JSON files; their betas are linear.

    MAR's cosine schedule multiplies the first error of random weights by 2e4 (`random_model.py`).

    Raises:
        ConfigError: one is neither, or is not valid.
    """
    return {
        Path(text).stem: dataclasses.replace(load_config(text), beta_schedule="linear")
        for text in presets
    }


def wanted_rows(
    models: Sequence[Model], forms: Sequence[str], precisions: Sequence[str], *, every: bool
) -> list[Row]:
    """Return the rows of the table, model after model and form after form.

    Args:
        models: at least one.
        forms: at least one.
        precisions: at least one.
        every: the whole product; else every form once, with one model, and every precision with
            every model, with one form.
    """
    form = "safetensors" if "safetensors" in forms else forms[0]
    precision = "fp32" if "fp32" in precisions else precisions[0]
    names = [model.name for model in models]
    of_forms = _FORMS_OF if _FORMS_OF in names else names[0]
    return [
        Row(model, each, kind)
        for model in models
        for each in forms
        for kind in precisions
        if every or each == form or (kind == precision and model.name == of_forms)
    ]


def obstacle(rows: Iterable[Row], work: Path) -> str | None:
    """Say why a model's rows do not fit the machine, or return None where they do."""
    rows = list(rows)
    weights = rows[0].model.weight_bytes
    memory, free = _MEMORY * weights + _LIBRARIES, available_memory()
    if free is not None and memory > free:
        return f"needs {memory / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free"
    disk, space = (_DISK + max(FORMS[row.form] for row in rows)) * weights, free_disk(work)
    if disk > space:
        return f"needs {disk / 1e9:.1f} GB in {work}, {space / 1e9:.1f} are free"
    return None


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that programs can have without others going, or None where nobody says."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, ValueError, StopIteration):
        return None


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder lies."""
    return shutil.disk_usage(folder).free


def made_with(threads: int) -> dict[str, Any]:
    """Return what a row's figures depend on besides the row: the code, the machine, the threads."""
    machine = describe_machine()
    libraries = {name: machine["libraries"].get(name) for name in ("torch", "onnxruntime")}
    return {
        "csd": f"{machine['libraries']['csd']}+{_sources_hash()}",
        **libraries,
        "processor": machine["processor"],
        "cores": machine["cores"],
        "threads": threads,
    }


def config_hash(config: MARConfig) -> str:
    """A hash of a configuration, so that a file's row is not taken for that of another content."""
    return hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


def _sources_hash() -> str:
    """A hash of the sources that an export and a run are made of."""
    digest = hashlib.sha256()
    for package in _SOURCES:
        folder = Path(os.fspath(importlib.import_module(f"csd.{package}").__file__ or "")).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def key_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """What names a row that was saved."""
    return row["model"], row["form"], row["precision"]


def is_current(saved: Mapping[str, Any], row: Row, made: Mapping[str, Any]) -> bool:
    """Whether a row that was saved is what would be measured now. One that failed never is."""
    same = saved["made_with"] == made and saved["config"] == config_hash(row.model.config)
    return same and not saved["failures"]
