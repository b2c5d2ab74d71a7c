"""The rows of the table of models, for a window and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = (
    "model", "file", "precision", "export s", "peak GB", "x weights", "resident GB", "graphs MB",
    "x bytes", "parity", "open s", "image s", "image GB", "others",
)  # fmt: skip
# Bytes of a parameter, by precision.
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_NONE = "-"


def shown(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row; what was not measured is a dash."""
    export, bundle, image = row["export"], row["bundle"], row["image"] or {}
    weights = 4 * row["parameters"]
    anonymous = export["peak_anonymous_bytes"]
    graphs = None if bundle is None else bundle["graph_bytes"]
    per_parameter = _BYTES[row["precision"]] * row["parameters"]
    others = row["load"]["during"]["other_processes_cores"]
    return [
        row["model"],
        f"{row['form']}, {row['file_bytes'] / 1e9:.2f} GB",
        row["precision"],
        _number(export["seconds"], ".0f"),
        _number(anonymous, ".2f", 1e9),
        _number(anonymous, ".2f", weights),
        _number(export["peak_bytes"], ".2f", 1e9),
        _number(graphs, ".1f", 1e6),
        _number(graphs, ".3f", per_parameter),
        _result(row),
        _number(image.get("open_seconds"), ".2f"),
        _number(image.get("image_seconds"), ".1f"),
        _number(image.get("peak_anonymous_bytes"), ".2f", 1e9),
        _number(others, ".2f"),
    ]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a table of Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(shown, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def failures(row: Mapping[str, Any]) -> list[str]:
    """Return what failed of a row, in a line each."""
    name = f"{row['model']}, {row['form']}, {row['precision']}"
    return [f"{name}: {what}: {why}" for what, why in row["failures"].items()]


def _result(row: Mapping[str, Any]) -> str:
    """The worst difference to PyTorch, and what failed."""
    parity = None if row["bundle"] is None else row["bundle"]["parity"]
    failed = "".join(f", {what} FAILED" for what in row["failures"])
    if parity is None:
        return failed.removeprefix(", ")
    difference = _number(parity["difference"], ".0e") if parity["difference"] is not None else "inf"
    return f"{difference} of {parity['tolerance']:.0e}{failed}"


def _number(value: float | None, digits: str, unit: float = 1) -> str:
    return _NONE if value is None else format(value / unit, digits)
