"""Names of a model's classes, for `--labels` and captions: from a file, or built in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ..models.class_names import IMAGENET_CLASSES, imagenet_names
from ..runtime.bundle.schema import text
from ..runtime.command.frame import os_error_text
from ..runtime.command.text import plain, shown
from ..runtime.errors import ExportError
from .progress import Report

NONE = "none"
_FORMS = "a name a line, or JSON: a list, or an object from index to name"
# A name of a class is short; so is a file of a million of them.
_MOST_BYTES = 1 << 26
_name = text()


def class_names(given: Path | None, classes: int, report: Report) -> tuple[str, ...] | None:
    """Return the names of a model's classes, or None where they have none.

    Args:
        given: a file in one of the forms that `read_class_names` reads; `none` is no names. None
            takes those of ImageNet for a model of 1,000 classes.
        classes: number of classes.
        report: called with a line where names were taken that nobody asked for.

    Raises:
        ExportError: as for `read_class_names`.
    """
    if given == Path(NONE):
        return None
    if given is not None:
        return read_class_names(given, classes)
    if classes != IMAGENET_CLASSES:
        return None
    report(
        "1000 classes: named as ImageNet's; give --class-names FILE for others, or --class-names "
        f"{NONE}"
    )
    return imagenet_names()


def read_class_names(path: Path, classes: int) -> tuple[str, ...]:
    """Read the names of classes: a line each, a JSON list, or a JSON object from index to name.

    Args:
        path: the file, in UTF-8.
        classes: how many there must be.

    Raises:
        ExportError: the file cannot be read, has another number of names, one twice, an empty one
            or one that `--labels` could not take.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too large")
        content = path.read_text(encoding="utf-8-sig")
        names = _from_json(json.loads(content)) if content.lstrip()[:1] in ("[", "{") else None
        if names is None:
            names = [line.strip() for line in content.splitlines() if line.strip()]
    except OSError as error:
        raise ExportError(f"cannot read class names: {os_error_text(error)}") from error
    except (ValueError, RecursionError) as error:
        reason = plain(str(error)) or type(error).__name__
        raise ExportError(f"cannot read class names {path} ({reason}): give {_FORMS}") from error
    if len(names) != classes:
        raise ExportError(
            f"{path} names {len(names)} classes, the model has {classes}: give a name for each"
        )
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        _check(path, name)
        if name in seen:
            raise ExportError(
                f"{path} gives classes {seen[name]} and {index} one name, {shown(name)}: give two"
            )
        seen[name] = index
    return tuple(names)


def _from_json(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        by_index = {int(key): name for key, name in cast("Mapping[str, Any]", value).items()}
        if sorted(by_index) != list(range(len(by_index))):
            raise ValueError("its indices are not 0, 1, 2, ..")
        value = [by_index[index] for index in range(len(by_index))]
    names = cast("list[Any]", value)
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None:
        raise ValueError(f"{shown(wrong)} is no name")
    return names


def _check(path: Path, name: str) -> None:
    try:
        _name(name, "a name")
    except ValueError as error:
        raise ExportError(f"{path}: {plain(str(error))}: give another name") from error
    if "," in name or name != name.strip() or not name:
        raise ExportError(
            f"{path}: {shown(name)} is no name that --labels can take: give one without commas and "
            "without blanks around it"
        )
