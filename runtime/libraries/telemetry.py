"""ONNX Runtime's telemetry, which it reads the environment for when it is loaded."""

from __future__ import annotations

from collections.abc import MutableMapping

TELEMETRY = "ORT_DISABLE_TELEMETRY"


def switch_off(environment: MutableMapping[str, str]) -> None:
    """Switch it off for processes with this environment, unless somebody has said otherwise."""
    if not environment.get(TELEMETRY):
        environment[TELEMETRY] = "1"


def is_off(value: str) -> bool:
    """Whether a value of the variable switches it off."""
    return value.lower() in ("1", "true")
