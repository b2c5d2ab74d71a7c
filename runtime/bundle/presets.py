"""Presets: options that were found to be as good as the target's and faster, with the evidence.

A bundle's manifest holds them by name; `csd-eval tune` writes them, and `csd-generate --preset`
decodes with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..errors import OptionError
from ..options import GenerateOptions
from . import schema

MOST_PRESETS = 64


@dataclass(frozen=True)
class Evidence:
    """Why a preset is believed to be as good as the target.

    Attributes:
        metric: what was compared, and in which features.
        images: of each, made for this test alone.
        margin: by which it may be worse.
        drop: by which it was; below 0 is better.
        most: end of the one-sided interval of the drop, within the margin.
        error: chance that a preset is written although it is worse by more than the margin.
        seconds: an image.
        baseline_seconds: an image of the target.
        backend: that both ran on.
        machine: its processor.
        date: of the test.
    """

    metric: str
    images: int
    margin: float
    drop: float
    most: float
    error: float
    seconds: float
    baseline_seconds: float
    backend: str
    machine: str
    date: str


@dataclass(frozen=True)
class Preset:
    """Options to decode with.

    Attributes:
        options: with all defaults filled in.
        precision: of engines or graphs, or None for what a backend takes by itself.
        evidence: of its quality and speed.
    """

    options: GenerateOptions
    precision: str | None
    evidence: Evidence

    def with_given(self, given: GenerateOptions, names: Collection[str]) -> GenerateOptions:
        """The preset's options, with some of `given`.

        Args:
            given: options besides.
            names: those of its fields that were given, whatever their values; others are left.
        """
        fields = {field.name for field in dataclasses.fields(given)}
        changed = {name: getattr(given, name) for name in fields.intersection(names)}
        return dataclasses.replace(self.options, **changed)


def _options(value: Any, where: str) -> GenerateOptions:
    names = {field.name for field in dataclasses.fields(GenerateOptions)}
    if not isinstance(value, dict) or not set(value) <= names:
        raise schema.FieldError(where, value, f"an object of options, {', '.join(sorted(names))}")
    # JSON has no tuples.
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in value.items()
    }
    try:
        return GenerateOptions(**values)
    except OptionError as error:
        raise ValueError(f"{where}: {error}") from error


_difference = schema.number(-1e9, 1e9)
_seconds = schema.number(0, 1e9)
_EVIDENCE = schema.record({
    "metric": schema.text(),
    "images": schema.whole(1, 1 << 40),
    "margin": schema.number(0, 1e9),
    "drop": _difference,
    "most": _difference,
    "error": schema.number(0, 1),
    "seconds": _seconds,
    "baseline_seconds": _seconds,
    "backend": schema.text(),
    "machine": schema.text(),
    "date": schema.text(),
})  # fmt: skip
PRESET_NAME = schema.matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}", "a name of letters and digits")


def presets_reader(precisions: tuple[str, ...]) -> schema.Reader[dict[str, Preset]]:
    """Return what reads the presets of a manifest.

    Args:
        precisions: that there are.
    """
    record = schema.record({
        "options": _options,
        "precision": schema.optional(schema.one_of(*precisions)),
        "evidence": _EVIDENCE,
    })  # fmt: skip

    def read(value: Any, where: str) -> Preset:
        fields = record(value, where)
        return Preset(fields["options"], fields["precision"], Evidence(**fields["evidence"]))

    return schema.mapping(PRESET_NAME, read, most=MOST_PRESETS)
