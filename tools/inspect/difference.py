"""What differs between two bundles, by the documents that describe them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from .description import header

# What is compared as it is. Where a bundle lies and the hash of its manifest's text say nothing of
# what is in it, and other keys tell in other words what these hold.
_COMPARED = (
    "name", "manifest_schema", "created_by", "limits", "class_names", "precisions", "graphs",
    "presets", "sources", "code",
)  # fmt: skip
# By what an engine is the same in both, whatever it was built from.
_ENGINE = ("graph", "backend", "precision", "platform")


def compare(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return a document of what differs.

    It has `a` and `b` (path, name and hash of the manifest), `same`, and `changes`: a list of
    `field` (names with dots between), `change` (`added`, `removed` or `changed`), `a` and `b`; what
    one does not have is null there.

    Args:
        first, second: documents of `describe`.
    """
    changes = [*_changes("", _comparable(first), _comparable(second))]
    names = ("path", "name", "manifest_sha256")
    return {
        **header("difference"),
        "a": {name: first[name] for name in names},
        "b": {name: second[name] for name in names},
        "same": not changes,
        "changes": changes,
    }


def _comparable(document: dict[str, Any]) -> dict[str, Any]:
    models = {
        role: {"parameters": row["parameters"], **row["config"]}
        for role, row in document["models"].items()
    }
    engines: dict[str, Any] = {}
    for row in document["engines"]:
        key = " ".join((*(row[name] for name in _ENGINE), *row["architectures"]))
        engines[key] = row
    calibration = document["calibration"]
    if calibration is not None:  # its hash tells of the rest
        calibration = {name: v for name, v in calibration.items() if name != "survival"}
    return {
        "models": models,
        "head_steps": document["sampling"]["target"]["head_steps"],
        **{name: document[name] for name in _COMPARED},
        "engines": engines,
        "calibration": calibration,
    }


def _changes(where: str, first: Any, second: Any) -> Iterator[dict[str, Any]]:
    if isinstance(first, dict) and isinstance(second, dict):
        one, other = cast("dict[str, Any]", first), cast("dict[str, Any]", second)
        for name in dict.fromkeys([*one, *other]):
            inside = f"{where}.{name}" if where else name
            if name not in other:
                yield _change(inside, "removed", one[name], None)
            elif name not in one:
                yield _change(inside, "added", None, other[name])
            else:
                yield from _changes(inside, one[name], other[name])
    elif first != second:
        yield _change(where, "changed", first, second)


def _change(field: str, change: str, first: Any, second: Any) -> dict[str, Any]:
    return {"field": field, "change": change, "a": first, "b": second}
