"""What `manifest.json` may hold: a table of its fields, and how they must fit each other.

The checks know nothing of files: that those are there, and inside the bundle, `folder.py`
finds, and that graphs are what the manifest says of them, `checks.py`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..config import MARConfig, check_same_tokens
from ..errors import ConfigError
from ..head.draft import ROW_COST
from ..schedule import TRAIN_STEPS
from .folder import CODE_FILES, SIGNATURE_FILE
from .graph_tensors import DTYPES, GraphTensors, graph_tensors
from .presets import presets_reader
from .schema import (
    FieldError,
    Reader,
    flag,
    list_of,
    mapping,
    matching,
    number,
    one_of,
    optional,
    record,
    relative_name,
    text,
    whole,
)

if TYPE_CHECKING:
    from .manifest import GraphSpec, Manifest, TensorSpec

MOST_BYTES = 16 << 20  # of the file; one with engines for ten devices has 100 kB
MAX_BATCH = MAX_GAMMA = 1024
# Of engines, by speed: half of the bytes first, then more digits.
ENGINE_PRECISIONS = ("fp16", "bf16", "fp32")
PRECISIONS = (*ENGINE_PRECISIONS, "int8")
ENGINE_BACKENDS = ("tensorrt", "tensorrt_rtx")
ROLES = ("target", "draft")

_MOST_SIZE = (1 << 31) - 1
_DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "bool")

_GRAPH = matching(r"[a-z_]{1,40}(\.[a-z_]{1,40})?", "the name of a graph, as target.backbone")
_SHA256 = matching(r"[0-9a-f]{64}", "64 hexadecimal digits")
_WORD = matching(r"[\w.+-]{1,100}", "a word")
_DIMENSION_NAME = matching(r"[A-Z]", "a capital letter")


def _dimension(value: Any, where: str) -> int | str:
    if isinstance(value, str):
        return matching(r"[A-Z]( \+ 1)?", "a size, or a capital letter")(value, where)
    return whole(1, _MOST_SIZE)(value, where)


def _range(value: Any, where: str) -> tuple[int, ...]:
    read = list_of(whole(0, _MOST_SIZE), most=3, least=3)(value, where)
    if list(read) != sorted(read):
        raise FieldError(where, value, "least, typical and most, in ascending order")
    return read


def _model(value: Any, where: str) -> MARConfig:
    if not isinstance(value, dict):
        raise FieldError(where, value, "an object of configuration values")
    try:
        return MARConfig.from_dict(value)
    except (ConfigError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def _difference(value: Any, where: str) -> float:
    """A figure of the parity report; what was not finite is written as null."""
    return math.inf if value is None else number(0, sys.float_info.max)(value, where)


_TENSORS = list_of(
    record({"name": _WORD, "dtype": one_of(*_DTYPES), "shape": list_of(_dimension, most=8)}),
    most=64,
)
_GRAPHS = mapping(
    _GRAPH,
    record({
        "files": mapping(relative_name, _SHA256, most=64),
        "inputs": _TENSORS,
        "outputs": _TENSORS,
        "profile": mapping(_DIMENSION_NAME, _range, most=26),
    }),
    most=64,
)  # fmt: skip
_ENGINE = record({
    "graph": _GRAPH,
    "backend": one_of(*ENGINE_BACKENDS),
    "precision": one_of(*ENGINE_PRECISIONS),
    "file": relative_name,
    "sha256": _SHA256,
    "size": whole(0, 1 << 50),
    "library": _WORD,
    "platform": _WORD,
    "compute_capabilities": list_of(matching(r"\d{1,2}\.\d", "as 8.6"), most=64, least=1),
    "build_seconds": number(0, 1e9),
    "fingerprint": mapping(_WORD, text(), most=64),
})  # fmt: skip
_CALIBRATION = record(
    {
        "file": relative_name,
        "sha256": _SHA256,
        "head_steps": whole(1, TRAIN_STEPS),
        "tokens": whole(1, 1 << 40),
        "row_cost": number(1e-12, 1e12),
    },
    row_cost=ROW_COST,  # of bundles from before there was a choice
)
_SOURCE = record(
    {
        "path": text(4096),
        "sha256": _SHA256,
        "weights": optional(one_of("ema", "model")),
        "key": optional(text()),
    },
    weights=None,  # of bundles from before there was a choice
    key=None,
)
_PARITY = record({
    "graph": text(),
    "shapes": whole(0, 1000),
    "max_abs": _difference,
    "max_rel": _difference,
    "tolerance": number(0, 1e6),
    "passed": flag,
})  # fmt: skip

MANIFEST: Reader[dict[str, Any]] = record(
    {
        "name": text(),
        "models": mapping(one_of(*ROLES), _model, most=2, least=1),
        "head_steps": whole(1, TRAIN_STEPS),
        "max_batch": whole(1, MAX_BATCH),
        "max_gamma": whole(1, MAX_GAMMA),
        "graphs": _GRAPHS,
        "class_names": optional(list_of(text(), most=1 << 20)),
        "variants": mapping(one_of("fp16", "bf16", "int8"), _GRAPHS, most=3),
        "engines": list_of(_ENGINE, most=10_000),
        "calibration": optional(_CALIBRATION),
        "parity": list_of(_PARITY, most=1000),
        "sources": mapping(_WORD, _SOURCE, most=16),
        "created_by": mapping(_WORD, text(), most=64),
        "presets": presets_reader(PRECISIONS),
        "code": mapping(one_of(*CODE_FILES), _SHA256, most=len(CODE_FILES)),
        "schema_version": whole(1, 1000),
    },
    variants={},  # schema 1 has neither these nor engines
    engines=(),
    presets={},  # schema 3 has none
    code={},  # nor schema 4 this
)


def check_together(manifest: Manifest) -> None:
    """Check what no field shows alone.

    Raises:
        ValueError: two fields do not fit each other.
    """
    if "target" not in manifest.models:
        raise ValueError("models lacks target")
    if "draft" in manifest.models:
        check_same_tokens(manifest.target, manifest.models["draft"])
    names = manifest.class_names
    if names is not None:
        if len(names) != manifest.target.class_num:
            raise ValueError(
                f"class_names has {len(names)} names for {manifest.target.class_num} classes"
            )
        if len(set(names)) < len(names):
            raise ValueError("class_names has a name twice")
    for where, name, graph, precision in _every_graph(manifest):
        _check_graph(where, name, graph, precision, manifest)
    _check_hashes(manifest)
    for index, row in enumerate(manifest.parity):
        if row.passed and not (math.isfinite(row.max_abs) and math.isfinite(row.max_rel)):
            raise ValueError(f"parity[{index}] passed with a difference that is not finite")


def _every_graph(manifest: Manifest) -> Iterator[tuple[str, str, GraphSpec, str]]:
    for precision, graphs in manifest.tables.items():
        table = "graphs" if precision == "fp32" else f"variants.{precision}"
        for name, graph in graphs.items():
            yield f"{table}.{name}", name, graph, precision


def _check_graph(
    where: str, name: str, graph: GraphSpec, precision: str, manifest: Manifest
) -> None:
    if manifest.graphs and name not in manifest.graphs:
        raise ValueError(f"{where} is of no graph in graphs")
    if not graph.files and not any(
        (engine.graph, engine.precision) == (name, precision) for engine in manifest.engines
    ):
        raise ValueError(f"{where}.files is empty, and no engine is of that graph")
    tensors = (*graph.inputs, *graph.outputs)
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ValueError(f"{where} has two tensors of one name")
    named = {str(d)[0] for tensor in tensors for d in tensor.shape if isinstance(d, str)}
    unknown = sorted(named - set(graph.profile))
    if unknown and manifest.schema_version > 1:
        raise ValueError(f"{where}.profile lacks dimension {unknown[0]}")
    role, _, kind = name.rpartition(".")
    if kind == "decoder" and not role:
        role = "target"
    if role not in ROLES:
        return  # an operator: it belongs to no model
    if role not in manifest.models:
        raise ValueError(f"{where} is of the model {role}, which models lacks")
    wanted = graph_tensors(kind, manifest.models[role], _upscale(graph, manifest.target))
    if wanted is None:
        raise ValueError(f"{where} is no graph of a model")
    for side in ("inputs", "outputs"):
        _check_tensors(f"{where}.{side}", getattr(graph, side), side, wanted, precision)


def _upscale(graph: GraphSpec, config: MARConfig) -> int:
    """Pixels that a decoder makes of a latent, by the height of its image; 1 for other graphs."""
    shape = graph.outputs[0].shape if graph.outputs else ()
    height = shape[2] if len(shape) == 4 else 0
    return max(1, height // config.latent_shape[1]) if isinstance(height, int) else 1


def _check_tensors(
    where: str, tensors: tuple[TensorSpec, ...], side: str, wanted: GraphTensors, precision: str
) -> None:
    found = {tensor.name: tensor for tensor in tensors}
    shapes = wanted.inputs if side == "inputs" else wanted.outputs
    if set(found) != set(shapes):
        raise FieldError(where, sorted(found), f"tensors {', '.join(shapes)}")
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise FieldError(
                f"{where}.{name}", list(found[name].shape),
                f"{list(shape)} as the model's configuration has it",
            )  # fmt: skip
        # Which floating-point tensors of a variant have its type is the variant's own affair.
        types = {"int64"} if name in wanted.integers else {"float32", DTYPES[precision]}
        if found[name].dtype not in types:
            raise FieldError(f"{where}.{name}", found[name].dtype, " or ".join(sorted(types)))


def _check_hashes(manifest: Manifest) -> None:
    """Check that no file is named with two contents, and none for two kinds of thing."""
    kinds: dict[str, tuple[str, str]] = {
        "manifest.json": ("the manifest", ""), SIGNATURE_FILE: ("the signature", "")
    }  # fmt: skip

    def note(where: str, file: str, sha256: str, kind: str) -> None:
        first, content = kinds.setdefault(file, (kind, sha256))
        if (first, content) != (kind, sha256):
            other = "with another SHA-256" if first == kind else f"as {first}"
            raise ValueError(f"{where} names {file}, which is named {other} too")

    for where, _, graph, _ in _every_graph(manifest):
        for position, (file, sha256) in enumerate(graph.files.items()):
            note(f"{where}.files", file, sha256, "weights of a graph" if position else "a graph")
    for index, engine in enumerate(manifest.engines):
        note(f"engines[{index}].file", engine.file, engine.sha256, "an engine")
    if manifest.calibration is not None:
        file, sha256 = manifest.calibration.file, manifest.calibration.sha256
        note("calibration.file", file, sha256, "the calibration")
    for file, sha256 in manifest.code.items():
        note("code", file, sha256, "code")
