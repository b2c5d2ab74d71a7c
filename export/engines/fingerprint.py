"""What an engine was built from, as hashes: it is built again only where one differs.

| part | what it covers |
| --- | --- |
| `onnx` | SHA-256 of the graph's files |
| `profile` | inputs, and the ranges of their dimensions |
| `precision` | precision of the engine |
| `target` | platform and compute capabilities |
| `library` | name and version of the library |
| `options` | settings of the builder |
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ...runtime.bundle.manifest import GraphSpec

# In words, for reports.
PARTS = {
    "onnx": "the graph changed",
    "profile": "the profile changed",
    "precision": "the precision changed",
    "target": "the target changed",
    "library": "the library version changed",
    "options": "the builder's options changed",
}


def fingerprint(
    spec: GraphSpec,
    *,
    precision: str,
    target: tuple[str, ...],
    library: str,
    options: Mapping[str, Any],
) -> dict[str, str]:
    """Return the hash of each part of `PARTS`.

    Args:
        spec: the graph.
        precision: `fp32`, `fp16` or `bf16`.
        target: platform, then compute capabilities.
        library: name and version.
        options: settings of the builder.
    """
    inputs = [dataclasses.astuple(tensor) for tensor in spec.inputs]
    parts: dict[str, Any] = {
        "onnx": list(spec.files.values()),
        "profile": [inputs, sorted(spec.profile.items())],
        "precision": precision,
        "target": target,
        "library": library,
        "options": dict(options),
    }
    return {name: _hash(value) for name, value in parts.items()}


def first_difference(old: Mapping[str, str], new: Mapping[str, str]) -> str | None:
    """Return in words the first part that differs, or None."""
    return next((words for part, words in PARTS.items() if old.get(part) != new[part]), None)


def short_name(parts: Mapping[str, str]) -> str:
    """Return eight hexadecimal digits that stand for a whole fingerprint."""
    return _hash(dict(parts))[:8]


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
