"""The manifest of a bundle: what is in it and how its graphs are called.

`manifest.json` holds

| key | meaning |
| --- | --- |
| `schema_version` | version of this table; a runtime reads its own and older ones |
| `name` | name of the bundle |
| `models` | configuration of `target` and, where there is one, of `draft` |
| `head_steps` | default number S of head steps |
| `class_names` | names of the labels, or null |
| `max_batch`, `max_gamma` | limits that the graphs were exported and checked for |
| `graphs` | by name: files with SHA-256, inputs, outputs, ranges of the named dimensions |
| `variants` | by precision (`fp16`, `bf16`): the same graphs in that precision |
| `engines` | engines built from the graphs, each for a library version and compute capabilities |
| `calibration` | file of the fitted head drafts, or null |
| `parity` | largest differences to PyTorch seen at export |
| `sources` | of weights: name and SHA-256 of the files, no folder, and which of theirs were taken |
| `created_by` | versions of the libraries that wrote the bundle |
| `presets` | by name: options as good as the target's and faster, with evidence (`presets.py`) |
| `code` | SHA-256 of the plugins' library and the list of kernels (`csd-export --seal`) |

A slim bundle (`csd-export --slim`, from schema 3 on) has the graphs of one precision only: none in
`graphs` where that is not float32. For engines it has these in place of the graphs' files, so that
a graph names none. From schema 4 on a bundle may have the graphs of local AR steps
(`csd-export --local-steps`), and from schema 5 on `code`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..command.files import write_atomically
from ..command.strict_json import parse_json
from ..command.text import plain, shown
from ..config import MARConfig
from ..errors import BundleError, ConfigError
from ..head.draft import ROW_COST
from . import manifest_checks as checks
from .graph_tensors import LOCAL_GRAPHS, MODEL_GRAPHS
from .presets import Preset

SCHEMA_VERSION = 5
MANIFEST_FILE = "manifest.json"
_ZOO = "zoo:"


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph. A dimension is a number or the name of a dynamic one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """A graph: its files, its tensors, and `[least, typical, most]` of each named dimension.

    `files` maps names to SHA-256; the first is the ONNX file, others hold its weights. There are
    none where a slim bundle has an engine of the graph only.
    """

    files: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: Mapping[str, tuple[int, int, int]]

    @property
    def onnx_file(self) -> str:
        """Name of the ONNX file.

        Raises:
            ValueError: the graph has none.
        """
        if not self.files:
            raise ValueError("the graph has no files")
        return next(iter(self.files))


@dataclass(frozen=True)
class EngineSpec:
    """An engine: a graph compiled for some devices by one version of one library.

    Attributes:
        graph: name of the graph, as `target.backbone`.
        backend: `tensorrt` or `tensorrt_rtx`.
        precision: `fp32`, or a variant's name.
        file: path in the bundle.
        sha256: of the file.
        size: bytes.
        library: version of the library that built it and must run it.
        platform: system and machine it was built for, as `linux-x86_64`.
        compute_capabilities: of the devices that it runs on, as `8.9`.
        build_seconds: what building took.
        fingerprint: hash of each thing that it was built from, by name; it is built again where
            one differs.
    """

    graph: str
    backend: str
    precision: str
    file: str
    sha256: str
    size: int
    library: str
    platform: str
    compute_capabilities: tuple[str, ...]
    build_seconds: float
    fingerprint: Mapping[str, str]


@dataclass(frozen=True)
class ParityResult:
    """Largest difference between a graph and PyTorch over several shapes.

    `max_abs` and `max_rel` are infinite where either side had a value that is not finite; then
    `passed` is False.
    """

    graph: str
    shapes: int
    max_abs: float
    max_rel: float
    tolerance: float
    passed: bool

    @property
    def graph_name(self) -> str:
        """The graph's name, without its precision."""
        return self.graph.partition(" [")[0]

    @property
    def precision(self) -> str:
        """Of the graph, which stands behind its name: `target.head_step [fp16, emulated]`."""
        return self.graph.partition(" [")[2].rstrip("]").partition(",")[0] or "fp32"


@dataclass(frozen=True)
class Source:
    """Where weights came from.

    Attributes:
        path: a file's or a folder's name without its place, or `zoo:<name>`.
        sha256: of the file; of several, that of the lines `SHA-256  name` in order of name.
        weights: `ema` (averages) or `model`; None where the file did not say.
        key: of the weights in the file; None where it held but one set, without a name.
    """

    path: str
    sha256: str
    weights: str | None = None
    key: str | None = None

    @classmethod
    def of_zoo(cls, name: str, sha256: str) -> Source:
        """Where weights of a shipped pair came from."""
        return cls(f"{_ZOO}{name}", sha256)

    @property
    def zoo(self) -> str | None:
        """Name of the shipped pair that the weights are of, or None."""
        return self.path.removeprefix(_ZOO) if self.path.startswith(_ZOO) else None


@dataclass(frozen=True)
class Calibration:
    """Fitted drafts of the heads: a NumPy archive with the arrays of `AffineDraft` by model.

    `row_cost` is what a row of the head costs in units of a call, by which the speculative sampler
    chooses its windows. It belongs to the bundle, so that one seed gives one image on any machine.
    """

    file: str
    sha256: str
    head_steps: int
    tokens: int
    row_cost: float = ROW_COST


@dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`; the table at the head of this file explains the fields."""

    name: str
    models: Mapping[str, MARConfig]
    head_steps: int
    max_batch: int
    max_gamma: int
    graphs: Mapping[str, GraphSpec]
    class_names: tuple[str, ...] | None = None
    variants: Mapping[str, Mapping[str, GraphSpec]] = field(
        default_factory=dict[str, Mapping[str, GraphSpec]]
    )
    engines: tuple[EngineSpec, ...] = ()
    calibration: Calibration | None = None
    parity: tuple[ParityResult, ...] = ()
    sources: Mapping[str, Source] = field(default_factory=dict[str, Source])
    created_by: Mapping[str, str] = field(default_factory=dict[str, str])
    presets: Mapping[str, Preset] = field(default_factory=dict[str, Preset])
    code: Mapping[str, str] = field(default_factory=dict[str, str])
    schema_version: int = SCHEMA_VERSION

    @property
    def target(self) -> MARConfig:
        """Configuration of the target."""
        return self.models["target"]

    @property
    def zoo(self) -> str | None:
        """Name of the shipped pair that the target is of, or None."""
        source = self.sources.get("target")
        return None if source is None else source.zoo

    @property
    def tables(self) -> dict[str, Mapping[str, GraphSpec]]:
        """The graphs by precision, float32 first."""
        return {"fp32": self.graphs, **self.variants}

    @property
    def every_graph(self) -> dict[str, GraphSpec]:
        """Every graph by name, in the first of the precisions that has it."""
        every: dict[str, GraphSpec] = {}
        for graphs in self.tables.values():
            every = {**graphs, **every}
        return every

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that all graphs of the models are there in, with files or engines."""
        needed = needed_graphs(self)
        return tuple(
            name for name, graphs in self.tables.items() if all(n in graphs for n in needed)
        )

    @property
    def file_hashes(self) -> dict[str, str]:
        """SHA-256 of every file of the bundle but the manifest."""
        every = self.tables.values()
        hashes = {k: v for graphs in every for g in graphs.values() for k, v in g.files.items()}
        hashes.update({engine.file: engine.sha256 for engine in self.engines})
        hashes.update(self.code)
        if self.calibration is not None:
            hashes[self.calibration.file] = self.calibration.sha256
        return hashes

    @property
    def makes_images(self) -> bool:
        """Whether latents can be turned into images."""
        return self.target.image_kind == "pixel" or "decoder" in self.every_graph

    def to_json(self) -> str:
        """Return the text of `manifest.json`. A difference that is not finite becomes null."""
        values = dataclasses.asdict(self)
        for row in values["parity"]:
            for name in ("max_abs", "max_rel"):
                row[name] = row[name] if math.isfinite(row[name]) else None
        return json.dumps(values, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read the text of `manifest.json` and check every field (`manifest_checks.py`).

        Raises:
            BundleError: not a manifest, one of a newer schema, or a field is not as it must be.
        """
        try:
            values = parse_json(text)
            version = values["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(
                "its manifest.json is not a manifest: export the bundle again"
            ) from error
        if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
            raise BundleError(
                f"it has manifest schema {shown(version)}, this csd reads up to {SCHEMA_VERSION}: "
                "upgrade csd, or export the bundle again with this one"
            )
        try:
            manifest = cls._from_checked(checks.MANIFEST(values, ""))
            checks.check_together(manifest)
        except (ValueError, ConfigError) as error:
            raise BundleError(
                f"its manifest.json is damaged ({plain(str(error))}): export the bundle again"
            ) from error
        return manifest

    @classmethod
    def _from_checked(cls, values: dict[str, Any]) -> Manifest:
        """Build from what `manifest_checks.MANIFEST` returned."""
        calibration = values["calibration"]
        fields: dict[str, Any] = {
            **values,
            "graphs": _graphs(values["graphs"]),
            "variants": {name: _graphs(graphs) for name, graphs in values["variants"].items()},
            "engines": tuple(EngineSpec(**row) for row in values["engines"]),
            "calibration": None if calibration is None else Calibration(**calibration),
            "parity": tuple(ParityResult(**row) for row in values["parity"]),
            "sources": {role: Source(**row) for role, row in values["sources"].items()},
        }
        return cls(**fields)


def _graphs(values: dict[str, Any]) -> dict[str, GraphSpec]:
    return {
        name: GraphSpec(
            files=graph["files"],
            inputs=tuple(TensorSpec(**row) for row in graph["inputs"]),
            outputs=tuple(TensorSpec(**row) for row in graph["outputs"]),
            profile=graph["profile"],
        )
        for name, graph in values.items()
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a bundle, which is then whole.

    Raises:
        OSError: it cannot be written.
    """
    with write_atomically(folder / MANIFEST_FILE) as stream:
        stream.write(manifest.to_json().encode())


def needed_graphs(manifest: Manifest) -> tuple[str, ...]:
    """Graphs that a session loads: three of each model, and the decoder where there is one."""
    graphs = [f"{role}.{name}" for role in manifest.models for name in MODEL_GRAPHS]
    return (*graphs, "decoder") if "decoder" in manifest.every_graph else tuple(graphs)


def local_graphs(manifest: Manifest) -> tuple[str, ...]:
    """Graphs of full and local AR steps that a bundle has; all of a model's or none of them."""
    there = manifest.every_graph
    return tuple(
        graph
        for role in manifest.models
        if all(f"{role}.{name}" in there for name in LOCAL_GRAPHS)
        for graph in (f"{role}.{name}" for name in LOCAL_GRAPHS)
    )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
